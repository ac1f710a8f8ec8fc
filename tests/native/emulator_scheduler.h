// The CUDA emulator's engine: fibers, blocks, barriers and warps. See cuda_emulator.h.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <source_location>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "emulator_fiber.h"

namespace wsfast::emulator {

inline constexpr int kLanes = 32;
inline constexpr size_t kExchangeBytes = 16;
inline constexpr size_t kMaxSharedBytes = 227 * 1024;  // of sm_90
inline constexpr unsigned char kGarbage = 0xff;        // NaN in every float type, -1 in integers

struct Dim3 {
  unsigned x, y, z;
  constexpr Dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}

  uint64_t count() const { return uint64_t{x} * y * z; }
  Dim3 index(uint64_t linear) const {
    return {static_cast<unsigned>(linear % x), static_cast<unsigned>(linear / x % y),
            static_cast<unsigned>(linear / x / y)};
  }
  std::string text() const {
    return "(" + std::to_string(x) + "," + std::to_string(y) + "," + std::to_string(z) + ")";
  }
};

inline std::string describe(const char* name, const std::source_location& where) {
  return std::string("emulator: ") + name + " at " + where.file_name() + ":" +
         std::to_string(where.line());
}

enum class Order { forward, reverse, random };

inline Order order_named(const std::string& name) {
  if (name == "forward") return Order::forward;
  if (name == "reverse") return Order::reverse;
  if (name == "random") return Order::random;
  throw std::invalid_argument("emulator: order must be forward, reverse or random, got " + name);
}

enum class State { ready, at_barrier, at_warp, exited };

// One CUDA thread of the running block.
struct Thread {
  explicit Thread(Fiber::Body body) : fiber(std::move(body)) {}

  Fiber fiber;
  Dim3 index;
  State state = State::exited;
  const char* waits_for = "";
  std::source_location where;
  bool slot = false;
  alignas(16) unsigned char shown[2][kExchangeBytes];  // two: a fast lane may be one step ahead
};

class Scheduler {
 public:
  static Scheduler& instance() {
    static Scheduler scheduler;
    return scheduler;
  }

  void set_order(Order order, uint64_t seed) {
    order_ = order;
    random_.seed(seed);
  }

  void run(Dim3 grid, Dim3 block, size_t shared_bytes, const std::function<void()>& kernel) {
    const std::lock_guard lock(running_);  // gradients come from a thread of their own
    check_launch(grid, block, shared_bytes);
    grid_size_ = grid;
    block_size_ = block;
    kernel_ = &kernel;
    shared_ = std::make_unique<unsigned char[]>(shared_bytes);
    prepare_threads(block.count());
    try {
      for (const uint64_t index : arrange(grid.count())) {
        block_index_ = grid.index(index);
        std::memset(shared_.get(), kGarbage, shared_bytes);
        run_block();
      }
    } catch (...) {
      threads_.clear();  // their fibers stand in the middle of the failed kernel
      kernel_ = nullptr;
      throw;
    }
    kernel_ = nullptr;
  }

  // What kernels see.
  const Dim3& thread_index() const { return threads_[current_]->index; }
  const Dim3& block_index() const { return block_index_; }
  const Dim3& block_size() const { return block_size_; }
  const Dim3& grid_size() const { return grid_size_; }
  void* dynamic_shared() const { return shared_.get(); }
  int current_thread() const { return static_cast<int>(current_); }

  // Parks the current thread until all of its block or warp have come to the same place.
  void wait(State state, const char* name, const std::source_location& where) {
    Thread& thread = *threads_[current_];
    thread.waits_for = name;
    thread.where = where;
    thread.state = state;
    thread.fiber.pause();
  }

  // Lets other threads run in between.
  void yield() { threads_[current_]->fiber.pause(); }
  void maybe_yield() {
    if (order_ == Order::random && random_() % 8 == 0) yield();
  }

  // Publishes a value of the current thread; returns the slot in which its warp finds it.
  int show(const void* value, size_t bytes) {
    Thread& thread = *threads_[current_];
    thread.slot = !thread.slot;
    std::memcpy(thread.shown[thread.slot], value, bytes);
    return thread.slot;
  }
  const void* shown(int thread, int slot) const {
    return threads_[static_cast<size_t>(thread)]->shown[slot];
  }

 private:
  Scheduler() {
    const char* order = std::getenv("WSFAST_EMULATOR_ORDER");
    if (order != nullptr) order_ = order_named(order);
  }

  void check_launch(Dim3 grid, Dim3 block, size_t shared_bytes) const {
    if (kernel_ != nullptr) throw std::runtime_error("emulator: a kernel launched a kernel");
    if (grid.count() == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
      throw std::runtime_error("emulator: invalid grid " + grid.text());
    }
    if (block.count() == 0 || block.count() > 1024 || block.z > 64) {
      throw std::runtime_error("emulator: invalid block " + block.text());
    }
    if (shared_bytes > kMaxSharedBytes) {
      throw std::runtime_error("emulator: " + std::to_string(shared_bytes) +
                               " bytes of dynamic shared memory exceed an H100's limit");
    }
  }

