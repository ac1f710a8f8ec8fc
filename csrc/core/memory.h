// Hints about large allocations.
#pragma once

#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace wsfast {

// Advice to the system about the whole pages inside a range of memory. Without support nothing
// changes.
inline void advise_pages(void* data, int64_t bytes, uintptr_t page, int advice) {
#ifdef __linux__
  const auto address = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = (address + page - 1) / page * page;
  const uintptr_t end = (address + static_cast<uintptr_t>(bytes)) / page * page;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, advice);
#else
  (void)data, (void)bytes, (void)page, (void)advice;
#endif
}

// Asks for 2 MB pages behind a large output before its first write: page faults on 4 KB pages cost
// more than the kernels that fill it.
inline void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  advise_pages(data, bytes, uintptr_t{2} << 20, MADV_HUGEPAGE);
#endif
}

// To be called before large memory is freed that malloc might keep: its pages go back to the system
// at once, and their contents are lost.
inline void give_back_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#ifdef __linux__
  constexpr uintptr_t page = uintptr_t{64} << 10;  // the largest base page of any processor
  advise_pages(data, bytes, page, MADV_DONTNEED);
#endif
}

}  // namespace wsfast
