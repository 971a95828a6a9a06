// Every operator without a kernel of its own runs on CPU aliases of its device tensors; mixed devices are refused as a
// real device refuses them.
#pragma once
#include "alias.h"
#include "runtime.h"

#include <torch/library.h>

#include <set>
#include <string>

namespace device {
// What ran, what a real device would have no kernel for, and what crossed to the host.
struct Log {
  std::mutex lock;
  bool on = false, strict = false;
  std::map<std::string, int64_t> ran, on_host;
  std::set<std::string> missing;

  void operator_ran(const c10::OperatorName& name) {
    std::lock_guard<std::mutex> guard(lock);
    if (on) ++ran[c10::toString(name)];
    if (!missing.count(name.name)) return;
    TORCH_CHECK_NOT_IMPLEMENTED(!strict, "The operator '", name, "' has no kernel for the ", c10::get_privateuse1_backend(),
                                " device, and falling back to the host is switched off.");
    ++on_host[c10::toString(name)];
    TORCH_WARN("The operator '", name, "' is not supported on the ", c10::get_privateuse1_backend(),
               " device and will fall back to run on the CPU.");
  }
  void crossed(const char* name) {
    std::lock_guard<std::mutex> guard(lock);
    ++on_host[name];
  }
};
inline Log operator_log;

inline Device wanted(std::optional<Device> device) {
  Device found = device.value_or(Device(kType, current));
  if (found.index() < 0) found = Device(kType, current);
  TORCH_CHECK(found.index() < count(), "invalid device ordinal ", int(found.index()), ": ", count(), " devices are here");
  return found;
}

// Real kernels take CPU scalars everywhere and CPU indices in indexing.
inline bool host_argument_is_fine(const std::string& name, const at::Tensor& tensor) {
  static const std::set<std::string> indexing = {"aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_",
                                                 "aten::_unsafe_index", "aten::_unsafe_index_put"};
  return tensor.dim() == 0 || indexing.count(name) > 0;
}

class Call {
 public:
  Call(const c10::OperatorHandle& op, torch::jit::Stack* stack)
      : op_(op), schema_(op.schema()), stack_(stack), arguments_(schema_.arguments().size()), first_(stack->size() - arguments_) {}

  void run() {
    choose_device();
    refuse_mixed();
    for (size_t i = 0; i < arguments_; ++i) argument(i) = on_host(argument(i), schema_.arguments()[i].name());
    op_.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack_);
    keep_resized();
    const auto results = schema_.returns().size(), begin = stack_->size() - results;
    for (size_t i = 0; i < results; ++i) (*stack_)[begin + i] = on_device((*stack_)[begin + i]);
  }

 private:
  struct Alias {
    at::Tensor device, host;
    const void* bytes;
  };
  const c10::OperatorHandle& op_;
  const c10::FunctionSchema& schema_;
  torch::jit::Stack* stack_;
  const size_t arguments_, first_;
  std::vector<Alias> aliases_;
  Device target_{kType, 0};
  bool seen_ = false;

  c10::IValue& argument(size_t i) { return (*stack_)[first_ + i]; }

