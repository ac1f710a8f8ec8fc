// The loops over pixels and runs of the boxes room, one copy per instruction set
// (core/foreach_simd.h). float32, float16 and bfloat16 rows run vectorised in float32, float64 rows
// as plain loops. No include guard.

#include "boxes_runs.h"

namespace wsfast::boxes::WS_SIMD {

struct Passes {
  using Labeler = WS_SIMD::RunLabeler;

  static constexpr int kTables = 4;  // histograms that take turns: equal neighbours do not wait

  template <class T>
  static constexpr bool kVectorised = !std::is_same_v<T, double>;

  // Bit x % 64 of words[x / 64] says row[x] != 0.
  static void nonzero_bits(const uint8_t* row, int64_t n, uint64_t* words) {
    int64_t x = 0;
    for (; x + 64 <= n; x += 64) words[x / 64] = simd::WS_SIMD::nonzero_bytes(row + x);
    if (x == n) return;
    uint8_t last[64] = {};
    std::memcpy(last, row + x, static_cast<size_t>(n - x));
    words[x / 64] = simd::WS_SIMD::nonzero_bytes(last);
  }

  // Bit x % 64 of words[x / 64] says row[x] >= threshold. False if the row holds NaN.
  template <class T>
  static bool threshold_bits(const T* row, int64_t n, acc_t<T> threshold, uint64_t* words) {
    bool numbers = true;
    int64_t x = 0;
    if constexpr (kVectorised<T>) {
      using Vec = simd::WS_SIMD::Vec;
      const Vec limit = Vec::set1(threshold);
      uint64_t known = ~uint64_t{0};
      for (; x + 64 <= n; x += 64) {
        uint64_t word = 0, compares = 0;
        for (int i = 0; i < 64; i += Vec::lanes) {
          const Vec values = Vec::load(row + x + i);
          word |= uint64_t{Vec::bits(Vec::at_least(values, limit))} << i;
          compares |= uint64_t{Vec::bits(Vec::at_least(values, values))} << i;
        }
        known &= compares;
        words[x / 64] = word;
      }
      numbers = known == ~uint64_t{0};
    }
    for (; x < n; x += 64) {
      const int64_t count = n - x < 64 ? n - x : 64;
      uint64_t word = 0;
      for (int64_t i = 0; i < count; ++i) {
        const acc_t<T> value = to_acc(row[x + i]);
        word |= uint64_t{value >= threshold} << i;
        numbers &= value == value;
      }
      words[x / 64] = word;
    }
    return numbers;
  }

  // The sum of n values in double, in 16 interleaved parts for every instruction set alike.
  template <class T>
  static double sum(const T* values, int64_t n) {
    constexpr int parts = 16;
    double total = 0;
    int64_t i = 0;
    if constexpr (kVectorised<T>) {
      using Vec = simd::WS_SIMD::Vec;
      if (n >= 2 * parts) {
        double part[parts] = {};
        for (; i + parts <= n; i += parts) {
          float x[parts];
          for (int j = 0; j < parts; j += Vec::lanes) Vec::load(values + i + j).store(x + j);
          for (int j = 0; j < parts; ++j) part[j] += static_cast<double>(x[j]);
        }
        for (int j = 0; j < parts; ++j) total += part[j];
      }
    }
    for (; i < n; ++i) total += static_cast<double>(to_acc(values[i]));
    return total;
  }

  // Adds the levels of n < 2^32 values to the tables. False if one is NaN.
  template <class T>
  static bool count_levels(const T* values, int64_t n, uint32_t (*tables)[kLevels]) {
    bool numbers = true;
    int64_t i = 0;
    if constexpr (kVectorised<T>) {
      using Vec = simd::WS_SIMD::Vec;
      constexpr int step = 16;
      const Vec scale = Vec::set1(255.0f), zero = Vec::set1(0.0f);
      unsigned strange = 0;
      for (; i + step <= n; i += step) {
        float scaled[step];
        for (int j = 0; j < step; j += Vec::lanes) {
          const Vec x = Vec::load(values + i + j);
          strange |= Vec::bits(Vec::at_least(x, x)) ^ ((1u << Vec::lanes) - 1);
          Vec::min(Vec::max(x * scale, zero), scale).store(scaled + j);  // NaN becomes 0
        }
        uint8_t level[step];
        for (int j = 0; j < step; ++j) level[j] = static_cast<uint8_t>(static_cast<int>(scaled[j]));
        for (int j = 0; j < step; ++j) ++tables[j % kTables][level[j]];
      }
      numbers = strange == 0;
    }
    for (; i < n; ++i) {
      const acc_t<T> x = to_acc(values[i]);
      numbers &= x == x;
      ++tables[i % kTables][level_of(x)];
    }
    return numbers;
  }
};

}  // namespace wsfast::boxes::WS_SIMD
