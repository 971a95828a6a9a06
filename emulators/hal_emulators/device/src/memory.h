// Device memory: host memory with an owner, so that bytes are counted, limited and poisoned like a real card's.
#pragma once
#include <ATen/ATen.h>
#include <c10/core/Allocator.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace device {
using c10::Device;
using c10::DeviceIndex;
constexpr auto kType = c10::DeviceType::PrivateUse1;
constexpr int kMost = 16;
constexpr unsigned char kPoison = 0xFF; // NaN as a float, -1 as an integer

inline int count() {
  static const int n = [] {
    const char* words = std::getenv("EMULATED_DEVICES");
    return std::clamp(words ? std::atoi(words) : 2, 0, kMost);
  }();
  return n;
}

inline thread_local DeviceIndex current = 0;

inline void set_current(int64_t index) {
  TORCH_CHECK(index >= 0 && index < count(), "invalid device ordinal ", index, ": ", count(), " devices are here");
  current = static_cast<DeviceIndex>(index);
}

inline DeviceIndex index_of(Device device) { return device.index() < 0 ? current : device.index(); }

// Bytes in use, their peak, and how many allocations there were.
class Ledger {
 public:
  std::atomic<int64_t> used{0}, peak{0}, allocations{0}, limit{0}; // limit 0: none

  void take(int64_t bytes) {
    const int64_t most = limit, before = used;
    TORCH_CHECK_WITH(OutOfMemoryError, most == 0 || before + bytes <= most, "out of memory on the emulated device: tried to allocate ",
                     bytes, " bytes, ", before, " of ", most, " are in use");
    const int64_t now = used += bytes;
    ++allocations;
    for (int64_t seen = peak; now > seen && !peak.compare_exchange_weak(seen, now);) {
    }
  }
  void give(int64_t bytes) { used -= bytes; }
};
inline Ledger ledgers[kMost];

struct DeviceAllocator final : c10::Allocator {
  struct Block {
    void* bytes;
    int64_t size;
    int owner;
  };
  static void release(void* context) {
    auto* block = static_cast<Block*>(context);
    ledgers[block->owner].give(block->size);
    std::free(block->bytes);
    delete block;
  }
  static void nothing(void*) {}

  c10::DataPtr allocate(size_t size) override {
    const int owner = current;
    if (size == 0) return {nullptr, nullptr, &nothing, Device(kType, owner)};
    ledgers[owner].take(static_cast<int64_t>(size));
    void* bytes = nullptr;
    TORCH_CHECK(posix_memalign(&bytes, 512, size) == 0, "host allocation of ", size, " bytes failed");
    std::memset(bytes, kPoison, size);
    return {bytes, new Block{bytes, static_cast<int64_t>(size), owner}, &release, Device(kType, owner)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, std::size_t size) const override { std::memcpy(to, from, size); }
};
inline DeviceAllocator allocator;

// Pinned host memory is plain host memory that is remembered.
struct PinnedAllocator final : c10::Allocator {
  static std::mutex& lock() {
    static std::mutex mutex;
    return mutex;
  }
  static std::map<const char*, size_t>& blocks() {
    static std::map<const char*, size_t> known;
    return known;
  }
  static void release(void* bytes) {
    if (!bytes) return;
    std::lock_guard<std::mutex> guard(lock());
    blocks().erase(static_cast<char*>(bytes));
    std::free(bytes);
  }
  static bool holds(const void* pointer) {
    std::lock_guard<std::mutex> guard(lock());
    auto next = blocks().upper_bound(static_cast<const char*>(pointer));
    if (next == blocks().begin()) return false;
    --next;
    return static_cast<const char*>(pointer) < next->first + next->second;
  }
  c10::DataPtr allocate(size_t size) override {
    void* bytes = nullptr;
    if (size) TORCH_CHECK(posix_memalign(&bytes, 64, size) == 0, "host allocation of ", size, " bytes failed");
    if (bytes) {
      std::lock_guard<std::mutex> guard(lock());
      blocks()[static_cast<char*>(bytes)] = size;
    }
    return {bytes, bytes, &release, Device(c10::DeviceType::CPU)};
  }
  void copy_data(void* to, const void* from, std::size_t size) const override { std::memcpy(to, from, size); }
};
inline PinnedAllocator pinned;

inline void resize_storage(const c10::Storage& storage, size_t size) {
  c10::DeviceGuard guard(storage.device());
  auto bytes = allocator.allocate(size);
  if (const size_t kept = std::min(size, storage.nbytes())) std::memcpy(bytes.mutable_get(), storage.data(), kept);
  storage.set_data_ptr_noswap(std::move(bytes));
  storage.set_nbytes(size);
}
} // namespace device
