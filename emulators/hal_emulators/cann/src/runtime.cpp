// libascendcl.so on host memory: devices, memory, streams and events. Every call is finished when it returns.
#include "abi.h"

#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

namespace {

Chip chip{"Ascend910B3", "9.0.0", 1, 24, 48, 4ull << 30};
thread_local int32_t current = -1;

struct Block { size_t bytes; int32_t device; };
std::mutex guard;
std::map<char*, Block> blocks;
std::map<int32_t, uint64_t> used;
std::atomic<uint64_t> to_host{0};
std::string message;  // why the last operator was refused

int32_t here() { return current < 0 ? 0 : current; }

Error allocate(void** out, size_t bytes) {
  std::lock_guard<std::mutex> lock(guard);
  if (used[here()] + bytes > chip.bytes || posix_memalign(out, 512, bytes ? bytes : 512)) return OUT_OF_MEMORY;
  memset(*out, 0xA5, bytes);  // what nobody wrote is visibly wrong
  blocks[static_cast<char*>(*out)] = {bytes, here()};
  used[here()] += bytes;
  return OK;
}

// The block an address lies in, or the end. Call with the guard held.
std::map<char*, Block>::iterator block_of(const void* at) {
  auto* address = static_cast<char*>(const_cast<void*>(at));
  auto found = blocks.upper_bound(address);
  if (found == blocks.begin()) return blocks.end();
  --found;
  return address < found->first + found->second.bytes ? found : blocks.end();
}

// Writes past a block's end are refused, as on a device.
Error copy(void* to, size_t room, const void* from, size_t bytes, int kind) {
  if (bytes > room) return INVALID;
  {
    std::lock_guard<std::mutex> lock(guard);
    auto block = block_of(to);
    if (block != blocks.end() && static_cast<char*>(to) + bytes > block->first + block->second.bytes) return INVALID;
  }
  if (kind == 2) to_host++;  // device to host
  memmove(to, from, bytes);
  return OK;
}

uint64_t nanoseconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000ull + now.tv_nsec;
}

struct Stream { int32_t id; };
struct Event { uint64_t recorded; };
std::atomic<int32_t> streams{1};

}  // namespace

// Ours: called by Python before and after.
CANN void hal_cann_configure(const Chip* wanted) {
  chip = *wanted;
  chip.soc = strdup(wanted->soc);
  chip.version = strdup(wanted->version);
}
CANN void hal_cann_say(const char* words) { message = words; }
CANN uint64_t hal_cann_copies_to_host() { return to_host; }

// Devices
ACCEPTED(aclInit)
ACCEPTED(aclFinalize)
ACCEPTED(aclrtResetDevice)
ACCEPTED(aclrtSetDeviceSatMode)
ACCEPTED(aclrtDeviceEnablePeerAccess)
CANN const char* aclrtGetSocName() { return chip.soc; }
CANN Error aclrtGetDeviceCount(uint32_t* n) { *n = chip.devices; return OK; }
CANN Error aclrtSetDevice(int32_t device) {
  if (device < 0 || device >= chip.devices) return NO_SUCH_DEVICE;
  current = device;
  return OK;
}
CANN Error aclrtGetDevice(int32_t* device) {
  if (current < 0) return NO_CONTEXT;
  *device = current;
  return OK;
}
CANN Error aclrtGetCurrentContext(void** context) {
  if (current < 0) return NO_CONTEXT;
  *context = reinterpret_cast<void*>(intptr_t{current} + 1);
  return OK;
}
CANN Error aclrtSetCurrentContext(void* context) {
  current = static_cast<int32_t>(reinterpret_cast<intptr_t>(context)) - 1;
  return OK;
}
CANN Error aclrtGetPrimaryCtxState(int32_t, uint32_t* flags, int32_t* active) {
  if (flags) *flags = 0;
  if (active) *active = 1;
  return OK;
}
CANN Error aclrtGetDeviceSatMode(int* mode) { *mode = 1; return OK; }  // infinities and NaN are kept
CANN Error aclrtDeviceCanAccessPeer(int32_t* can, int32_t, int32_t) { *can = 1; return OK; }
CANN Error aclrtGetDeviceInfo(uint32_t, int attribute, int64_t* value) {
  switch (attribute) {
    case 101: case 102: *value = chip.cube_cores; break;
    case 201: *value = chip.vector_cores; break;
    case 301: *value = static_cast<int64_t>(chip.bytes); break;
    case 302: *value = 192ll << 20; break;
    case 601: *value = 2201; break;
    default: *value = 0;
  }
  return OK;
}
CANN Error aclGetDeviceCapability(uint32_t, int, int64_t* value) { *value = chip.cube_cores; return OK; }
CANN Error aclrtGetLogicDevIdByUserDevId(int32_t user, int32_t* logic) { *logic = user; return OK; }
CANN Error aclrtDeviceGetBareTgid(int32_t* pid) { *pid = getpid(); return OK; }
CANN Error aclrtGetDeviceResLimit(int32_t, int kind, uint32_t* value) {
  *value = kind == 0 ? chip.cube_cores : chip.vector_cores;
  return OK;
}
CANN Error aclrtGetResInCurrentThread(int kind, uint32_t* value) { return aclrtGetDeviceResLimit(0, kind, value); }