  template <typename Visit>
  void each_tensor(Visit visit) {
    for (size_t i = 0; i < arguments_; ++i) {
      const auto& value = argument(i);
      if (value.isTensor()) {
        if (value.toTensor().defined()) visit(i, value.toTensor());
      } else if (value.isTensorList()) {
        for (const at::Tensor& tensor : value.toTensorList())
          if (tensor.defined()) visit(i, tensor);
      } else if (value.isOptionalTensorList()) {
        for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorList())
          if (tensor && tensor->defined()) visit(i, *tensor);
      }
    }
  }

  void choose_device() {
    each_tensor([&](size_t, const at::Tensor& tensor) {
      if (tensor.device().type() != kType) return;
      TORCH_CHECK(!seen_ || target_ == tensor.device(), "Expected all tensors to be on the same device, but found at least two devices, ",
                  target_, " and ", tensor.device(), "! (operator ", schema_.operator_name(), ")");
      target_ = tensor.device();
      seen_ = true;
    });
    std::optional<Device> named;
    for (size_t i = 0; i < arguments_; ++i) {
      if (!argument(i).isDevice() || argument(i).toDevice().type() != kType) continue;
      named = argument(i).toDevice();
      argument(i) = c10::IValue(Device(c10::DeviceType::CPU));
    }
    if (!seen_) target_ = wanted(named);
  }

  void refuse_mixed() {
    if (!seen_) return;
    each_tensor([&](size_t i, const at::Tensor& tensor) {
      if (tensor.device().type() == kType) return;
      const auto* info = schema_.arguments()[i].alias_info();
      const bool written = info && info->isWrite();
      TORCH_CHECK(tensor.is_cpu() && !written && host_argument_is_fine(schema_.operator_name().name, tensor),
                  "Expected all tensors to be on the same device, but found at least two devices, ", target_, " and ", tensor.device(),
                  "! (operator ", schema_.operator_name(), ", argument '", schema_.arguments()[i].name(), "')");
    });
  }

  at::Tensor host_of(const at::Tensor& tensor) {
    if (!tensor.defined() || tensor.device().type() != kType) return tensor;
    for (auto& alias : aliases_)
      if (alias.device.is_same(tensor)) return alias.host;
    aliases_.push_back({tensor, to_host(tensor), tensor.storage().data()});
    return aliases_.back().host;
  }

  c10::IValue on_host(const c10::IValue& value, const std::string& name) {
    if (value.isTensor()) return host_of(value.toTensor());
    if (value.isTensorList()) {
      c10::List<at::Tensor> made;
      for (const at::Tensor& tensor : value.toTensorList()) made.push_back(host_of(tensor));
      return made;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> made;
      for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorList())
        made.push_back(tensor ? std::optional<at::Tensor>(host_of(*tensor)) : tensor);
      return made;
    }
    if (value.isGenerator()) {
      auto generator = value.toGenerator();
      TORCH_CHECK(generator.device().type() == kType, "Expected a '", c10::get_privateuse1_backend(),
                  "' device type for generator but found '", generator.device().type(), "'");
      return static_cast<Generator*>(generator.unsafeGetGeneratorImpl())->inner;
    }
    if (value.isNone() && name == "generator")
      return static_cast<Generator*>(default_generator(target_.index()).unsafeGetGeneratorImpl())->inner;
    return value;
  }

  // out= and resize_ may have given an alias other bytes or another shape.
  void keep_resized() {
    for (auto& alias : aliases_) {
      auto* device = alias.device.unsafeGetTensorImpl();
      const bool moved = alias.host.storage().data() != alias.bytes;
      if (moved) {
        const auto& from = alias.host.storage();
        resize_storage(device->storage(), from.nbytes());
        if (from.nbytes()) std::memcpy(const_cast<void*>(device->storage().data()), from.data(), from.nbytes());
      }
      if (moved || alias.host.sizes() != alias.device.sizes() || alias.host.strides() != alias.device.strides())
        device->set_sizes_and_strides(alias.host.sizes(), alias.host.strides(), alias.host.storage_offset());
    }
  }

  at::Tensor device_of(const at::Tensor& tensor) {
    if (!tensor.defined() || !tensor.is_cpu()) return tensor;
    TORCH_CHECK(tensor.layout() == at::kStrided, "operator ", schema_.operator_name(), " returned a ", tensor.layout(), " tensor");
    for (auto& alias : aliases_)
      if (alias.host.is_same(tensor)) return alias.device;
    if (tensor.numel() > 0)
      for (auto& alias : aliases_)
        if (alias.bytes && tensor.storage().data() == alias.bytes) // a view of an argument
          return over(c10::Storage(alias.device.storage()), c10::DispatchKey::PrivateUse1, tensor);
    return to_device(tensor, target_);
  }

  c10::IValue on_device(const c10::IValue& value) {
    if (value.isTensor()) return device_of(value.toTensor());
    if (!value.isTensorList()) return value;
    c10::List<at::Tensor> made;
    for (const at::Tensor& tensor : value.toTensorList()) made.push_back(device_of(tensor));
    return made;
  }
};

inline void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& name = op.schema().operator_name();
  const bool known = name.name.rfind("aten::", 0) == 0 || name.name.rfind("prims::", 0) == 0;
  TORCH_CHECK_NOT_IMPLEMENTED(known, "The operator '", name, "' is not implemented for the ", c10::get_privateuse1_backend(), " device.");
  operator_log.operator_ran(name);
  Call(op, stack).run();
}
} // namespace device
