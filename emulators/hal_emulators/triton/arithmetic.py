"""Triton's interpreter with the arithmetic of the chips.

The interpreter of Triton 3.9.0 keeps bfloat16 and float8 tensors as integers of the same width and calculates with
those integers: `tl.dot` multiplies bit patterns, casts truncate, lose carries or wrap, comparisons order negative
numbers backwards (triton-lang/triton#11584: unsupported on purpose). `repair` replaces these operations:

- casts equal torch's bit for bit: round to nearest even, NaN and infinities kept. A value beyond e4m3's range becomes
  NaN as in torch, where NVIDIA's conversion saturates, so a kernel that forgot to clamp is seen;
- arithmetic on bfloat16 is done in float32 and rounded once, as the chips do it;
- `tl.dot` multiplies exactly and accumulates in float32 (int32 for int8). Float32 operands lose their last 13 bits
  first unless the kernel says `input_precision="ieee"`: on NVIDIA chips that is what tf32, the default, does.

Not modelled: the order in which matrix units accumulate, the 14-bit accumulator of Hopper's FP8 unit inside one
`tl.dot`, fused multiply-adds, approximate exp2 and log2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
from numpy.typing import NDArray
from triton._C.libtriton import ir
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

Array = NDArray[Any]

DTYPES = {
    tl.bfloat16: torch.bfloat16,
    tl.float16: torch.float16,
    tl.float32: torch.float32,
    tl.float64: torch.float64,
    tl.float8e4nv: torch.float8_e4m3fn,
    tl.float8e5: torch.float8_e5m2,
    tl.float8e4b8: torch.float8_e4m3fnuz,
    tl.float8e5b16: torch.float8_e5m2fnuz,
}
"""The floating types that torch and Triton share."""

DISGUISED = frozenset(DTYPES) - {tl.float16, tl.float32, tl.float64}
"""Types that the interpreter stores as unsigned integers because numpy has no such type."""

BITWISE = (np.bitwise_and, np.bitwise_or, np.bitwise_xor, np.left_shift, np.right_shift)


def to_torch(data: Array, dtype: tl.dtype) -> torch.Tensor:
    """The interpreter's array as a torch tensor of the type it stands for."""
    array = np.ascontiguousarray(data)
    if dtype in DISGUISED:
        array = array.view(np.int16 if dtype == tl.bfloat16 else np.uint8)
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    return tensor.view(DTYPES[dtype]) if dtype in DISGUISED else tensor


def from_torch(tensor: torch.Tensor, dtype: tl.dtype, shape: tuple[int, ...]) -> Array:
    """The inverse of `to_torch`."""
    if dtype == tl.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16).reshape(shape)
    return (tensor.view(torch.uint8) if dtype in DISGUISED else tensor).numpy().reshape(shape)


def as_float32(handle: TensorHandle) -> Array:
    """The values of a handle in float32, exactly for every type of at most 32 bits."""
    dtype = handle.dtype.scalar
    if dtype in DISGUISED:
        return to_torch(handle.data, dtype).float().numpy().reshape(np.shape(handle.data))
    return handle.data.astype(np.float32, copy=False)


def toward_zero(values: Array, dtype: tl.dtype) -> Array:
    """float32 rounded to bfloat16 by dropping bits."""
    if dtype != tl.bfloat16:
        raise NotImplementedError(f"rounding toward zero to {dtype} is not modelled")
    return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16)


def cast(_: Any, source: TensorHandle, target_type: tl.dtype, rounding: Any = None) -> TensorHandle:
    """Every conversion between numbers, rounded as torch rounds it."""
    source_type, target = source.dtype.scalar, target_type.scalar
    if source_type == target:
        return TensorHandle(source.data, target)
    if target not in DISGUISED and source_type not in DISGUISED:
        return TensorHandle(source.data.astype(interpreter._get_np_dtype(target)), target)
    if target not in DTYPES:
        return TensorHandle(as_float32(source).astype(interpreter._get_np_dtype(target)), target)
    if rounding == ir.ROUNDING_MODE.RTZ and target.primitive_bitwidth < source_type.primitive_bitwidth:
        return TensorHandle(toward_zero(as_float32(source), target), target)
    if source_type in DTYPES:
        values = to_torch(source.data, source_type)
    else:
        values = torch.from_numpy(np.ascontiguousarray(source.data).astype(np.float32))
    return TensorHandle(from_torch(values.to(DTYPES[target]), target, np.shape(source.data)), target)


def tf32(values: Array) -> Array:
    """float32 rounded to tf32's ten fraction bits."""
    return interpreter._round_f32_to_tf32(values)  # type: ignore[no-any-return]