// Memory
CANN Error aclrtGetMemInfo(int, size_t* free_bytes, size_t* total) {
  std::lock_guard<std::mutex> lock(guard);
  *total = chip.bytes;
  *free_bytes = chip.bytes - used[here()];
  return OK;
}
CANN Error aclrtMalloc(void** out, size_t bytes, int) { return allocate(out, bytes); }
CANN Error aclrtMallocAlign32(void** out, size_t bytes, int) { return allocate(out, bytes); }
CANN Error aclrtFree(void* at) {
  std::lock_guard<std::mutex> lock(guard);
  auto found = blocks.find(static_cast<char*>(at));
  if (found == blocks.end()) return INVALID;
  used[found->second.device] -= found->second.bytes;
  blocks.erase(found);
  free(at);
  return OK;
}
CANN Error aclrtMallocHost(void** out, size_t bytes) {
  return posix_memalign(out, 64, bytes ? bytes : 64) ? OUT_OF_MEMORY : OK;
}
CANN Error aclrtFreeHost(void* at) { free(at); return OK; }
CANN Error aclrtMemset(void* at, size_t room, int32_t value, size_t bytes) {
  if (bytes > room) return INVALID;
  memset(at, value, bytes);
  return OK;
}
CANN Error aclrtMemsetAsync(void* at, size_t room, int32_t value, size_t bytes, void*) {
  return aclrtMemset(at, room, value, bytes);
}
CANN Error aclrtMemcpy(void* to, size_t room, const void* from, size_t bytes, int kind) {
  return copy(to, room, from, bytes, kind);
}
CANN Error aclrtMemcpyAsync(void* to, size_t room, const void* from, size_t bytes, int kind, void*) {
  return copy(to, room, from, bytes, kind);
}
CANN Error aclrtMemcpyAsyncWithCondition(void* to, size_t room, const void* from, size_t bytes, int kind, void*) {
  return copy(to, room, from, bytes, kind);
}
struct PointerAttributes { uint32_t device; int32_t location; uint32_t page; uint32_t reserved[4]; };
CANN Error aclrtPointerGetAttributes(const void* at, PointerAttributes* out) {
  std::lock_guard<std::mutex> lock(guard);
  auto block = block_of(at);
  *out = {};
  out->location = block == blocks.end() ? 2 : 1;  // unregistered : device
  if (block != blocks.end()) out->device = block->second.device;
  return OK;
}

// Virtual memory, which expandable segments use
CANN Error aclrtReserveMemAddress(void** out, size_t bytes, size_t, void* wanted, uint64_t) {
  void* at = mmap(wanted, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) return OUT_OF_MEMORY;
  *out = at;
  std::lock_guard<std::mutex> lock(guard);
  blocks[static_cast<char*>(at)] = {bytes, here()};
  return OK;
}
CANN Error aclrtReleaseMemAddress(void* at) {
  std::lock_guard<std::mutex> lock(guard);
  auto found = blocks.find(static_cast<char*>(at));
  if (found == blocks.end()) return INVALID;
  munmap(at, found->second.bytes);
  blocks.erase(found);
  return OK;
}
CANN Error aclrtMallocPhysical(void** out, size_t bytes, const void*, uint64_t) {
  std::lock_guard<std::mutex> lock(guard);
  if (used[here()] + bytes > chip.bytes) return OUT_OF_MEMORY;
  used[here()] += bytes;
  *out = new Block{bytes, here()};
  return OK;
}
CANN Error aclrtFreePhysical(void* handle) {
  auto* block = static_cast<Block*>(handle);
  std::lock_guard<std::mutex> lock(guard);
  used[block->device] -= block->bytes;
  delete block;
  return OK;
}
ACCEPTED(aclrtMapMem)
ACCEPTED(aclrtUnmapMem)
REFUSED(aclrtMemExportToShareableHandle)
REFUSED(aclrtMemImportFromShareableHandle)
REFUSED(aclrtMemSetPidToShareableHandle)

