"""What a plan says of the libraries: which are here, which are not and why, and that they come first where they are."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hal_cuda.adapters.declared import adapters
from hal_cuda.plugin import hal_kernels
from library_lab import FORMS, installed

import hal
from hal.errors import NoKernel
from hal.target import Target, described

CHIPS = {target.name.partition(":")[2]: target for target in described() if target.backend == "cuda"}
ATTEND = hal.Call(
    "attn.attend",
    sizes={"heads": 64, "head_dim": 512, "top_k": 512},
    dtypes={"q": "bfloat16"},
    layouts={"window": "v4_584", "compressed": "v4_584", "rows": "selected"},
    attributes={"scale": 512**-0.5, "window_size": 128, "ratio": 4},
)


def here(chip: str) -> Target:
    """The chip as if it were in this machine."""
    return replace(CHIPS[chip], present=True)


def planned(call: hal.Call, target: Target) -> tuple[str, dict[str, str]]:
    """Who serves the call, and why each other kernel does not."""
    with hal.use(allow="unverified"):
        choice = hal.plan([call], target=target).choices[0]
    return choice.winner, {lost.kernel: lost.reason for lost in choice.lost}


def test_declaring_loads_neither_torch_nor_a_library() -> None:
    code = (
        "import sys, hal_cuda.plugin as p; from hal.target import described\n"
        "[p.hal_kernels(target) for target in described() if target.backend == 'cuda']\n"
        "sys.exit(bool({'torch', 'triton', 'flash_mla', 'deep_gemm'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_library_that_is_missing_is_the_reason() -> None:
    with installed(None):
        winner, lost = planned(ATTEND, CHIPS["sm90"])
    assert winner == "cuda.attend"
    assert lost["cuda.attend.flash_mla"].startswith("flash_mla is not installed")
    assert "pip install sgl-flash-mla" in lost["cuda.attend.flash_mla"]


@pytest.mark.parametrize("form", ["upstream", "vllm", "sgl"])
@pytest.mark.parametrize("target", [CHIPS["sm90"], here("sm90"), here("sm100")], ids=lambda one: one.name)
def test_a_library_that_is_here_comes_first(form: str, target: Target) -> None:
    with installed(FORMS / f"flash_mla_{form}"):
        assert planned(ATTEND, target)[0] == "cuda.attend.flash_mla.selected"
        assert planned(replace(ATTEND, layouts={"window": "v4_584"}), target)[0] == "cuda.attend.flash_mla"


MATMUL = hal.Call(
    "quant.matmul",
    sizes={"features": 4096, "outputs": 1536},
    dtypes={"x": "bfloat16"},
    layouts={"weight": "fp8_block128"},
    attributes={"activation": "e4m3_128"},
)
EXPERTS = hal.Call(
    "moe.experts",
    sizes={"hidden": 4096, "inter": 2048},
    dtypes={"rows": "bfloat16"},
    layouts={"w13": "mxfp4", "w2": "mxfp4"},
    attributes={"activation": "e4m3_128", "clamp": 10.0},
)
SCORES = hal.Call(
    "attn.index_scores",
    sizes={"index_heads": 64, "index_dim": 128},
    dtypes={"q": "bfloat16", "weights": "bfloat16"},
    layouts={"cache": "index_mxfp4_68"},
    attributes={"ratio": 4, "scale": 0.1},
)


@pytest.mark.parametrize("version", ["26", "28"])
def test_deep_gemm_serves_what_its_chip_and_version_can(version: str) -> None:
    with installed(FORMS / f"deep_gemm_{version}"):
        assert planned(MATMUL, here("sm90"))[0] == planned(MATMUL, here("sm100"))[0] == "cuda.matmul.deep_gemm"
        assert planned(replace(MATMUL, sizes={"features": 4096, "outputs": 100}), here("sm90"))[0] == "cuda.matmul"
        assert planned(replace(MATMUL, layouts={"weight": "bf16"}), here("sm90"))[0] == "cuda.matmul"
        assert planned(EXPERTS, here("sm100"))[0] == "cuda.experts.deep_gemm.fp4"
        winner, lost = planned(EXPERTS, here("sm90"))
        assert winner == "cuda.experts"
        assert "feature fp4_mma" in lost["cuda.experts.deep_gemm.fp4"]
        eight = replace(SCORES, layouts={"cache": "index_fp8_132"})
        assert planned(eight, here("sm90"))[0] == "cuda.index_scores.deep_gemm"
        assert planned(SCORES, here("sm90"))[0] == "cuda.index_scores"
        select = hal.Call(
            "attn.select",
            sizes={**eight.sizes, "top_k": 512},
            dtypes=eight.dtypes,
            layouts=eight.layouts,
            attributes={**eight.attributes, "top_k": 512, "hadamard": True},
        )
        assert planned(select, here("sm90"))[0] == "cuda.select.deep_gemm"
        winner, lost = planned(SCORES, here("sm100"))
        if version == "26":
            assert winner == "cuda.index_scores.deep_gemm"
        else:
            assert "logits are bfloat16" in lost["cuda.index_scores.deep_gemm"]


def test_deep_ep_is_for_as_many_tokens_as_its_buffer_holds() -> None:
    few, many = (
        hal.Call(
            "moe.dispatch",
            sizes={"hidden": 4096, "top_k": 6},
            ranges={"tokens": (0, most)},
            dtypes={"x": "bfloat16"},
            attributes={"experts": 256, "activation": "e4m3_128"},
        )
        for most in (8192, 8193)
    )
    back = [
        hal.Call("moe.combine", sizes={"hidden": 4096}, ranges=one.ranges, dtypes={"rows": "bfloat16"})
        for one in (few, many)
    ]
    with installed(FORMS / "deep_ep_v2"):
        assert [planned(one, here("sm90"))[0] for one in back] == ["cuda.combine.deep_ep", "cuda.combine"]
        assert planned(few, here("sm90"))[0] == "cuda.dispatch.deep_ep"
        winner, lost = planned(many, here("sm90"))
    assert winner == "cuda.dispatch"
    assert "at most 8192 tokens" in lost["cuda.dispatch.deep_ep"]


def test_flash_infer_serves_where_flash_mla_does_not() -> None:
    with installed(FORMS / "flashinfer_07"):
        for layouts, winner in (
            ({**ATTEND.layouts, "lse": "none"}, "cuda.attend.flashinfer.selected"),
            ({"window": "v4_584", "lse": "none"}, "cuda.attend.flashinfer"),
            (ATTEND.layouts, "cuda.attend"),
        ):
            assert planned(replace(ATTEND, layouts=layouts), here("sm120"))[0] == winner
        lost = planned(ATTEND, here("sm120"))[1]
        assert "layout lse is wanted" in lost["cuda.attend.flashinfer"]
        assert "feature flashinfer" in planned(ATTEND, here("sm90"))[1]["cuda.attend.flashinfer"]


def test_mega_moe_is_for_blackwell_and_blocks_of_32() -> None:
    ffn = hal.Call(
        "moe.ffn",
        sizes={"hidden": 4096, "top_k": 6, "inter": 2048},
        ranges={"tokens": (0, 8192)},
        dtypes={"x": "bfloat16"},
        layouts={"w13": "mxfp4", "w2": "mxfp4"},
        attributes={"experts": 256, "clamp": 10.0, "activation": "e4m3_32"},
    )
    with installed(FORMS / "deep_gemm_28"):
        assert planned(ffn, here("sm100"))[0] == "cuda.ffn.megamoe"
        assert planned(ffn, here("sm90"))[0] == "cuda.dispatch + cuda.experts + cuda.combine"
        wide = replace(ffn, attributes={**ffn.attributes, "activation": "e4m3_128"})
        winner, lost = planned(wide, here("sm100"))
    assert winner == "cuda.dispatch + cuda.experts.deep_gemm.fp4 + cuda.combine"
    assert "attribute activation is e4m3_128" in lost["cuda.ffn.megamoe"]


def test_where_it_cannot_serve_it_says_why() -> None:
    with installed(FORMS / "flash_mla_upstream"):
        for target, change, word in (
            (CHIPS["sm80"], {}, "feature flashmla"),
            (replace(CHIPS["sm90"], emulated=True), {}, "emulated chip"),
            (CHIPS["sm90"], {"layouts": {"window": "rows_bf16"}}, "layout window is rows_bf16, wanted one of v4_584"),
            (CHIPS["sm90"], {"sizes": {"heads": 64, "head_dim": 128}}, "dim head_dim is 128"),
        ):
            winner, lost = planned(replace(ATTEND, **change), target)  # type: ignore[arg-type]
            assert winner == "cuda.attend"
            assert word in lost["cuda.attend.flash_mla"]


@pytest.mark.parametrize(("form", "words"), [("v41", "DeepSeek-V4.1 only"), ("v3", "before DeepSeek-V4")])
def test_a_version_that_reads_other_rows_says_so(form: str, words: str) -> None:
    with installed(FORMS / f"flash_mla_{form}"):
        assert words in planned(ATTEND, here("sm90"))[1]["cuda.attend.flash_mla"]


def test_a_library_that_does_not_import_says_so(tmp_path: Path) -> None:
    (tmp_path / "flash_mla.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    with installed(tmp_path):
        reason = planned(ATTEND, here("sm90"))[1]["cuda.attend.flash_mla"]
    assert "does not import: libcudart.so.13" in reason


def test_every_adapter_is_declared_on_every_chip_and_before_triton() -> None:
    for target in CHIPS.values():
        names = [kernel.id for kernel in hal_kernels(target)]
        assert names[: len(adapters(target))] == [kernel.id for kernel in adapters(target)]
        assert all(kernel.load() for kernel in adapters(target))


def test_what_cannot_run_here_is_not_verified_here() -> None:
    from hal.conformance.cases import subjects

    with pytest.raises(NoKernel, match="flash_mla is"):
        subjects("cuda:sm90@emulated", "cuda.attend.flash_mla*")
    assert [one.kernel.id for one in subjects("cuda:sm90@emulated", "cuda.attend*")] == [
        "cuda.attend",
        "cuda.attend_whole",
    ]
