"""hal's contracts as portable Triton kernels.

Each module holds one family's functions with the contracts' signatures, `kernels/` what they launch. Kernels use
pointers only: no autotuning, no inline assembly, no early return, and each works with a grid of any size, so that they
compile for NVIDIA, Ascend and MLU alike. Tile sizes come from `tuning.toml`.
"""
