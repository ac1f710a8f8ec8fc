// The loops over pixels and runs of the boxes room, one copy per instruction set
// (core/foreach_simd.h). float32, float16 and bfloat16 rows run vectorised in float32, float64 rows
// as plain loops. No include guard.

#include "boxes_histogram.h"
#include "boxes_runs.h"

namespace wsfast::boxes::WS_SIMD {

struct Passes {
  using Labeler = WS_SIMD::RunLabeler;

  template <class T>
  static constexpr bool kVectorised = !std::is_same_v<T, double>;

  // Bit x % 64 of words[x / 64] says row[x] != 0.
  static void nonzero_bits(const uint8_t* row, int64_t n, uint64_t* words) {
    for_words(n, words, [&](int64_t x, int64_t count) {
      if (count == 64) return simd::WS_SIMD::nonzero_bytes(row + x);
      uint64_t word = 0;
      for (int64_t i = 0; i < count; ++i) word |= uint64_t{row[x + i] != 0} << i;
      return word;
    });
  }

  // Bit x % 64 of words[x / 64] says row[x] >= threshold. False if the row holds NaN.
  template <class T>
  static bool threshold_bits(const T* row, int64_t n, acc_t<T> threshold, uint64_t* words) {
    bool numbers = true;
    for_words(n, words, [&](int64_t x, int64_t count) {
      uint64_t word = 0, known = 0;
      if (kVectorised<T> && count == 64) {
        compare_64(row + x, threshold, word, known);
        numbers &= known == ~uint64_t{0};
        return word;
      }
      for (int64_t i = 0; i < count; ++i) {
        const acc_t<T> value = to_acc(row[x + i]);
        word |= uint64_t{value >= threshold} << i;
        numbers &= value == value;
      }
      return word;
    });
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

  // Adds the levels of n < 2^32 values to the histogram. False if one is NaN.
  template <class T>
  static bool count_levels(const T* values, int64_t n, uint32_t* histogram) {
    return n < kManyPixels ? count_by<LevelTables>(values, n, histogram)
                           : count_by<LevelPairs>(values, n, histogram);
  }

 private:
  // words[w] is word_at(64 w, 64). The last word of a longer row is read as the row's last 64
  // pixels, so that it needs no loop over single pixels.
  template <class WordAt>
  static void for_words(int64_t n, uint64_t* words, const WordAt& word_at) {
    int64_t x = 0;
    for (; x + 64 <= n; x += 64) words[x / 64] = word_at(x, 64);
    if (x == n) return;
    words[x / 64] = n < 64 ? word_at(0, n) : word_at(n - 64, 64) >> (x + 64 - n);
  }

  template <class T>
  static void compare_64(const T* values, acc_t<T> threshold, uint64_t& above, uint64_t& known) {
    if constexpr (kVectorised<T>) {
      using Vec = simd::WS_SIMD::Vec;
      const Vec limit = Vec::set1(threshold);
      for (int i = 0; i < 64; i += Vec::lanes) {
        const Vec x = Vec::load(values + i);
        above |= uint64_t{Vec::bits(Vec::at_least(x, limit))} << i;
        known |= uint64_t{Vec::bits(Vec::at_least(x, x))} << i;
      }
    }
  }

  // Levels of 16 values. Not all bits of the result are set if one is NaN.
  template <class T>
  static unsigned find_sixteen(const T* values, uint8_t* levels) {
    using Vec = simd::WS_SIMD::Vec;
    const Vec scale = Vec::set1(255.0f), zero = Vec::set1(0.0f);
    unsigned known = ~0u;
    for (int i = 0; i < 16; i += Vec::lanes) {
      const Vec x = Vec::load(values + i);
      known &= Vec::bits(Vec::at_least(x, x)) | ~0u << Vec::lanes;
      Vec::min(Vec::max(x * scale, zero), scale).store_bytes(levels + i);  // NaN becomes 0
    }
    return known;
  }

  // Levels of n values, by a plain loop. False if one is NaN: in an int, or float64 stays scalar.
  template <class T>
  static bool find_each(const T* values, int64_t n, uint8_t* levels) {
    int unknown = 0;
    for (int64_t i = 0; i < n; ++i) {
      const acc_t<T> x = to_acc(values[i]);
      unknown |= x != x;
      levels[i] = static_cast<uint8_t>(level_of(x));
    }
    return unknown == 0;
  }

  // Levels of n values. False if one is NaN.
  template <class T>
  static bool find_levels(const T* values, int64_t n, uint8_t* levels) {
    unsigned known = ~0u;
    int64_t i = 0;
    if constexpr (kVectorised<T>) {
      for (; i + 16 <= n; i += 16) known &= find_sixteen(values + i, levels + i);
    }
    return find_each(values + i, n - i, levels + i) && known == ~0u;
  }

  template <class Counter, class T>
  static bool count_by(const T* values, int64_t n, uint32_t* histogram) {
    constexpr int64_t block = LevelPairs::kBlock, ahead = 4 * block;
    constexpr int64_t line = 64 / sizeof(T);
    alignas(64) uint8_t levels[block];
    Counter counter(histogram);
    bool numbers = true;
    for (int64_t i = 0; i < n; i += block) {
      const int64_t count = std::min(block, n - i);
      numbers &= find_levels(values + i, count, levels);
      const T* const later = values + i + ahead;  // behind the last block it is the next map
      counter.count(levels, count, [later](int64_t first) {
        for (int64_t j = 0; j < kGroup; j += line) __builtin_prefetch(later + first + j);
      });
    }
    counter.finish();
    return numbers;
  }
};

}  // namespace wsfast::boxes::WS_SIMD
