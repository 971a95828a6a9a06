"""Number formats by integer arithmetic, for chips with and without the types.

Every encoder and decoder works on bits, so it gives the same codes on every chip, needs no float8 type (sm80 has none)
and no rounding mode. Formats: e4m3 (OCP 8-bit floating point, 1.4.3, largest 448), e2m1 (OCP MX, 1.2.1, largest 6) and
ue8m0 (a power of two, biased by 127).
"""

import triton
import triton.language as tl

INVERSE_448 = tl.constexpr(0.002232142857142857)
INVERSE_6 = tl.constexpr(0.16666666666666666)


@triton.jit
def int64(i):
    """An index as int64: offsets into caches and weights pass 2**31."""
    return tl.full((), 0, tl.int64) + i


@triton.jit
def ceil_ue8m0(x):
    """The ue8m0 code of the smallest power of two that is at least `x` (float32, positive, normal)."""
    bits = x.to(tl.int32, bitcast=True)
    return (bits >> 23) + ((bits & 0x7FFFFF) != 0).to(tl.int32)


@triton.jit
def ue8m0_to_float32(code):
    """2**(code - 127); code 0 is float32's subnormal 2**-127."""
    code = code.to(tl.int32)
    return tl.where(code == 0, 0x00400000, code << 23).to(tl.float32, bitcast=True)


@triton.jit
def ue8m0_to_bfloat16(code):
    """2**(code - 127), exact in bfloat16."""
    code = code.to(tl.int16)
    return tl.where(code == 0, 0x0040, code << 7).to(tl.int16).to(tl.bfloat16, bitcast=True)


@triton.jit
def float32_to_e4m3(x):
    """float32 in [-448, 448] to e4m3 codes (uint8), rounded to nearest even."""
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2**-6 codes count steps of 2**-9, which is the last place of 2**14 in float32.
    small = (magnitude.to(tl.float32, bitcast=True) + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    code = tl.where(magnitude < 0x3C800000, small, normal)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def e4m3_to_float32(code):
    """e4m3 codes (uint8, no NaN) to float32, exactly: fields shifted into place, sign-extended, rebiased by 2**120."""
    bits = (code.to(tl.int8, bitcast=True).to(tl.int32) << 20) & -0x78100000
    return bits.to(tl.float32, bitcast=True) * 1.329227995784916e36


@triton.jit
def e4m3_of_word(word):
    """The e4m3 code in the highest byte of int32 words (no NaN) to float32, exactly."""
    return ((word >> 4) & -0x78100000).to(tl.float32, bitcast=True) * 1.329227995784916e36


@triton.jit
def float32_to_e2m1(x):
    """float32 in [-6, 6] to e2m1 codes 0..15 (int32), rounded to nearest even: a tie goes to the even code."""
    a = tl.abs(x)
    code = (a > 0.25).to(tl.int32) + (a >= 0.75).to(tl.int32) + (a > 1.25).to(tl.int32) + (a >= 1.75).to(tl.int32)
    code += (a > 2.5).to(tl.int32) + (a >= 3.5).to(tl.int32) + (a > 5.0).to(tl.int32)
    return code | ((x.to(tl.int32, bitcast=True) >> 28) & 8)


@triton.jit
def e2m1_to_bfloat16(code):
    """e2m1 codes (low four bits) to bfloat16, exactly: the fields are shifted into place and rebiased by 2**126."""
    u = code.to(tl.int16)
    bits = ((u & 8) << 12) | ((u & 7) << 6)
    return (bits.to(tl.int16).to(tl.bfloat16, bitcast=True) * 8.507059173023462e37).to(tl.bfloat16)


@triton.jit
def e2m1_to_e4m3(code):
    """e2m1 codes (low four bits of uint8) to the e4m3 codes of the same values: 0.5 is no subnormal of e4m3."""
    small = code & 7
    wide = tl.where(small > 1, (small << 2) + 0x30, small * 0x30)
    return (wide | ((code & 8) << 4)).to(tl.uint8)


@triton.jit
def magnitude_bits(x):
    """Bits of |x| as int32: ordered like |x|, with infinity and NaN above every number."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def block_scale(amax_bits, MAXIMUM_INVERSE: tl.constexpr, FLOOR: tl.constexpr):
    """ue8m0 code of a block's scale: the smallest power of two that brings the largest magnitude into range.

    255, which stands for NaN, where the block holds an infinity or NaN.
    """
    amax = tl.maximum(amax_bits.to(tl.float32, bitcast=True), FLOOR)
    return tl.where(amax_bits >= 0x7F800000, 255, ceil_ue8m0(amax * MAXIMUM_INVERSE))


@triton.jit
def inverse_power(code):
    """2**(127 - code) for 1 <= code <= 253: what dividing by the scale multiplies with, exactly."""
    return (tl.maximum(254 - code, 1) << 23).to(tl.float32, bitcast=True)


@triton.jit
def round_to_bfloat16(x):
    """float32 through bfloat16 and back."""
    return x.to(tl.bfloat16).to(tl.float32)