def dot(_: Any, a: TensorHandle, b: TensorHandle, acc: TensorHandle, precision: Any, __: int) -> TensorHandle:
    """`a @ b + acc` with exact products, summed in the accumulator's type."""
    kind = acc.dtype.scalar
    if kind == tl.float64:
        product = np.matmul(a.data, b.data)
    elif a.dtype.scalar.is_floating():
        left, right = as_float32(a), as_float32(b)
        if a.dtype.scalar == tl.float32 and precision == ir.INPUT_PRECISION.TF32:
            left, right = tf32(left), tf32(right)
        product = np.matmul(left, right)
    else:  # float64 holds every sum of int8 products exactly
        product = np.matmul(a.data.astype(np.float64), b.data.astype(np.float64)).astype(acc.data.dtype)
    return TensorHandle((product + acc.data).astype(acc.data.dtype, copy=False), kind)


_binary, _unary, _ternary, _fma, _sum = (
    InterpreterBuilder.binary_op,
    InterpreterBuilder.unary_op,
    InterpreterBuilder.ternary_op,
    InterpreterBuilder.create_fma,
    interpreter.ReduceOps.sum,
)


def _rounded(values: Array, dtype: tl.dtype) -> TensorHandle:
    return cast(None, TensorHandle(np.asarray(values, np.float32), tl.float32), dtype)


def binary(self: Any, lhs: TensorHandle, rhs: TensorHandle, op: Any) -> TensorHandle:
    """Element-wise operators; bits stay bits, and a comparison is an int1 (stock: the operands' type)."""
    dtype = lhs.dtype.scalar
    if dtype not in DISGUISED or op in BITWISE:
        result = _binary(self, lhs, rhs, op)
        return TensorHandle(result.data, tl.int1) if result.data.dtype == np.bool_ else result
    values = op(as_float32(lhs), as_float32(rhs))
    return TensorHandle(values, tl.int1) if values.dtype == np.bool_ else _rounded(values, dtype)


def unary(self: Any, argument: TensorHandle, op: Any) -> TensorHandle:
    dtype = argument.dtype.scalar
    return _rounded(op(as_float32(argument)), dtype) if dtype in DISGUISED else _unary(self, argument, op)


def ternary(self: Any, lhs: TensorHandle, rhs: TensorHandle, other: TensorHandle, op: Any) -> TensorHandle:
    dtype = other.dtype.scalar
    if dtype not in DISGUISED or op is np.where:
        return _ternary(self, lhs, rhs, other, op)
    return _rounded(op(as_float32(lhs), as_float32(rhs), as_float32(other)), dtype)


def fma(self: Any, x: TensorHandle, y: TensorHandle, z: TensorHandle) -> TensorHandle:
    dtype = z.dtype.scalar
    if dtype not in DISGUISED:
        return _fma(self, x, y, z)
    wide = as_float32(x).astype(np.float64) * as_float32(y) + as_float32(z)
    return TensorHandle(from_torch(torch.from_numpy(wide).to(DTYPES[dtype]), dtype, np.shape(wide)), dtype)


def total(self: Any, tensor: tl.tensor) -> tl.tensor:
    """`tl.sum`: bfloat16 is summed in float32 and rounded once."""
    dtype = tensor.dtype.scalar
    if dtype not in DISGUISED:
        return _sum(self, tensor)
    result = np.sum(as_float32(tensor.handle), axis=self.axis, keepdims=self.keep_dims)
    return self.to_tensor(_rounded(result, dtype).data, tensor.dtype)


def scaled_operand(value: TensorHandle) -> Array:
    """An operand of `tl.dot_scaled`; the stock conversion squeezes bfloat16 through float16."""
    return interpreter._e2m1_to_f32(value.data) if value.dtype == tl.uint8 else as_float32(value)


def rsqrt(_: Any, argument: TensorHandle) -> TensorHandle:
    """In the argument's own precision; numpy promotes `1 / x` for a scalar array of float32 otherwise."""
    return TensorHandle((np.float32(1) / np.sqrt(argument.data)).astype(argument.data.dtype), argument.dtype.scalar)


def repair() -> None:
    """Install the operations above in Triton's interpreter; harmless when repeated."""
    builder = InterpreterBuilder
    builder.cast_impl = cast
    builder.create_fp_to_fp = cast
    builder.create_dot = dot
    builder.binary_op, builder.unary_op, builder.ternary_op = binary, unary, ternary
    builder.create_fma = fma
    builder.create_rsqrt = rsqrt
    interpreter.ReduceOps.sum = total
    interpreter._mxfp_value_handle_to_float32 = scaled_operand
