"""Cache pages to the byte, written out by hand from the published records, and the law that reading gives what was
stored."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.errors import ContractError, UnknownName
from hal.formats import PackedWeight, prepare, quantize
from hal.layouts import layout
from hal.layouts.pages import convert
from hal.layouts.sizes import LAYOUTS, sizes

V4 = [name for name in LAYOUTS if not name.startswith("index_")]


def rows(count: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator) * torch.exp(torch.randn(count, 1, generator=generator))


def width(name: str) -> int:
    return 128 if name.startswith("index_") else 512


@pytest.mark.parametrize(
    ("name", "block", "row", "page"),
    [
        ("v4_584", 64, 584, 37440),  # 64 * 584 = 37,376, up to a multiple of 576
        ("v4_584", 2, 584, 1728),
        ("v4_640", 64, 640, 40960),
        ("index_mxfp4_68", 64, 68, 4352),
        ("index_fp8_132", 64, 132, 8448),
        ("index_int8_130", 64, 130, 8320),
        ("rows_bf16", 64, 1024, 65536),
        ("rows_bf16_fp8", 64, 1024, 65536),
    ],
)
def test_published_sizes(name: str, block: int, row: int, page: int) -> None:
    found = sizes(name, width(name), block)
    assert (found.row_bytes, found.page_bytes) == (row, page)
    pages = layout(name, width(name), block).allocate(3)
    assert pages.nbytes == 3 * page


def e4m3_tiles(values: np.ndarray) -> tuple[bytes, bytes]:
    """448 channels: e4m3 codes, and the exponent byte of each 64."""
    tiles = values.reshape(7, 64)
    amax = np.maximum(np.abs(tiles).max(1), np.float32(1e-4))
    mantissa, exponent = np.frexp((amax * np.float32(1 / 448)).astype(np.float32))
    power = np.where(mantissa == 0.5, exponent - 1, exponent)
    codes = (tiles / np.exp2(power.astype(np.float32))[:, None]).astype(ml_dtypes.float8_e4m3fn)
    return codes.tobytes(), (power + 127).astype(np.uint8).tobytes()


def test_the_584_byte_record_by_hand() -> None:
    """A page is all data, 448 codes and 64 bf16 per row, then all scales, seven bytes and a spare one per row."""
    kept, block = layout("v4_584", 512, 4), 4
    pages = kept.allocate(2)
    pages.fill_(0xAA)
    values = rows(4, 512)
    kept.write(pages, values, torch.arange(4, 8))
    assert (pages[0] == 0xAA).all()
    page = pages[1].numpy().tobytes()
    for row in range(block):
        codes, scales = e4m3_tiles(values[row, :448].numpy())
        rope = values[row, 448:].numpy().astype(ml_dtypes.bfloat16).tobytes()
        assert page[row * 576 : (row + 1) * 576] == codes + rope
        assert page[block * 576 + row * 8 :][:8] == scales + b"\xaa"
    assert set(page[block * 584 :]) == {0xAA}  # page padding is never written


def test_the_640_byte_record_by_hand() -> None:
    kept = layout("v4_640", 512, 2)
    pages = kept.allocate(1)
    values = rows(2, 512, seed=1)
    kept.write(pages, values, torch.arange(2))
    codes, scales = e4m3_tiles(values[1, :448].numpy())
    rope = values[1, 448:].numpy().astype(ml_dtypes.bfloat16).tobytes()
    assert pages[0].numpy().tobytes()[640:1280] == rope + codes + scales + bytes(57)


def test_index_rows_by_hand() -> None:
    """64 bytes of nibbles, low one first, then per page four exponents a row; 128 codes, then a float32 a row."""
    values = rows(2, 128, seed=2)
    pages = layout("index_mxfp4_68", 128, 2).allocate(1)
    layout("index_mxfp4_68", 128, 2).write(pages, values, torch.arange(2))
    page = pages[0].numpy().tobytes()
    blocks = values[1].numpy().reshape(4, 32)
    mantissa, exponent = np.frexp((np.abs(blocks).max(1) * np.float32(1 / 6)).astype(np.float32))
    power = np.where(mantissa == 0.5, exponent - 1, exponent)
    codes = (
        (blocks / np.exp2(power.astype(np.float32))[:, None]).astype(ml_dtypes.float4_e2m1fn).view(np.uint8).reshape(-1)
    )
    assert page[64:128] == ((codes[1::2] & 15) << 4 | codes[0::2] & 15).astype(np.uint8).tobytes()
    assert page[132:136] == (power + 127).astype(np.uint8).tobytes()
    pages = layout("index_fp8_132", 128, 2).allocate(1)
    layout("index_fp8_132", 128, 2).write(pages, values, torch.arange(2))
    page = pages[0].numpy().tobytes()
    stored = quantize(values, "e4m3_128")
    assert page[128:256] == stored.codes[1].view(torch.uint8).numpy().tobytes()
    assert page[260:264] == stored.scales[1].to(torch.float32).numpy().tobytes()


@settings(max_examples=15, deadline=None)
@given(name=st.sampled_from(LAYOUTS), block=st.integers(1, 5), seed=st.integers(0, 99), data=st.data())
def test_reading_gives_what_was_quantised(name: str, block: int, seed: int, data: st.DataObject) -> None:
    kept = layout(name, width(name), block)
    pages = kept.allocate(3)
    order = data.draw(st.permutations(range(3 * block)))
    count = data.draw(st.integers(0, 3 * block))
    physical = torch.tensor([*order[:count], -1], dtype=torch.int64)
    values = rows(count + 1, width(name), seed)
    kept.write(pages, values, physical)
    back = kept.read(pages, physical)
    assert torch.equal(back[:-1], kept.quantize_rows(values).to(back.dtype)[:-1])
    assert not back[-1].any()
    untouched = torch.tensor([row for row in range(3 * block) if row not in order[:count]], dtype=torch.int64)
    assert not kept.read(pages, untouched).any()


@pytest.mark.parametrize("name", LAYOUTS)
def test_rows_that_are_all_skipped_change_nothing(name: str) -> None:
    kept = layout(name, width(name), 1)
    pages = kept.allocate(3)
    for count in (0, 1):
        kept.write(pages, rows(count, width(name), 0), torch.full((count,), -1))
    assert not pages.any()
    assert kept.quantize_rows(rows(0, width(name), 0)).shape == (0, width(name))


@pytest.mark.parametrize("source", V4)
@pytest.mark.parametrize("target", V4)
def test_import_and_export_between_all_layouts(source: str, target: str) -> None:
    """Rows that both layouts can hold survive the way there and back bit for bit."""
    first, second = layout(source, 512, 4), layout(target, 512, 2)
    held = layout("v4_584", 512, 4).quantize_rows(rows(8, 512))
    pages = first.allocate(2)
    first.write(pages, held, torch.arange(8))
    there = convert(first, pages, second)
    assert torch.equal(second.read(there, torch.arange(8)), held)
    assert torch.equal(convert(second, there, first), pages)


def test_layouts_refuse_what_they_cannot_hold() -> None:
    with pytest.raises(UnknownName):
        layout("v4_585", 512, 64)
    with pytest.raises(ContractError):
        layout("v4_584", 500, 64)
    with pytest.raises(ContractError):
        layout("index_mxfp4_68", 100, 64)


@pytest.mark.parametrize(
    "scheme", ["fp8_block128", "mxfp4", "mxfp8", "w8a8_int8", "w4a8_int", "w4a8_int_256", "hif8", "bf16"]
)
@pytest.mark.parametrize("shape", [(256, 256), (130, 256), (3, 64, 128)])
def test_weights_keep_what_they_can(scheme: str, shape: tuple[int, ...]) -> None:
    """Packing what a packed weight holds loses nothing and says so; packing floats says that it did."""
    weight = prepare(rows(int(np.prod(shape[:-1])), shape[-1]).view(shape), scheme)
    assert weight.lossy
    values = weight.dequantize()
    assert tuple(values.shape) == shape
    again = prepare(values, scheme)
    assert torch.equal(again.dequantize(), values) or scheme in ("w8a8_int8", "w4a8_int", "w4a8_int_256")
    if len(shape) == 3:
        assert torch.equal(weight[1].dequantize(), values[1])


def test_turned_codes_are_two_outputs_a_byte() -> None:
    """Read byte by byte: features one behind the other, the even output in the low half, groups of 256 features."""
    weight = prepare(rows(6, 300), "w4a8_int_256")
    assert weight.codes.shape == (300, 3)
    assert weight.scales is not None
    for output, feature in ((0, 0), (1, 255), (4, 256), (5, 299)):
        byte = int(weight.codes[feature, output // 2])
        nibble = byte >> 4 if output % 2 else byte & 15
        value = (nibble - 16 * (nibble > 7)) * float(weight.scales[output, feature // 256])
        assert weight.dequantize()[output, feature] == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("scheme", ["bf16", "fp8_block128", "mxfp4", "w4a8_int_256"])
def test_outputs_are_cut_and_joined(scheme: str) -> None:
    weight = prepare(rows(384, 256), scheme)
    parts = [weight.rows(0, 128), weight.rows(128, 500)]
    assert torch.equal(parts[1].dequantize(), weight.dequantize()[128:])
    again = PackedWeight.joined(parts)
    assert torch.equal(again.dequantize(), weight.dequantize())
    assert again.lossy
    with pytest.raises(ContractError, match="one scheme"):
        PackedWeight.joined([weight, prepare(rows(384, 256), "mxfp8")])


def test_outputs_are_not_cut_inside_a_byte_or_a_block() -> None:
    for scheme, low, high in (("w4a8_int_256", 1, 8), ("w4a8_int_256", 0, 3), ("fp8_block128", 64, 256)):
        with pytest.raises(ContractError, match="inside a block"):
            prepare(rows(256, 256), scheme).rows(low, high)
    with pytest.raises(ContractError, match="multiples of 128"):
        PackedWeight.joined([prepare(rows(64, 256), "fp8_block128")] * 2)
    with pytest.raises(ContractError, match="outputs do not fill"):
        prepare(rows(3, 256), "w4a8_int_256")


def test_blocks_at_the_edge_are_shorter() -> None:
    values = rows(130, 160)
    weight = prepare(values, "fp8_block128")
    assert weight.scales is not None
    assert tuple(weight.scales.shape) == (2, 2)
    corner = prepare(values[128:, 128:].contiguous(), "fp8_block128")
    assert torch.equal(weight.dequantize()[128:, 128:], corner.dequantize())


def test_unrounded_scales_of_base_checkpoints_are_kept() -> None:
    values = rows(256, 256)
    weight = prepare(values, "fp8_block128", scale_dtype=torch.float32)
    assert weight.scales is not None
    assert weight.scales.dtype == torch.float32
    taken = prepare(weight.codes, "fp8_block128", weight.scales)
    assert torch.equal(taken.dequantize(), weight.dequantize())
    amax = values[:128, :128].abs().max()
    assert weight.scales[0, 0] == amax / 448
