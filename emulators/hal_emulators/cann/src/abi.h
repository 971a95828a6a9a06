// The part of CANN's C interface that torch_npu 2.13.0 calls: our own declarations of documented names and numbers
// (CANN "AscendCL API reference"). Handles are opaque to the caller, so their contents are ours.
#pragma once
#include <cstddef>
#include <cstdint>

#define CANN extern "C" __attribute__((visibility("default")))

using Error = int;
constexpr Error OK = 0;
constexpr Error INVALID = 107000, NO_SUCH_DEVICE = 107001, NO_CONTEXT = 107002, UNSUPPORTED = 207000;
constexpr Error OUT_OF_MEMORY = 207001, NOTHING_TO_REPORT = 507012, FAILED = 500001;

constexpr int FORMAT_ND = 2, FORMAT_FRACTAL_NZ = 29;

// Bytes of one element of an aclDataType; 4-bit types count as one.
inline size_t element_bytes(int type) {
  switch (type) {
    case 2: case 4: case 12: case 29: case 34: case 35: case 36: case 37: case 40: case 41: return 1;
    case 1: case 6: case 7: case 27: return 2;
    case 9: case 10: case 11: case 16: return 8;
    case 17: return 16;
    default: return 4;
  }
}

// What Python chose before torch_npu was imported.
struct Chip {
  const char* soc;      // as aclrtGetSocName names it
  const char* version;  // of CANN
  int32_t devices;
  int32_t cube_cores, vector_cores;
  uint64_t bytes;       // memory of one device
};

// NOLINTNEXTLINE: a function that is accepted and does nothing here. C callers may pass any arguments.
#define ACCEPTED(name) CANN Error name() { return OK; }
#define REFUSED(name) CANN Error name() { return UNSUPPORTED; }
