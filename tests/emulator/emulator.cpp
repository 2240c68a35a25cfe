// The threads of the emulator: one fiber per CUDA thread, and their schedule.
#include "emulator.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define UNDER_ASAN(...) __VA_ARGS__
#else
#define UNDER_ASAN(...)
#endif

namespace attnkernels::emulator {
namespace {

constexpr int kMaxThreads = 1024;
constexpr size_t kMaxShared = 227 << 10;
constexpr size_t kGuard = 4 << 10;
constexpr int kCanary = 0xa5;  // in every byte of a guard

// A piece of shared memory between two guards.
class Region {
 public:
  void resize(size_t bytes) {
    if (memory_ && bytes == bytes_) return;
    memory_.reset(new char[bytes + 2 * kGuard]);
    bytes_ = bytes;
    std::memset(memory_.get(), kCanary, bytes + 2 * kGuard);
    UNDER_ASAN(ASAN_POISON_MEMORY_REGION(memory_.get(), kGuard);
               ASAN_POISON_MEMORY_REGION(data() + bytes, kGuard);)
  }
  char* data() const { return memory_.get() + kGuard; }
  size_t bytes() const { return bytes_; }
  void clear() { std::memset(data(), kUnset, bytes_); }
  bool holds(const void* p, size_t bytes) const {
    const auto offset = reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(data());
    return offset <= bytes_ && bytes <= bytes_ - offset;
  }
  bool intact() const {
    UNDER_ASAN(return true;)  // it has seen every access
    static const std::vector<char> guard(kGuard, static_cast<char>(kCanary));
    return std::memcmp(memory_.get(), guard.data(), kGuard) == 0 &&
           std::memcmp(data() + bytes_, guard.data(), kGuard) == 0;
  }

 private:
  std::unique_ptr<char[]> memory_;  // from new, so at a multiple of 16
  size_t bytes_ = 0;
};

#if defined(__x86_64__) && !defined(__AVX512F__) && !defined(ATTNKERNELS_UCONTEXT)
using Context = void*;  // a stack pointer; the stack holds the return address and rbp

// swapcontext would ask the system for the signal mask, and a call would spoil the processor's
// prediction of returns: each costs more than everything else together.
[[gnu::always_inline]] inline void switch_context(Context* from, const Context* to) {
  __asm__ volatile(
      "leaq -128(%%rsp), %%rsp; pushq %%rbp; leaq 1f(%%rip), %%rax; pushq %%rax\n"
      "movq %%rsp, (%0); movq (%1), %%rsp; popq %%rax; jmp *%%rax\n"
      "1: popq %%rbp; leaq 128(%%rsp), %%rsp"
      : "+D"(from), "+S"(to)
      :
      : "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm0",
        "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
        "xmm12", "xmm13", "xmm14", "xmm15", "cc", "memory");
}
void make_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + bytes) - 2;
  top[0] = reinterpret_cast<void*>(entry);
  top[1] = nullptr;  // no caller
  context = top;
}
#else
using Context = ucontext_t;

void switch_context(Context* from, const Context* to) { swapcontext(from, to); }
void make_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = bytes;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
#endif

