// The older operator interface (aclop), of which torch_npu 2.13.0 needs "Identity": it changes the storage format.
#include "abi.h"

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

struct Description {
  int type;
  std::vector<int64_t> shape;
  int format;
  int storage_format = -1;
  std::vector<int64_t> storage;
};
struct Buffer { void* at; size_t bytes; };

CANN Description* aclCreateTensorDesc(int type, int n, const int64_t* shape, int format) {
  return new Description{type, {shape, shape + n}, format, -1, {}};
}
CANN void aclDestroyTensorDesc(const Description* d) { delete d; }
CANN int aclGetTensorDescType(const Description* d) { return d->type; }
CANN int aclGetTensorDescFormat(const Description* d) { return d->format; }
CANN size_t aclGetTensorDescNumDims(const Description* d) { return d->shape.size(); }
CANN Error aclGetTensorDescDimV2(const Description* d, size_t i, int64_t* out) { *out = d->shape[i]; return OK; }
CANN void aclSetTensorDescName(Description*, const char*) {}
CANN Error aclSetTensorFormat(Description* d, int format) { d->storage_format = format; return OK; }
ACCEPTED(aclSetTensorPlaceMent)
CANN Error aclSetTensorShape(Description* d, int n, const int64_t* shape) { d->storage.assign(shape, shape + n); return OK; }
CANN Buffer* aclCreateDataBuffer(void* at, size_t bytes) { return new Buffer{at, bytes}; }
CANN Error aclDestroyDataBuffer(const Buffer* buffer) { delete buffer; return OK; }

CANN void* aclopCreateAttr() { return new int(0); }
CANN void aclopDestroyAttr(const void* attributes) { delete static_cast<const int*>(attributes); }
ACCEPTED(aclopSetAttrBool)
ACCEPTED(aclopSetAttrDataType)
ACCEPTED(aclopSetAttrFloat)
ACCEPTED(aclopSetAttrInt)
ACCEPTED(aclopSetAttrListBool)
ACCEPTED(aclopSetAttrListFloat)
ACCEPTED(aclopSetAttrListInt)
ACCEPTED(aclopSetAttrListListInt)
ACCEPTED(aclopSetAttrString)

// [.., m, n] in rows <-> FRACTAL_NZ [.., n/c0, m/16, 16, c0], zeros where a fraction is not filled.
static Error reformat(const Description& from, const Buffer& in, const Description& to, Buffer& out) {
  bool packed = from.storage_format == FORMAT_FRACTAL_NZ, pack = to.storage_format == FORMAT_FRACTAL_NZ;
  if (packed == pack) {
    memmove(out.at, in.at, out.bytes < in.bytes ? out.bytes : in.bytes);
    return OK;
  }
  const auto& fractions = packed ? from.storage : to.storage;
  const auto& shape = packed ? to.shape : from.shape;
  size_t dims = fractions.size(), bytes = element_bytes(from.type);
  if (dims < 4 || shape.size() < 2) return FAILED;
  int64_t n1 = fractions[dims - 4], m1 = fractions[dims - 3], m0 = fractions[dims - 2], n0 = fractions[dims - 1];
  int64_t m = shape[shape.size() - 2], n = shape.back(), batch = 1;
  for (size_t i = 0; i + 2 < shape.size(); i++) batch *= shape[i];
  if (pack) memset(out.at, 0, out.bytes);
  char* dense = static_cast<char*>(pack ? in.at : out.at);
  char* fractal = static_cast<char*>(pack ? out.at : in.at);
  for (int64_t b = 0; b < batch; b++)
    for (int64_t i = 0; i < m; i++)
      for (int64_t j = 0; j < n; j++) {
        char* one = dense + bytes * ((b * m + i) * n + j);
        char* other = fractal + bytes * ((((b * n1 + j / n0) * m1 + i / m0) * m0 + i % m0) * n0 + j % n0);
        pack ? memcpy(other, one, bytes) : memcpy(one, other, bytes);
      }
  return OK;
}

static Error execute(const char* name, int inputs, const Description* const* from, const Buffer* const* in, int outputs,
                     const Description* const* to, Buffer* const* out) {
  if (!strcmp(name, "Identity") && inputs == 1 && outputs == 1) return reformat(*from[0], *in[0], *to[0], *out[0]);
  fprintf(stderr, "hal: the emulated CANN has no aclop %s\n", name);
  return FAILED;
}
CANN Error aclopCompileAndExecute(const char* name, int inputs, const Description* const* from, const Buffer* const* in,
                                  int outputs, const Description* const* to, Buffer* const* out) {
  return execute(name, inputs, from, in, outputs, to, out);
}
CANN Error aclopCompileAndExecuteV2(const char* name, int inputs, const Description* const* from, const Buffer* const* in,
                                    int outputs, const Description* const* to, Buffer* const* out) {
  return execute(name, inputs, from, in, outputs, to, out);
}
