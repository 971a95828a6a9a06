"""Every number of docs/formats.md is the code's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from hal.formats import prepare, quantize
from hal.formats.activations import ACTIVATIONS
from hal.formats.codecs import ELEMENTS
from hal.formats.weights import SCHEMES
from hal.layouts.sizes import LAYOUTS, sizes

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "formats.md").read_text()


def table(title: str) -> dict[str, list[str]]:
    """Rows of the first table below a heading, by the name in their first cell."""
    body = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines() if line[:1] == "|"]
    return {row[0].strip("`"): row[1:] for row in rows[2:]}


def test_layouts() -> None:
    written = table("Cache layouts")
    assert set(written) == set(LAYOUTS)
    for name, (row, page, parts) in written.items():
        found = sizes(name, 128 if name.startswith("index") else 512, 64)
        fields = ", ".join(f"{field.name} {field.offset}+{field.stride}" for field in found.fields)
        assert (row, page, parts) == (str(found.row_bytes), str(found.page_bytes), fields)


def test_weights() -> None:
    written = table("Weights")
    assert set(written) == set(SCHEMES)
    for scheme, (codes, scales, count) in written.items():
        packed = prepare(torch.ones(256, 512), scheme)
        assert int(count) == packed.codes.nbytes + (0 if packed.scales is None else packed.scales.nbytes)
        assert bool(scales) == (packed.scales is not None)
        if packed.scales is not None:
            assert ELEMENTS[codes].dtype == packed.codes.dtype
            assert ("ue8m0" in scales) == (packed.scales.dtype == torch.float8_e8m0fnu)


def test_activations() -> None:
    written = table("Activations")
    assert set(written) == set(ACTIVATIONS)
    for name, (_code, block, scale) in written.items():
        scales = quantize(torch.ones(3, 256), name).scales
        assert scales.shape[-1] == (0 if not block else 1 if block == "whole row" else 256 // int(block))
        assert scale.startswith("ue8m0") == (scales.dtype == torch.float8_e8m0fnu)
        if scale:
            expression = re.sub(r"^\w+ of |^float32 ", "", scale).replace("^", "**")
            wanted = eval(expression, {"max": max, "amax": 5.0})
            found = quantize(torch.full((1, 256), 5.0), name).scales.float().max().item()
            assert wanted <= found < 2 * wanted if "ue8m0" in scale else found == pytest.approx(wanted)


@pytest.mark.parametrize("name", ELEMENTS)
def test_codes(name: str) -> None:
    bits, values, stored = table("Codes")[name]
    codes = torch.arange(256, dtype=torch.uint8)
    element = ELEMENTS[name]
    decoded = element.decode(codes.view(element.dtype))
    assert ("two a byte" in stored) == (bits == "4") == (element.packed == 2)
    most = {"e4m3": "most 448", "e2m1": "4, 6 and", "int8": "-127 to 127; -128", "int4": "-7 to 7; -8", "hif8": "2^15"}
    assert most[name] in values
    largest = {"e4m3": 448, "e2m1": 6, "int8": 128, "int4": 8, "hif8": 2**15}[name]
    assert decoded[decoded.isfinite()].abs().max() == largest
    assert int(decoded.isnan().sum()) == {"e4m3": 2, "hif8": 1}.get(name, 0)
    if element.packed == 2:
        assert decoded.view(256, 2)[0x21, 0] == decoded.view(256, 2)[0x11, 0]  # the low nibble is the first value


def test_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    script = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert script
    exec(script[1], {})
    assert f"# {capsys.readouterr().out.strip()}" == script[1].strip().splitlines()[-1]
