// The k-th smallest of many words in a few linear passes, where pixels of one value are common.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

namespace wsfast::seeds {

// Radix selection over the range that the values span; `values` are overwritten. 0 <= rank < n.
template <class Loops>
uint32_t kth_smallest(uint32_t* values, int64_t n, int64_t rank) {
  constexpr int digit_bits = 11;
  constexpr int64_t few = 64;
  while (n > few) {
    uint32_t least, most;
    Loops::smallest_and_largest(values, n, least, most);
    if (least == most) return least;
    const int shift = std::max(0, static_cast<int>(std::bit_width(most - least)) - digit_bits);
    uint32_t counts[1 << digit_bits] = {};
    for (int64_t i = 0; i < n; ++i) ++counts[(values[i] - least) >> shift];
    uint32_t digit = 0;
    for (; rank >= counts[digit]; ++digit) rank -= counts[digit];
    if (shift == 0) return least + digit;
    int64_t kept = 0;
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t value = values[i];
      values[kept] = value;
      kept += (value - least) >> shift == digit;
    }
    n = kept;
  }
  std::nth_element(values, values + rank, values + n);
  return values[rank];
}

}  // namespace wsfast::seeds
