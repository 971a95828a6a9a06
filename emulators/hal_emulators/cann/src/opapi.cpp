// libopapi.so: handles for tensors, scalars and lists, and one entry per aclnn operator that calls Python.
//
// Every aclnnXxxGetWorkspaceSize(arguments.., uint64_t* workspace, aclOpExecutor**) hands its raw registers and stack to
// one function, every aclnnXxx(workspace, size, executor, stream) to another. The entries themselves are generated.
#include "abi.h"

#include <cstdlib>
#include <cstring>

constexpr uint64_t MOST_DIMS = 16;

// Python reads these through ctypes: keep both sides alike.
struct Tensor {
  int32_t type, format;
  int64_t offset;
  int32_t dims, storage_dims;
  int64_t shape[MOST_DIMS], stride[MOST_DIMS], storage[MOST_DIMS];
  void* data;
};
struct Scalar { int64_t type; uint8_t value[16]; };
struct Array { uint64_t n; void* items; };

template <class T>
static Array* array_of(const T* items, uint64_t n) {
  auto* made = new Array{n, malloc(n * sizeof(T) + 1)};
  memcpy(made->items, items, n * sizeof(T));
  return made;
}
static Error release(const Array* array) {
  if (array) free(array->items);
  delete array;
  return OK;
}

CANN Tensor* aclCreateTensor(const int64_t* shape, uint64_t dims, int type, const int64_t* stride, int64_t offset,
                             int format, const int64_t* storage, uint64_t storage_dims, void* data) {
  if (dims > MOST_DIMS || storage_dims > MOST_DIMS) return nullptr;
  auto* made = new Tensor{type, format, offset, int32_t(dims), int32_t(storage_dims), {}, {}, {}, data};
  int64_t dense = 1;
  for (uint64_t i = dims; i-- > 0; dense *= shape[i]) {
    made->shape[i] = shape[i];
    made->stride[i] = stride ? stride[i] : dense;
  }
  for (uint64_t i = 0; i < storage_dims; i++) made->storage[i] = storage[i];
  return made;
}
CANN Error aclDestroyTensor(const Tensor* tensor) { delete tensor; return OK; }
CANN Scalar* aclCreateScalar(void* value, int type) {
  auto* made = new Scalar{type, {}};
  memcpy(made->value, value, element_bytes(type));
  return made;
}
CANN Error aclDestroyScalar(const Scalar* scalar) { delete scalar; return OK; }
CANN Array* aclCreateIntArray(const int64_t* items, uint64_t n) { return array_of(items, n); }
CANN Array* aclCreateFloatArray(const float* items, uint64_t n) { return array_of(items, n); }
CANN Array* aclCreateBoolArray(const bool* items, uint64_t n) { return array_of(items, n); }
CANN Array* aclCreateTensorList(const Tensor* const* items, uint64_t n) { return array_of(items, n); }
CANN Array* aclCreateScalarList(const Scalar* const* items, uint64_t n) { return array_of(items, n); }
CANN Error aclDestroyIntArray(const Array* array) { return release(array); }
CANN Error aclDestroyFloatArray(const Array* array) { return release(array); }
CANN Error aclDestroyBoolArray(const Array* array) { return release(array); }
CANN Error aclDestroyTensorList(const Array* array) {
  for (uint64_t i = 0; array && i < array->n; i++) delete static_cast<Tensor**>(array->items)[i];
  return release(array);
}
CANN Error aclDestroyScalarList(const Array* array) {
  for (uint64_t i = 0; array && i < array->n; i++) delete static_cast<Scalar**>(array->items)[i];
  return release(array);
}
CANN Error aclGetViewShape(const Tensor* tensor, int64_t** shape, uint64_t* n) {
  *n = tensor->dims;
  *shape = static_cast<int64_t*>(malloc(8 * (tensor->dims + 1)));
  memcpy(*shape, tensor->shape, 8 * tensor->dims);
  return OK;
}
ACCEPTED(aclSetAclOpExecutorRepeatable)
ACCEPTED(aclDestroyAclOpExecutor)

// Operators
constexpr Error NO_KERNEL = 561103;
using Prepare = int (*)(int, const uint64_t*, const double*, const uint64_t*);
using Execute = int (*)(int, uint64_t);
static Prepare prepare;
static Execute execute;
extern "C" const char* const hal_cann_names[];
extern "C" const int hal_cann_count;

CANN void hal_cann_serve(Prepare first, Execute second) { prepare = first; execute = second; }
CANN const char* hal_cann_name(int i) { return hal_cann_names[i]; }
CANN int hal_cann_operators() { return hal_cann_count; }

#define HIDDEN extern "C" __attribute__((visibility("hidden")))
HIDDEN int hal_cann_prepare(int i, const uint64_t* integers, const double* floats, const uint64_t* stack) {
  return prepare ? prepare(i, integers, floats, stack) : NO_KERNEL;
}
HIDDEN int hal_cann_execute(int i, uint64_t executor) { return execute ? execute(i, executor) : NO_KERNEL; }

// On chips without aclop (Ascend 950) a format cast asks for the storage first.
CANN Error aclnnNpuFormatCastCalculateSizeAndFormat(const Tensor* tensor, int format, int also, int64_t** shape,
                                                    uint64_t* n, int* actual) {
  int dims = tensor->dims;
  auto* out = static_cast<int64_t*>(malloc(8 * (dims + 2)));
  memcpy(out, tensor->shape, 8 * dims);
  *shape = out;
  *actual = format;
  *n = dims;
  if (format != FORMAT_FRACTAL_NZ || dims < 2) return OK;
  int64_t fraction = 32 / int64_t(element_bytes(also >= 0 ? also : tensor->type));
  int64_t rows = tensor->shape[dims - 2], columns = tensor->shape[dims - 1];
  out[dims - 2] = (columns + fraction - 1) / fraction;
  out[dims - 1] = (rows + 15) / 16;
  out[dims] = 16;
  out[dims + 1] = fraction;
  *n = dims + 2;
  return OK;
}