// A stack that is reused from block to block, with a guard region below it.
class Fiber {
 public:
  explicit Fiber(size_t index) : bytes_(kStack - index * 320 % 8192) {  // not all in one cache set
    void* memory = mmap(nullptr, kHole + kStack, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("attnkernels: no memory for a stack");
    mprotect(memory, kHole, PROT_NONE);
    stack_ = static_cast<char*>(memory) + kHole;
  }
  Fiber(const Fiber&) = delete;
  ~Fiber() {
    UNDER_ASAN(ASAN_UNPOISON_MEMORY_REGION(stack_, kStack);)  // of a thread that never returned
    munmap(stack_ - kHole, kHole + kStack);
  }

  void start(void (*entry)()) { make_context(own_, stack_, bytes_, entry); }

  [[gnu::always_inline]] void resume() {
    UNDER_ASAN(void* fake; __sanitizer_start_switch_fiber(&fake, stack_, bytes_);)
    switch_context(&caller_, &own_);
    UNDER_ASAN(__sanitizer_finish_switch_fiber(fake, nullptr, nullptr);)
  }
  void enter() {  // must be called first in a fiber
    UNDER_ASAN(__sanitizer_finish_switch_fiber(nullptr, &caller_stack_, &caller_bytes_);)
  }
  [[gnu::always_inline]] void suspend() {
    UNDER_ASAN(void* fake; __sanitizer_start_switch_fiber(&fake, caller_stack_, caller_bytes_);)
    switch_context(&own_, &caller_);
    UNDER_ASAN(__sanitizer_finish_switch_fiber(fake, &caller_stack_, &caller_bytes_);)
  }
  [[noreturn]] void leave() {
    UNDER_ASAN(__sanitizer_start_switch_fiber(nullptr, caller_stack_, caller_bytes_);)
    switch_context(&own_, &caller_);
    __builtin_unreachable();
  }

 private:
  static constexpr size_t kHole = 64 << 10;  // whole pages, whatever their size
  static constexpr size_t kStack = (UNDER_ASAN(2 *) 128) << 10;
  char* stack_;
  size_t bytes_;
  Context own_, caller_;
  UNDER_ASAN(const void* caller_stack_ = nullptr; size_t caller_bytes_ = 0;)
};

struct Copy {
  void* to;
  char bytes[16];
  int64_t group;
};

struct Thread {
  explicit Thread(size_t index) : fiber(index) {}
  bool meets(const Request& r) const { return request && request->meets(r); }
  std::string place() const { return request ? "is at " + request->place() : "has returned"; }

  Fiber fiber;
  Request* request = nullptr;  // the operation that it waits for
  bool returned = false;
  std::vector<Copy> copies;  // requested and not yet done
  int64_t groups = 0;        // of copies, ended by commit
};

struct Array {
  const void* place;
  Region region;
  int64_t block;  // that has it
};

using Order = std::array<uint8_t, kWarp>;

// A quarter ascending, a quarter descending, the others shuffled.
const std::array<Order, 16> kOrders = [] {
  std::array<Order, 16> orders;
  uint64_t random = 1;
  for (size_t k = 0; k < orders.size(); k++) {
    for (size_t t = 0; t < kWarp; t++) orders[k][t] = static_cast<uint8_t>(k % 4 == 1 ? 31 - t : t);
    for (size_t t = kWarp; k % 2 == 0 && t > 1; t--) {
      random = random * 6364136223846793005 + 1442695040888963407;
      std::swap(orders[k][t - 1], orders[k][(random >> 33) % t]);
    }
  }
  return orders;
}();

class Machine {
 public:
  void run(const Launch& launch) {
    if (stopped_) *this = Machine();  // an error may have left it unsound
    stopped_ = true;
    launch_ = launch;
    blockDim.x = static_cast<unsigned>(launch.threads);
    gridDim.x = static_cast<unsigned>(launch.blocks);
    dynamic_.resize(launch.shared);
    arrays_.clear();
    while (threads_.size() < blockDim.x)
      threads_.push_back(std::make_unique<Thread>(threads_.size()));
    // from both ends: a block that relies on an earlier one runs before it
    for (int64_t k = 0; k < launch.blocks; k++)
      run_block(k % 2 ? launch.blocks - 1 - k / 2 : k / 2);
    stopped_ = false;
  }

  Thread& current() { return *threads_[threadIdx.x]; }
  void* dynamic() const { return dynamic_.data(); }

  void wait(Request& request) {
    if (!request.block && !(request.mask >> lane() & 1))
      fail(text("wrong lane mask: ", request.place(), " leaves out its own lane"));
    current().request = &request;
    current().fiber.suspend();
  }

  [[noreturn]] void fail(const std::string& what) {
    error_ = what;
    current().fiber.leave();
  }

