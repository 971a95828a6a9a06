"""hal's contracts as portable Triton kernels.

Each module holds the kernels of one family and the functions that launch them, with the contracts' signatures. Kernels
use pointers only: no autotuning, no inline assembly, no early return, and each works with any grid that covers its work,
so that they compile for NVIDIA, Ascend and MLU alike. Tile sizes come from `tuning.toml`.
"""
