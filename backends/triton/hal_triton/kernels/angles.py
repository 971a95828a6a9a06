"""Rotary embedding in registers, with the same bits on every chip."""

import triton
import triton.language as tl


@triton.jit
def cos_sin(angle):
    """Cosine and sine of float32 angles up to 2**20 radians, within 2 units in the last place.

    Range reduction by multiples of pi/2 in three parts (Cody and Waite), then the polynomials of Cephes' sinf and cosf.
    Library functions would do, were they equally accurate and free of a stack frame on every chip.
    """
    turns = tl.floor(angle * 0.6366197723675814 + 0.5)
    r = tl.fma(turns, -1.5703125, angle)
    r = tl.fma(turns, -4.837512969970703e-4, r)
    r = tl.fma(turns, -7.549789954891882e-8, r)
    z = r * r
    sine = tl.fma(z * r, tl.fma(z, tl.fma(z, -1.9515295891e-4, 8.3321608736e-3), -1.6666654611e-1), r)
    even = tl.fma(z, tl.fma(z, 2.443315711809948e-5, -1.388731625493765e-3), 4.166664568298827e-2)
    cosine = tl.fma(z * z, even, tl.fma(z, -0.5, 1.0))
    quadrant = turns.to(tl.int32) & 3
    swap = (quadrant & 1) == 1
    c = tl.where(swap, sine, cosine)
    s = tl.where(swap, cosine, sine)
    c = tl.where((quadrant == 1) | (quadrant == 2), -c, c)
    s = tl.where(quadrant >= 2, -s, s)
    return c, s


@triton.jit
def rotate(x, position, frequencies, PAIRS: tl.constexpr):
    """Rotate the last `2 * PAIRS` channels of float32 `x[R, D]` as interleaved pairs, each row by its position."""
    R: tl.constexpr = x.shape[0]
    D: tl.constexpr = x.shape[1]
    pair = tl.arange(0, D // 2) - (D // 2 - PAIRS)
    frequency = tl.load(frequencies + tl.maximum(pair, 0), mask=pair >= 0, other=0.0)
    c, s = cos_sin(position.to(tl.float32)[:, None] * frequency[None, :])
    even, odd = tl.split(tl.reshape(x, R, D // 2, 2))
    return tl.interleave(even * c - odd * s, even * s + odd * c)


@triton.jit
def hadamard(x, D: tl.constexpr):
    """Hadamard transform of each row of `x[R, D]`, unscaled, in float32: products with +1 and -1 are exact."""
    i = tl.arange(0, D)
    bits = i[:, None] & i[None, :]
    bits ^= bits >> 8
    bits ^= bits >> 4
    bits ^= bits >> 2
    bits ^= bits >> 1
    signs = (1 - 2 * (bits & 1)).to(x.dtype)
    return tl.dot(x, signs, input_precision="ieee")
