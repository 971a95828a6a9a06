// libhccl.so between processes of one host, over POSIX shared memory. Every call is finished when it returns.
#include "abi.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <vector>

namespace {

constexpr Error NO_MEMORY = 3, NOT_SUPPORTED = 5, SYSCALL = 8, TIMEOUT = 9;
constexpr size_t SLOT = 8u << 20, CELL = 1u << 20, HEAD = 4096;
constexpr int SECONDS = 120;

struct Head { std::atomic<uint32_t> arrived, round; };
struct Pair { std::atomic<uint64_t> sent, taken; };
struct Communicator {
  Head* head;
  Pair* pairs;
  char *slots, *cells;
  uint32_t size, rank;
  size_t bytes;
  char name[128];

  char* slot(uint32_t of) const { return slots + size_t(of) * SLOT; }
};

size_t bytes_of(int type) {
  switch (type) {
    case 0: case 7: case 14: case 15: case 16: case 17: return 1;
    case 1: case 3: case 8: case 11: return 2;
    case 2: case 4: case 9: return 4;
    case 12: return 16;
    default: return 8;
  }
}

template <class Done>
Error wait(Done done) {
  for (time_t begin = time(nullptr); !done(); sched_yield())
    if (time(nullptr) - begin > SECONDS) return TIMEOUT;
  return OK;
}

Error barrier(Communicator* c) {
  uint32_t round = c->head->round;
  if (c->head->arrived.fetch_add(1) + 1 == c->size) {
    c->head->arrived = 0;
    c->head->round++;
    return OK;
  }
  return wait([&] { return c->head->round != round; });
}

struct Bfloat {
  uint16_t bits;
  operator float() const { uint32_t wide = uint32_t(bits) << 16; float out; memcpy(&out, &wide, 4); return out; }
  Bfloat(float from) {
    uint32_t wide;
    memcpy(&wide, &from, 4);
    bits = (wide & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
  }
};

template <class T>
void reduce_as(void* into, const void* from, size_t n, int how) {
  auto *a = static_cast<T*>(into);
  auto *b = static_cast<const T*>(from);
  for (size_t i = 0; i < n; i++) switch (how) {
      case 0: a[i] = a[i] + b[i]; break;
      case 1: a[i] = a[i] * b[i]; break;
      case 2: a[i] = a[i] > b[i] ? a[i] : b[i]; break;
      default: a[i] = a[i] < b[i] ? a[i] : b[i];
    }
}

Error reduce(void* into, const void* from, size_t n, int type, int how) {
  switch (type) {
    case 0: reduce_as<int8_t>(into, from, n, how); return OK;
    case 1: reduce_as<int16_t>(into, from, n, how); return OK;
    case 2: reduce_as<int32_t>(into, from, n, how); return OK;
    case 3: reduce_as<_Float16>(into, from, n, how); return OK;
    case 4: reduce_as<float>(into, from, n, how); return OK;
    case 5: reduce_as<int64_t>(into, from, n, how); return OK;
    case 7: reduce_as<uint8_t>(into, from, n, how); return OK;
    case 10: reduce_as<double>(into, from, n, how); return OK;
    case 11: reduce_as<Bfloat>(into, from, n, how); return OK;
    default: return NOT_SUPPORTED;
  }
}

// Operators that compute and communicate know a communicator by its name.
std::map<std::string, Communicator*>& named() {
  static std::map<std::string, Communicator*> all;
  return all;
}

Error join(uint32_t size, const char* name, uint32_t rank, const char* wanted, void** out) {
  auto* c = new Communicator{};
  c->size = size;
  c->rank = rank;
  size_t pairs = (sizeof(Pair) * size * size + 4095) & ~size_t(4095);
  c->bytes = HEAD + pairs + size * SLOT + size_t(size) * size * CELL;
  int file = shm_open(name, O_RDWR | O_CREAT, 0600);
  if (file < 0 || ftruncate(file, c->bytes)) return SYSCALL;
  void* at = mmap(nullptr, c->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
  close(file);
  if (at == MAP_FAILED) return NO_MEMORY;
  c->head = static_cast<Head*>(at);
  c->pairs = reinterpret_cast<Pair*>(static_cast<char*>(at) + HEAD);
  c->slots = static_cast<char*>(at) + HEAD + pairs;
  c->cells = c->slots + size * SLOT;
  snprintf(c->name, sizeof c->name, "%s", wanted && *wanted ? wanted : name + 1);
  *out = named()[c->name] = c;
  Error error = barrier(c);
  if (!rank) shm_unlink(name);  // everybody has it mapped
  return error;
}

// One piece after the other through everybody's slots. `read(begin, n)` sees the slots filled by `write(begin, n)`.
template <class Write, class Read>
Error pieces(Communicator* c, size_t bytes, size_t room, Write write, Read read) {
  size_t begin = 0;
  do {
    size_t n = std::min(room, bytes - begin);
    write(begin, n);
    if (Error error = barrier(c)) return error;
    if (Error error = read(begin, n)) return error;
    if (Error error = barrier(c)) return error;
    begin += n;
  } while (begin < bytes);
  return OK;
}

// Rows `counts[to]` elements from `starts[to]` of `in` to every rank; `size` bytes an element on either side.
Error exchange(Communicator* c, const char* in, const uint64_t* counts, const uint64_t* starts, size_t size, char* out,
               const uint64_t* got, const uint64_t* places, size_t out_size) {
  size_t room = SLOT / c->size / 64 * 64;
  uint64_t longest = 0;
  for (uint32_t to = 0; to < c->size; to++) longest = std::max<uint64_t>(longest, counts[to] * size);
  memcpy(c->slot(c->rank), &longest, 8);
  if (Error error = barrier(c)) return error;
  for (uint32_t from = 0; from < c->size; from++) {
    uint64_t theirs;
    memcpy(&theirs, c->slot(from), 8);
    longest = std::max(longest, theirs);
  }
  if (Error error = barrier(c)) return error;
  return pieces(c, longest, room,
    [&](size_t begin, size_t) {
      for (uint32_t to = 0; to < c->size; to++) {
        uint64_t all = counts[to] * size;
        if (begin < all) memcpy(c->slot(c->rank) + to * room, in + starts[to] * size + begin, std::min(room, all - begin));
      }
    },
    [&](size_t begin, size_t) {
      for (uint32_t from = 0; from < c->size; from++) {
        uint64_t all = got[from] * out_size;
        if (begin < all)
          memcpy(out + places[from] * out_size + begin, c->slot(from) + c->rank * room, std::min(room, all - begin));
      }
      return OK;
    });
}

Error send(Communicator* c, const char* from, size_t bytes, uint32_t to) {
  Pair& pair = c->pairs[c->rank * c->size + to];
  char* cell = c->cells + (size_t(c->rank) * c->size + to) * CELL;
  size_t begin = 0;
  do {
    if (Error error = wait([&] { return pair.sent == pair.taken; })) return error;
    memcpy(cell, from + begin, std::min(CELL, bytes - begin));
    pair.sent++;
    begin += CELL;
  } while (begin < bytes);
  return OK;
}

Error receive(Communicator* c, char* to, size_t bytes, uint32_t from) {
  Pair& pair = c->pairs[from * c->size + c->rank];
  char* cell = c->cells + (size_t(from) * c->size + c->rank) * CELL;
  size_t begin = 0;
  do {
    if (Error error = wait([&] { return pair.sent != pair.taken; })) return error;
    memcpy(to + begin, cell, std::min(CELL, bytes - begin));
    pair.taken++;
    begin += CELL;
  } while (begin < bytes);
  return OK;
}

Communicator* of(void* handle) { return static_cast<Communicator*>(handle); }

}  // namespace

CANN Error HcclGetRootInfo(char* out) {
  static int made;
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  memset(out, 0, 4108);
  snprintf(out, 128, "/hal-hccl-%d-%d-%ld", getpid(), made++, now.tv_nsec);
  return OK;
}
CANN Error HcclCommInitRootInfo(uint32_t size, const char* root, uint32_t rank, void** out) {
  return join(size, root, rank, nullptr, out);
}
constexpr size_t CONFIG_NAME = 32;  // behind 24 reserved bytes and two 32-bit settings
CANN Error HcclCommInitRootInfoConfig(uint32_t size, const char* root, uint32_t rank, const char* config, void** out) {
  return join(size, root, rank, config ? config + CONFIG_NAME : nullptr, out);
}
CANN void* hal_cann_communicator(const char* name) {
  auto found = named().find(name);
  return found == named().end() ? nullptr : found->second;
}
CANN Error HcclCommDestroy(void* comm) {
  named().erase(of(comm)->name);
  munmap(of(comm)->head, of(comm)->bytes);
  delete of(comm);
  return OK;
}
CANN Error HcclGetCommName(void* comm, char* out) { strcpy(out, of(comm)->name); return OK; }
CANN Error HcclGetRankSize(void* comm, uint32_t* out) { *out = of(comm)->size; return OK; }
CANN Error HcclGetRankId(void* comm, uint32_t* out) { *out = of(comm)->rank; return OK; }
CANN uint32_t HcclGetCommConfigCapability() { return 3; }
CANN Error HcclGetCommAsyncError(void*, int* out) { *out = OK; return OK; }
CANN const char* HcclGetErrorString(int) { return "the emulated HCCL refused the call"; }
ACCEPTED(HcclSetConfig)
CANN Error HcclGetConfig(int, int32_t* out) { *out = 0; return OK; }
ACCEPTED(HcclGroupStart)
ACCEPTED(HcclGroupEnd)

CANN Error HcclBarrier(void* comm, void*) { return barrier(of(comm)); }
CANN Error HcclAllReduce(void* in, void* out, uint64_t n, int type, int how, void* comm, void*) {
  auto* c = of(comm);
  size_t size = bytes_of(type);
  return pieces(c, n * size, SLOT,
    [&](size_t begin, size_t bytes) { memcpy(c->slot(c->rank), static_cast<char*>(in) + begin, bytes); },
    [&](size_t begin, size_t bytes) {
      char* at = static_cast<char*>(out) + begin;
      memcpy(at, c->slot(0), bytes);
      for (uint32_t from = 1; from < c->size; from++)
        if (Error error = reduce(at, c->slot(from), bytes / size, type, how)) return error;
      return OK;
    });
}
CANN Error HcclReduce(void* in, void* out, uint64_t n, int type, int how, uint32_t root, void* comm, void* stream) {
  if (of(comm)->rank == root) return HcclAllReduce(in, out, n, type, how, comm, stream);
  std::vector<char> unused(n * bytes_of(type));
  return HcclAllReduce(in, unused.data(), n, type, how, comm, stream);
}
CANN Error HcclBroadcast(void* buffer, uint64_t n, int type, uint32_t root, void* comm, void*) {
  auto* c = of(comm);
  return pieces(c, n * bytes_of(type), SLOT,
    [&](size_t begin, size_t bytes) {
      if (c->rank == root) memcpy(c->slot(root), static_cast<char*>(buffer) + begin, bytes);
    },
    [&](size_t begin, size_t bytes) { memcpy(static_cast<char*>(buffer) + begin, c->slot(root), bytes); return OK; });
}
CANN Error HcclAllGather(void* in, void* out, uint64_t n, int type, void* comm, void*) {
  auto* c = of(comm);
  size_t all = n * bytes_of(type);
  return pieces(c, all, SLOT,
    [&](size_t begin, size_t bytes) { memcpy(c->slot(c->rank), static_cast<char*>(in) + begin, bytes); },
    [&](size_t begin, size_t bytes) {
      for (uint32_t from = 0; from < c->size; from++)
        memcpy(static_cast<char*>(out) + from * all + begin, c->slot(from), bytes);
      return OK;
    });
}
CANN Error HcclReduceScatter(void* in, void* out, uint64_t n, int type, int how, void* comm, void* stream) {
  auto* c = of(comm);
  size_t mine = n * bytes_of(type);
  std::vector<char> all(mine * c->size);
  Error error = HcclAllReduce(in, all.data(), n * c->size, type, how, comm, stream);
  memcpy(out, all.data() + c->rank * mine, mine);
  return error;
}
CANN Error HcclScatter(void* in, void* out, uint64_t n, int type, uint32_t root, void* comm, void* stream) {
  auto* c = of(comm);
  size_t mine = n * bytes_of(type);
  std::vector<char> all(mine * c->size);
  if (c->rank == root) memcpy(all.data(), in, all.size());
  Error error = HcclBroadcast(all.data(), n * c->size, type, root, comm, stream);
  memcpy(out, all.data() + c->rank * mine, mine);
  return error;
}
CANN Error HcclSend(void* from, uint64_t n, int type, uint32_t to, void* comm, void*) {
  return send(of(comm), static_cast<char*>(from), n * bytes_of(type), to);
}
CANN Error HcclRecv(void* to, uint64_t n, int type, uint32_t from, void* comm, void*) {
  return receive(of(comm), static_cast<char*>(to), n * bytes_of(type), from);
}
CANN Error HcclAlltoAllV(const void* in, const uint64_t* counts, const uint64_t* starts, int type, void* out,
                         const uint64_t* got, const uint64_t* places, int out_type, void* comm, void*) {
  return exchange(of(comm), static_cast<const char*>(in), counts, starts, bytes_of(type), static_cast<char*>(out), got,
                  places, bytes_of(out_type));
}
CANN Error HcclAlltoAll(const void* in, uint64_t n, int type, void* out, uint64_t m, int out_type, void* comm, void* s) {
  uint32_t size = of(comm)->size;
  std::vector<uint64_t> counts(size, n), got(size, m), starts(size), places(size);
  for (uint32_t i = 0; i < size; i++) starts[i] = i * n, places[i] = i * m;
  return HcclAlltoAllV(in, counts.data(), starts.data(), type, out, got.data(), places.data(), out_type, comm, s);
}
CANN Error HcclAllGatherV(void* in, uint64_t n, void* out, const uint64_t* got, const uint64_t* places, int type,
                          void* comm, void* stream) {
  std::vector<uint64_t> counts(of(comm)->size, n), starts(of(comm)->size, 0);
  return HcclAlltoAllV(in, counts.data(), starts.data(), type, out, got, places, type, comm, stream);
}
struct Transfer { int32_t receives; void* buffer; uint64_t n; int32_t type; uint32_t peer; };
CANN Error HcclBatchSendRecv(Transfer* items, uint32_t n, void* comm, void*) {
  auto* c = of(comm);
  for (uint32_t i = 0; i < n; i++)
    if (!items[i].receives)
      if (Error error = send(c, static_cast<char*>(items[i].buffer), items[i].n * bytes_of(items[i].type), items[i].peer))
        return error;
  for (uint32_t i = 0; i < n; i++)
    if (items[i].receives)
      if (Error error = receive(c, static_cast<char*>(items[i].buffer), items[i].n * bytes_of(items[i].type), items[i].peer))
        return error;
  return OK;
}