  void* array(const void* place, size_t bytes) {
    size_t total = dynamic_.bytes() + bytes;
    Array* found = nullptr;
    for (Array& array : arrays_) {
      if (array.place == place) found = &array;
      if (here(array)) total += array.region.bytes();
    }
    if (found && here(*found)) return found->region.data();
    if (total > kMaxShared) fail(text("more than ", kMaxShared, " bytes of shared memory"));
    if (!found) found = &arrays_.emplace_back(Array{place, {}, 0});
    found->block = blockIdx.x;
    found->region.resize(bytes);
    found->region.clear();
    return found->region.data();
  }

  bool is_shared(const void* p, size_t bytes) const {
    bool found = dynamic_.holds(p, bytes);
    for (const Array& array : arrays_) found |= here(array) && array.region.holds(p, bytes);
    return found;
  }

 private:
  static void enter();
  static bool here(const Array& array) { return array.block == blockIdx.x; }

  const Order& order() {
    random_ = random_ * 6364136223846793005 + 1442695040888963407;
    return kOrders[random_ >> 60];
  }

  [[noreturn]] void stop(const std::string& what) const {
    throw std::runtime_error(text("attnkernels: ", launch_.name, ": block ", blockIdx.x, what));
  }

  void run_block(int64_t block) {
    blockIdx.x = static_cast<unsigned>(block);
    random_ = static_cast<uint64_t>(block + 1) * 0x9E3779B97F4A7C15;
    dynamic_.clear();
    for (size_t t = 0; t < blockDim.x; t++) {
      threads_[t]->returned = false;
      threads_[t]->fiber.start(enter);
    }
    do {
      for (size_t warp : order())
        if (warp < blockDim.x / kWarp) run_warp(warp * kWarp);
    } while (pass_barrier());
    bool intact = dynamic_.intact();
    for (const Array& array : arrays_) intact &= array.region.intact();
    if (!intact) stop(": out of bounds of shared memory: some thread has written there");
  }

  // Run the threads from `first` on until each waits for other warps or has returned.
  void run_warp(size_t first) {
    for (unsigned ready = kEveryLane; ready; ready = meet(first))
      for (size_t l : order())
        if ((ready >> l & 1) && !threads_[first + l]->returned) resume(first + l);
  }

  [[gnu::always_inline]] void resume(size_t t) {
    threadIdx.x = static_cast<unsigned>(t);
    threads_[t]->fiber.resume();
    if (!error_.empty()) stop(text(", thread ", t, ": ", error_));
  }

  // Finish the operations that all their lanes wait for; return the lanes that can continue.
  unsigned meet(size_t first) {
    std::array<Request*, kWarp> requests{};
    unsigned waiting = 0, released = 0;
    for (size_t l = 0; l < kWarp; l++) {
      requests[l] = threads_[first + l]->request;
      if (requests[l] && !requests[l]->block) waiting |= 1u << l;
    }
    for (unsigned left = waiting; left; left &= (left - 1) & ~released) {
      const Request& r = *requests[std::countr_zero(left)];
      std::array<Request*, kWarp> group{};
      unsigned met = 0;
      for (size_t l = 0; l < kWarp; l++)
        if ((r.mask & left) >> l & 1 && r.meets(*requests[l])) {
          group[l] = requests[l];
          met |= 1u << l;
        }
      if (met != r.mask) continue;
      for (size_t l = 0; l < kWarp; l++)
        if (group[l]) threads_[first + l]->request = nullptr;
      released |= met;
      r.finish(group);
    }
    if (waiting && !released) explain(first, std::countr_zero(waiting));
    return released;
  }

  // Return the reason why lane l would wait forever.
  [[noreturn]] void explain(size_t first, size_t l) const {
    const Request& r = *threads_[first + l]->request;
    size_t other = 0;
    while (!(r.mask >> other & 1) || threads_[first + other]->meets(r)) other++;
    const Thread& thread = *threads_[first + other];
    const bool barrier = thread.request && thread.request->block;
    stop(text(", thread ", first + l, barrier ? ": divergent barrier or" : ":",
              " wrong lane mask: ", r.place(), " waits for lane ", other, ", which ",
              thread.place()));
  }