  void prepare_threads(uint64_t count) {
    while (threads_.size() < count) {
      threads_.push_back(std::make_unique<Thread>([this] { run_thread(); }));
    }
    count_ = count;
    for (uint64_t i = 0; i < count; ++i) threads_[i]->index = block_size_.index(i);
  }

  void run_thread() {
    try {
      (*kernel_)();
    } catch (...) {
      failure_ = std::current_exception();
    }
    threads_[current_]->state = State::exited;
  }

  std::vector<uint64_t> arrange(uint64_t count) {
    std::vector<uint64_t> indices(count);
    std::iota(indices.begin(), indices.end(), uint64_t{0});
    if (order_ == Order::reverse) std::reverse(indices.begin(), indices.end());
    if (order_ == Order::random) std::shuffle(indices.begin(), indices.end(), random_);
    return indices;
  }

  void run_block() {
    constexpr int most_idle_rounds = 20000;
    for (uint64_t i = 0; i < count_; ++i) threads_[i]->state = State::ready;
    std::vector<uint64_t> turns = arrange(count_);
    int idle_rounds = 0;
    for (;;) {
      const bool moved = run_ready(turns);
      const bool released = release_warps();
      idle_rounds = moved || released ? 0 : idle_rounds + 1;
      if (idle_rounds > most_idle_rounds) {
        throw std::runtime_error("emulator: threads of block " + block_index_.text() +
                                 " wait for each other forever");
      }
      if (count_in(State::ready) > 0) continue;
      if (count_in(State::exited) == count_) return;
      release_barrier();
    }
  }

  // Resumes every ready thread once; in random order some wait for another round, so that warps
  // drift apart. True if one of them came to a synchronisation point or to its end.
  bool run_ready(std::vector<uint64_t>& turns) {
    if (order_ == Order::random) std::shuffle(turns.begin(), turns.end(), random_);
    bool moved = false;
    for (const uint64_t turn : turns) {
      Thread& thread = *threads_[turn];
      if (thread.state != State::ready) continue;
      if (order_ == Order::random && random_() % 4 == 0) continue;
      current_ = turn;
      thread.fiber.resume();
      if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
      moved = moved || thread.state != State::ready;
    }
    return moved;
  }

  uint64_t count_in(State state) const {
    uint64_t count = 0;
    for (uint64_t i = 0; i < count_; ++i) count += threads_[i]->state == state;
    return count;
  }

  // Frees the warps whose lanes all wait at one warp function. True if there was one.
  bool release_warps() {
    bool released = false;
    for (uint64_t first = 0; first < count_; first += kLanes) {
      const uint64_t end = std::min(first + kLanes, count_);
      uint64_t ready = 0;
      const Thread* waiting = nullptr;
      for (uint64_t i = first; i < end; ++i) {
        ready += threads_[i]->state == State::ready;
        if (threads_[i]->state == State::at_warp) waiting = threads_[i].get();
      }
      if (ready > 0 || waiting == nullptr) continue;
      if (end - first < kLanes) {
        throw std::runtime_error(describe(waiting->waits_for, waiting->where) +
                                 ": the block's last warp is incomplete, block size " +
                                 block_size_.text());
      }
      release(first, end, *waiting, "warp");
      released = true;
    }
    return released;
  }

  void release_barrier() {
    uint64_t first = 0;
    while (threads_[first]->state != State::at_barrier) ++first;
    release(0, count_, *threads_[first], "block");
  }

  // Sets threads [first, end) going again if all of them wait where `waiting` does.
  void release(uint64_t first, uint64_t end, const Thread& waiting, const char* group) {
    for (uint64_t i = first; i < end; ++i) {
      const Thread& other = *threads_[i];
      if (other.state == waiting.state && same_place(other.where, waiting.where)) continue;
      const std::string instead = other.state == State::exited
                                      ? "has exited"
                                      : "waits in " + describe(other.waits_for, other.where);
      throw std::runtime_error(describe(waiting.waits_for, waiting.where) +
                               " is not reached by every thread of the " + group + ": in block " +
                               block_index_.text() + " thread " + waiting.index.text() +
                               " waits there, thread " + other.index.text() + " " + instead);
    }
    for (uint64_t i = first; i < end; ++i) threads_[i]->state = State::ready;
  }

  static bool same_place(const std::source_location& a, const std::source_location& b) {
    return a.line() == b.line() && a.column() == b.column() &&
           std::strcmp(a.file_name(), b.file_name()) == 0;
  }

  std::recursive_mutex running_;
  Order order_ = Order::forward;
  std::mt19937_64 random_{0};
  Dim3 grid_size_, block_size_, block_index_;
  const std::function<void()>* kernel_ = nullptr;
  std::unique_ptr<unsigned char[]> shared_;
  std::vector<std::unique_ptr<Thread>> threads_;  // the first count_ of them make the block
  uint64_t count_ = 0;
  uint64_t current_ = 0;
  std::exception_ptr failure_;
};

}  // namespace wsfast::emulator
