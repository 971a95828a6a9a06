// The same bytes seen from the other side, without a copy.
#pragma once
#include "memory.h"

#include <c10/core/CPUAllocator.h>
#include <c10/core/Storage.h>

namespace device {
inline at::Tensor over(c10::Storage storage, c10::DispatchKey key, const at::Tensor& like) {
  auto made = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(key), like.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  if (like.is_conj()) made._set_conj(true);
  if (like.is_neg()) made._set_neg(true);
  return made;
}

// A CPU tensor over a device tensor's bytes; keeps its storage alive.
inline at::Tensor to_host(const at::Tensor& tensor) {
  const auto& storage = tensor.unsafeGetTensorImpl()->storage();
  auto release = [](void* kept) { delete static_cast<c10::Storage*>(kept); };
  c10::DataPtr bytes(const_cast<void*>(storage.data()), new c10::Storage(storage), release, Device(c10::DeviceType::CPU));
  c10::Storage host(c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(bytes), c10::GetCPUAllocator(), true);
  auto made = over(std::move(host), c10::DispatchKey::CPU, tensor);
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) made.unsafeGetTensorImpl()->set_wrapped_number(true);
  return made;
}

// A device tensor over a CPU tensor's bytes, booked as device memory until it goes.
inline at::Tensor to_device(const at::Tensor& tensor, Device owner) {
  struct Kept {
    c10::Storage storage;
    int owner;
  };
  auto storage = tensor.unsafeGetTensorImpl()->storage();
  ledgers[owner.index()].take(static_cast<int64_t>(storage.nbytes()));
  auto release = [](void* context) {
    auto* kept = static_cast<Kept*>(context);
    ledgers[kept->owner].give(static_cast<int64_t>(kept->storage.nbytes()));
    delete kept;
  };
  c10::DataPtr bytes(const_cast<void*>(storage.data()), new Kept{storage, owner.index()}, release, owner);
  c10::Storage made(c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(bytes), &allocator, true);
  return over(std::move(made), c10::DispatchKey::PrivateUse1, tensor);
}
} // namespace device
