"""What the adapters can do. They come before the Triton kernels; where a library is missing, that is the reason."""

from __future__ import annotations

from hal.constraints import Constraint, dim, dtype, layout, needs
from hal.kernel import Kernel
from hal.target import Target
from hal_cuda.adapters.probe import Offered, offered, parameters

__all__ = ["adapters"]


def adapters(target: Target) -> list[Kernel]:
    """The adapters of a chip, best first."""
    return [*_flash_mla(target)]


def _flash_mla(target: Target) -> list[Kernel]:
    library = offered(target, "flash_mla", "flash_mla_with_kvcache", "get_mla_metadata", form=_reads_v4)
    common = (
        needs("flashmla"),
        library,
        dtype("q").one_of("bfloat16"),
        dim("head_dim").one_of(512),
        dim("heads").between(1, 128),
        layout("window").one_of("v4_584"),
        layout("compressed").one_of("v4_584"),
    )
    return [
        _kernel(
            "attend.flash_mla.selected",
            "attn.attend",
            "flash_mla:attend_selected",
            *common,
            layout("rows").one_of("selected"),
            notes="Sparse decoding; lists are read as far as they are filled. Heads are padded to 64 or 128.",
        ),
        _kernel(
            "attend.flash_mla",
            "attn.attend",
            "flash_mla:attend",
            *common,
            notes="Sparse decoding over lists with -1 anywhere. Heads are padded to 64 or 128.",
        ),
    ]


def _reads_v4() -> str:
    known = parameters("flash_mla", "flash_mla_with_kvcache")
    if "enable_batch_invariant" in known and not known & {"out", "use_legacy"}:
        return "of a version that reads rows of DeepSeek-V4.1 only"
    return ""


def _kernel(name: str, contract: str, function: str, *constraints: Constraint | Offered, notes: str) -> Kernel:
    return Kernel(f"cuda.{name}", contract, f"hal_cuda.adapters.{function}", constraints, notes=notes)
