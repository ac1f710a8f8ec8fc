// A coroutine with a stack of its own that ASan knows about.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <new>
#include <utility>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define WS_ASAN(call) call
#else
#define WS_ASAN(call)
#endif

namespace wsfast::emulator {

// resume() runs the body from its start or from its last pause() until it pauses or ends. A body
// that ended starts anew with the next resume(), on the same stack.
class Fiber {
 public:
  using Body = std::function<void()>;

  explicit Fiber(Body body) : body_(std::move(body)) {
    void* memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<char*>(memory);
    mprotect(memory_, kGuardBytes, PROT_NONE);  // a stack overflow faults instead of corrupting
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack();
    context_.uc_stack.ss_size = kStackBytes;
    context_.uc_link = nullptr;
    const auto address = reinterpret_cast<uintptr_t>(this);
    makecontext(&context_, reinterpret_cast<void (*)()>(&Fiber::enter), 2,
                static_cast<unsigned>(address >> 32), static_cast<unsigned>(address));
    context_.uc_stack.ss_size = 0;  // or ASan's swapcontext would clear the whole stack's shadow
  }

  ~Fiber() {
    WS_ASAN(__asan_unpoison_memory_region(stack(), kStackBytes));
    munmap(memory_, kGuardBytes + kStackBytes);
  }

  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  void resume() {
    [[maybe_unused]] void* fake_stack = nullptr;
    WS_ASAN(__sanitizer_start_switch_fiber(&fake_stack, stack(), kStackBytes));
    swapcontext(&caller_, &context_);
    WS_ASAN(__sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr));
  }

  void pause() {
    WS_ASAN(__sanitizer_start_switch_fiber(&fake_stack_, caller_stack_, caller_stack_bytes_));
    swapcontext(&context_, &caller_);
    WS_ASAN(__sanitizer_finish_switch_fiber(fake_stack_, &caller_stack_, &caller_stack_bytes_));
  }

 private:
  static constexpr size_t kStackBytes = 128 * 1024;
  static constexpr size_t kGuardBytes = 64 * 1024;

  char* stack() const { return memory_ + kGuardBytes; }

  static void enter(unsigned high, unsigned low) {
    auto* self = reinterpret_cast<Fiber*>(static_cast<uintptr_t>(high) << 32 | low);
    WS_ASAN(__sanitizer_finish_switch_fiber(nullptr, &self->caller_stack_,
                                            &self->caller_stack_bytes_));
    for (;;) {
      self->body_();
      self->pause();
    }
  }

  Body body_;
  char* memory_ = nullptr;
  ucontext_t context_{};
  ucontext_t caller_{};
  [[maybe_unused]] void* fake_stack_ = nullptr;
  [[maybe_unused]] const void* caller_stack_ = nullptr;
  [[maybe_unused]] size_t caller_stack_bytes_ = 0;
};

}  // namespace wsfast::emulator
