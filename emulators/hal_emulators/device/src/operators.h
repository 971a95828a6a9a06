// Operators that must know the device: allocation, views, copies, storage.
#pragma once
#include "fallback.h"

#include <ATen/EmptyTensor.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>

namespace device {
using Dtype = std::optional<at::ScalarType>;
using TensorLayout = std::optional<at::Layout>;
using MaybeDevice = std::optional<Device>;
using Flag = std::optional<bool>;

inline void check_factory(TensorLayout layout, Flag pin) {
  TORCH_CHECK(c10::layout_or_default(layout) == at::kStrided, "only strided tensors on the emulated device");
  TORCH_CHECK(!pin.value_or(false), "only CPU tensors can be pinned");
}
inline at::Tensor empty(at::IntArrayRef size, Dtype dtype, TensorLayout layout, MaybeDevice where, Flag pin, std::optional<at::MemoryFormat> format) {
  check_factory(layout, pin);
  c10::DeviceGuard guard(wanted(where));
  return at::detail::empty_generic(size, &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype), format);
}
inline at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, Dtype dtype, TensorLayout layout, MaybeDevice where, Flag pin) {
  check_factory(layout, pin);
  c10::DeviceGuard guard(wanted(where));
  return at::detail::empty_strided_generic(size, stride, &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}
// The CPU's zero tensor has no storage to alias.
inline at::Tensor zero_tensor(at::IntArrayRef size, Dtype dtype, TensorLayout, MaybeDevice where, Flag) {
  return at::zeros(size, at::TensorOptions().dtype(c10::dtype_or_default(dtype)).device(wanted(where)));
}

inline at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  const bool was_here = from.device().type() == kType, stays = to.device().type() == kType;
  if (was_here && !stays) operator_log.crossed("copy to host");
  (stays ? to_host(to) : to).copy_(was_here ? to_host(from) : from);
  return to;
}
inline const at::Tensor& resize_tensor(const at::Tensor& tensor, at::IntArrayRef size, std::optional<at::MemoryFormat> format) {
  auto* impl = tensor.unsafeGetTensorImpl();
  impl->set_sizes_contiguous(size);
  if (format && *format != at::MemoryFormat::Preserve) impl->empty_tensor_restride(*format);
  const size_t needed =
      at::detail::computeStorageNbytes(impl->sizes(), impl->strides(), impl->dtype().itemsize(), impl->storage_offset());
  if (needed > impl->storage().nbytes()) resize_storage(impl->storage(), needed);
  return tensor;
}
inline at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  if (to.device().type() == kType) resize_tensor(to, from.sizes(), std::nullopt);
  else to.resize_(from.sizes());
  return copy_from(from, to, false);
}
inline at::Scalar item(const at::Tensor& tensor) {
  operator_log.crossed("item");
  return at::_local_scalar_dense(to_host(tensor));
}

inline at::Tensor& set_offset(at::Tensor& tensor, at::Storage storage, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  TORCH_CHECK(storage.device() == tensor.device(), "set_: storage is on ", storage.device(), ", tensor on ", tensor.device());
  auto* impl = tensor.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(storage);
  if (stride.data() == nullptr || stride.size() != size.size()) {
    impl->set_storage_offset(offset);
    impl->set_sizes_contiguous(size);
  } else {
    impl->set_sizes_and_strides(size, stride, offset);
  }
  return tensor;
}
inline at::Tensor& set_storage(at::Tensor& tensor, at::Storage storage) {
  const int64_t elements = storage.nbytes() / tensor.dtype().itemsize();
  return set_offset(tensor, std::move(storage), 0, {elements}, {});
}
inline at::Tensor& set_tensor(at::Tensor& tensor, const at::Tensor& from) {
  return set_offset(tensor, from.storage(), from.storage_offset(), from.sizes(), from.strides());
}
inline at::Tensor& set_empty(at::Tensor& tensor) {
  c10::Storage storage(c10::Storage::use_byte_size_t(), 0, allocator.allocate(0), &allocator, true);
  return set_offset(tensor, storage, 0, {0}, {});
}
inline void record_stream(at::Tensor&, c10::Stream) {}

// Convolution on an out-of-tree device goes through the overrideable operators.
inline at::Tensor convolution(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
                              at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding, int64_t groups) {
  std::optional<at::Tensor> host_bias;
  if (bias && bias->defined()) host_bias = to_host(*bias);
  auto y = at::convolution(to_host(x), to_host(weight), host_bias, stride, padding, dilation, transposed, output_padding, groups);
  return to_device(y, x.device());
}
inline std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& gradient, const at::Tensor& x, const at::Tensor& weight, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding, int64_t groups, std::array<bool, 3> mask) {
  const int64_t outputs = weight.size(transposed ? 1 : 0) * (transposed ? groups : 1);
  auto made = at::convolution_backward(to_host(gradient), to_host(x), to_host(weight), at::OptionalIntArrayRef(at::IntArrayRef{outputs}),
                                       stride, padding, dilation, transposed, output_padding, groups, mask);
  auto up = [&](const at::Tensor& tensor) { return tensor.defined() ? to_device(tensor, x.device()) : tensor; };
  return {up(std::get<0>(made)), up(std::get<1>(made)), up(std::get<2>(made))};
}
} // namespace device
