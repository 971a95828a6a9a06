// An emulated accelerator on torch's PrivateUse1 key. It keeps what a real device has and a CPU lacks: a device type and
// index of its own, refusal of mixed devices, its own memory, generators, streams, and an account of host round trips.
#include "operators.h"

#include <ATen/autocast_mode.h>

namespace device {
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);
REGISTER_ALLOCATOR(kType, &allocator);
const bool hooked = [] {
  if (!at::isPrivateUse1HooksRegistered()) at::RegisterPrivateUse1HooksInterface(new Hooks());
  return true;
}();

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }
TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", TORCH_FN(empty));
  m.impl("empty_strided", TORCH_FN(empty_strided));
  m.impl("_efficientzerotensor", TORCH_FN(zero_tensor));
  m.impl("as_strided", TORCH_FN(at::native::as_strided_tensorimpl));
  m.impl("view", TORCH_FN(at::native::view));
  m.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
  m.impl("unfold", TORCH_FN(at::native::unfold));
  m.impl("resize_", TORCH_FN(resize_tensor));
  m.impl("_copy_from", TORCH_FN(copy_from));
  m.impl("_copy_from_and_resize", TORCH_FN(copy_from_and_resize));
  m.impl("_local_scalar_dense", TORCH_FN(item));
  m.impl("set_.source_Storage_storage_offset", TORCH_FN(set_offset));
  m.impl("set_.source_Storage", TORCH_FN(set_storage));
  m.impl("set_.source_Tensor", TORCH_FN(set_tensor));
  m.impl("set_", TORCH_FN(set_empty));
  m.impl("record_stream", TORCH_FN(record_stream));
  m.impl("convolution_overrideable", TORCH_FN(convolution));
  m.impl("convolution_backward_overrideable", TORCH_FN(convolution_backward));
}
// Copies resolve lazy conjugation and negation themselves; torch's fallback would clone, which copies, for ever.
TORCH_LIBRARY_IMPL(aten, Conjugate, m) {
  m.impl("_copy_from", torch::CppFunction::makeFallthrough());
  m.impl("_copy_from_and_resize", torch::CppFunction::makeFallthrough());
}
TORCH_LIBRARY_IMPL(aten, Negative, m) {
  m.impl("_copy_from", torch::CppFunction::makeFallthrough());
  m.impl("_copy_from_and_resize", torch::CppFunction::makeFallthrough());
}

std::vector<std::string> lines(const std::map<std::string, int64_t>& counts) {
  std::vector<std::string> made;
  for (const auto& [name, times] : counts) made.push_back(name + " " + std::to_string(times));
  return made;
}
at::Tensor as_host(const at::Tensor& tensor) { return to_host(tensor); }
at::Tensor as_device(const at::Tensor& tensor, int64_t index) {
  return to_device(tensor, Device(kType, index < 0 ? current : static_cast<DeviceIndex>(index)));
}

// The controls, torch.ops.hal_device.*
TORCH_LIBRARY(hal_device, m) {
  m.def("device_count() -> int", [] { return int64_t(count()); });
  m.def("current_device() -> int", [] { return int64_t(current); });
  m.def("set_device(int index) -> ()", [](int64_t index) { set_current(index); });
  m.def("memory(int index) -> int[]", [](int64_t index) {
    auto& ledger = ledgers[index];
    return std::vector<int64_t>{ledger.used, ledger.peak, ledger.allocations, ledger.limit};
  });
  m.def("reset_peak(int index) -> ()", [](int64_t index) { ledgers[index].peak = ledgers[index].used.load(); });
  m.def("limit_memory(int index, int bytes) -> ()", [](int64_t index, int64_t bytes) { ledgers[index].limit = bytes; });
  m.def("seed(int index, int seed) -> ()", [](int64_t index, int64_t seed) { default_generator(index).set_current_seed(uint64_t(seed)); });
  m.def("rng_state(int index) -> Tensor", [](int64_t index) { return at::Tensor(default_generator(index).unsafeGetGeneratorImpl()->get_state()); });
  m.def("set_rng_state(int index, Tensor state) -> ()", [](int64_t index, const at::Tensor& state) {
    default_generator(index).unsafeGetGeneratorImpl()->set_state(*state.unsafeGetTensorImpl());
  });
  m.def("log_operators(bool on) -> ()", [](bool on) {
    std::lock_guard<std::mutex> guard(operator_log.lock);
    operator_log.on = on;
    if (on) operator_log.ran.clear();
  });
  m.def("operators() -> str[]", [] {
    std::lock_guard<std::mutex> guard(operator_log.lock);
    return lines(operator_log.ran);
  });
  m.def("host_trips() -> str[]", [] {
    std::lock_guard<std::mutex> guard(operator_log.lock);
    return lines(operator_log.on_host);
  });
  m.def("clear_host_trips() -> ()", [] {
    std::lock_guard<std::mutex> guard(operator_log.lock);
    operator_log.on_host.clear();
  });
  m.def("without_kernel(str[] names, bool strict) -> ()", [](std::vector<std::string> names, bool strict) {
    std::lock_guard<std::mutex> guard(operator_log.lock);
    operator_log.missing = std::set<std::string>(names.begin(), names.end());
    operator_log.strict = strict;
  });
  m.def("as_host(Tensor(a) tensor) -> Tensor(a)");
  m.def("as_device(Tensor(a) tensor, int index=-1) -> Tensor(a)");
}
TORCH_LIBRARY_IMPL(hal_device, PrivateUse1, m) { m.impl("as_host", TORCH_FN(as_host)); }
// Views of the same bytes carry no gradient; torch before 2.8 needs to be told.
TORCH_LIBRARY_IMPL(hal_device, AutogradPrivateUse1, m) { m.impl("as_host", torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(hal_device, CPU, m) { m.impl("as_device", TORCH_FN(as_device)); }
} // namespace device

namespace at::autocast {
#define LOWER(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define FLOAT32(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
#define PROMOTE(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)
TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  AT_FORALL_LOWER_PRECISION_FP(LOWER)
  AT_FORALL_FP32(FLOAT32)
  AT_FORALL_PROMOTE(PROMOTE)
}
} // namespace at::autocast