  // Return true if there was a barrier to pass; all threads have reached it or have returned.
  bool pass_barrier() {
    std::array<Request*, kMaxThreads> requests;
    size_t some = blockDim.x;
    for (size_t t = 0; t < blockDim.x; t++)
      if ((requests[t] = threads_[t]->request)) some = t;
    if (some == blockDim.x) return false;
    const Request& r = *requests[some];
    for (size_t t = 0; t < blockDim.x; t++)
      if (!threads_[t]->meets(r))
        stop(text(", thread ", some, ": divergent barrier: ", r.place(), " waits for thread ", t,
                  ", which ", threads_[t]->place()));
    r.finish({requests.data(), blockDim.x});
    for (size_t t = 0; t < blockDim.x; t++) threads_[t]->request = nullptr;
    return true;
  }

  Launch launch_{};
  std::vector<std::unique_ptr<Thread>> threads_;
  Region dynamic_;
  std::vector<Array> arrays_;
  uint64_t random_ = 0;
  bool stopped_ = false;  // the last launch, by an error
  std::string error_;
};

Machine machine;

void Machine::enter() {
  Thread& thread = machine.current();
  thread.fiber.enter();
  try {
    machine.launch_.body(machine.launch_.closure);
    if (!thread.copies.empty()) machine.error_ = "returned with asynchronous copies under way";
  } catch (const std::exception& e) {  // must not leave the fiber's stack
    machine.error_ = text("exception: ", e.what());
  }
  thread.returned = true;
  thread.fiber.leave();
}

}  // namespace

void wait(Request& request) { machine.wait(request); }
void* dynamic_shared() { return machine.dynamic(); }
void* static_shared(const void* place, size_t bytes) { return machine.array(place, bytes); }

void copy(void* shared, const void* global) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(global) % 16)
    machine.fail("async_copy16: an address is not a multiple of 16");
  if (!machine.is_shared(shared, 16)) machine.fail("async_copy16: out of bounds of shared memory");
  Thread& thread = machine.current();
  Copy copy{shared, {}, thread.groups};
  std::memcpy(copy.bytes, global, 16);
  std::memset(shared, kUnset, 16);
  thread.copies.push_back(copy);
}

void commit() { machine.current().groups++; }

void await(int younger) {
  Thread& thread = machine.current();
  std::erase_if(thread.copies, [&](const Copy& copy) {
    const bool done = copy.group < thread.groups - younger;
    if (done) std::memcpy(copy.to, copy.bytes, 16);
    return done;
  });
}

void run(const Launch& launch) {
  const auto check = [&](bool good, const char* what, auto value) {
    if (!good) throw std::runtime_error(text("attnkernels: ", launch.name, ": ", what, value));
  };
  check(launch.blocks > 0 && launch.blocks < int64_t{1} << 31, "blocks: ", launch.blocks);
  check(launch.threads > 0 && launch.threads <= kMaxThreads && launch.threads % kWarp == 0,
        "threads of a block: ", launch.threads);
  check(launch.shared <= kMaxShared, "bytes of shared memory: ", launch.shared);
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  machine.run(launch);
}

namespace {
bool recording = false;
std::string recorded;
}  // namespace

void record(const char* name, int64_t blocks, int threads, size_t shared) {
  if (recording) recorded += text(name, " ", blocks, " ", threads, " ", shared, "\n");
}

}  // namespace attnkernels::emulator

// Return the launches since the last call, one a line: name, blocks, threads, bytes of dynamic
// shared memory. The first call begins to record them.
extern "C" __attribute__((visibility("default"))) const char* attnkernels_launches() {
  static std::string last;
  last = std::exchange(attnkernels::emulator::recorded, {});
  attnkernels::emulator::recording = true;
  return last.c_str();
}