// Streams and events
static Error new_stream(void** out) { *out = new Stream{streams++}; return OK; }
CANN Error aclrtCreateStream(void** out) { return new_stream(out); }
CANN Error aclrtCreateStreamWithConfig(void** out, uint32_t, uint32_t) { return new_stream(out); }
CANN Error aclrtDestroyStream(void* stream) { delete static_cast<Stream*>(stream); return OK; }
CANN Error aclrtDestroyStreamForce(void* stream) { return aclrtDestroyStream(stream); }
CANN Error aclrtStreamGetId(void* stream, int32_t* id) {
  *id = stream ? static_cast<Stream*>(stream)->id : 0;
  return OK;
}
CANN Error aclrtStreamQuery(void*, int* status) { *status = 0; return OK; }  // complete
ACCEPTED(aclrtSetStreamFailureMode)
ACCEPTED(aclrtSetStreamOverflowSwitch)
CANN Error aclrtGetStreamOverflowSwitch(void*, uint32_t* on) { *on = 0; return OK; }
ACCEPTED(aclrtSetStreamAttribute)
ACCEPTED(aclrtSynchronizeStream)
ACCEPTED(aclrtSynchronizeStreamWithTimeout)
ACCEPTED(aclrtSynchronizeDevice)
ACCEPTED(aclrtSynchronizeDeviceWithTimeout)
ACCEPTED(aclrtStreamWaitEvent)
static Error new_event(void** out) { *out = new Event{0}; return OK; }
CANN Error aclrtCreateEvent(void** out) { return new_event(out); }
CANN Error aclrtCreateEventWithFlag(void** out, uint32_t) { return new_event(out); }
CANN Error aclrtCreateEventExWithFlag(void** out, uint32_t) { return new_event(out); }
CANN Error aclrtDestroyEvent(void* event) { delete static_cast<Event*>(event); return OK; }
CANN Error aclrtRecordEvent(void* event, void*) { static_cast<Event*>(event)->recorded = nanoseconds(); return OK; }
ACCEPTED(aclrtResetEvent)
ACCEPTED(aclrtSynchronizeEvent)
CANN Error aclrtQueryEventStatus(void*, int* status) { *status = 1; return OK; }      // complete
CANN Error aclrtQueryEventWaitStatus(void*, int* status) { *status = 0; return OK; }  // complete
CANN Error aclrtEventElapsedTime(float* milliseconds, void* from, void* to) {
  *milliseconds = (static_cast<Event*>(to)->recorded - static_cast<Event*>(from)->recorded) / 1e6f;
  return OK;
}
CANN Error aclrtEventGetTimestamp(void* event, uint64_t* microseconds) {
  *microseconds = static_cast<Event*>(event)->recorded / 1000;
  return OK;
}
ACCEPTED(aclrtSubscribeReport)
ACCEPTED(aclrtUnSubscribeReport)
CANN Error aclrtLaunchCallback(void (*function)(void*), void* argument, int, void*) { function(argument); return OK; }
CANN Error aclrtLaunchHostFunc(void*, void (*function)(void*), void* argument) { function(argument); return OK; }
CANN Error aclrtProcessReport(int32_t) { return NOTHING_TO_REPORT; }

// Settings, versions, messages
ACCEPTED(aclrtSetOpExecuteTimeOut)
CANN Error aclrtSetOpExecuteTimeOutV2(uint64_t wanted, uint64_t* actual) { if (actual) *actual = wanted; return OK; }
ACCEPTED(aclrtSetOpWaitTimeout)
ACCEPTED(aclrtSetSysParamOpt)
ACCEPTED(aclrtCtxSetSysParamOpt)
CANN Error aclrtGetSysParamOpt(int, int64_t* value) { *value = 0; return OK; }
ACCEPTED(aclrtPeekAtLastError)
ACCEPTED(aclrtGetLastError)
CANN const char* aclGetRecentErrMsg() { return message.c_str(); }
CANN Error aclGetCannAttributeList(const int** list, size_t* n) {
  static const int known[] = {0, 1, 2};  // infinities and NaN, bfloat16, just-in-time compilation
  *list = known;
  *n = 3;
  return OK;
}
CANN Error aclGetCannAttribute(int attribute, int32_t* value) { *value = attribute != 2; return OK; }
ACCEPTED(aclSetCompileopt)
CANN Error aclGetCompileopt(int, char* value, size_t n) { if (n) *value = 0; return OK; }
CANN size_t aclGetCompileoptSize(int) { return 1; }
CANN Error aclsysGetCANNVersion(int, char* version) {  // five text fields: 128 + 4 * 64 + 128 bytes
  memset(version, 0, 512);
  snprintf(version, 128, "%s", chip.version);
  return OK;
}
CANN Error aclsysGetVersionStr(const char*, char* version) { strcpy(version, chip.version); return OK; }
CANN void aclAppLog(int, const char*, const char*, uint32_t, const char*, ...) {}
ACCEPTED(aclmdlInitDump)
ACCEPTED(aclmdlFinalizeDump)
ACCEPTED(aclmdlSetDump)
CANN Error aclmdlRICaptureGetInfo(void*, int* status, void** model) {
  *status = 0;  // not capturing
  if (model) *model = nullptr;
  return OK;
}
ACCEPTED(aclmdlRICaptureThreadExchangeMode)
REFUSED(aclrtBinaryLoadFromData)
REFUSED(aclrtBinaryGetFunction)
REFUSED(aclrtGetFunctionAddr)

// Profiler and the older runtime
CANN uint64_t MsprofGetHashId(const char*, size_t) { return 0; }
CANN uint64_t MsprofSysCycleTime() { return nanoseconds(); }
ACCEPTED(MsprofRegisterCallback)
ACCEPTED(MsprofReportAdditionalInfo)
ACCEPTED(MsprofReportApi)
ACCEPTED(MsprofReportCompactInfo)
REFUSED(rtDevBinaryRegister)
REFUSED(rtFunctionRegister)
REFUSED(rtGetC2cCtrlAddr)
REFUSED(rtKernelLaunch)
