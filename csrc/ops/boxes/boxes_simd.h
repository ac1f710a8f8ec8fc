// The passes over a map, one copy per instruction set (core/foreach_simd.h). No include guard.
// float32, float16 and bfloat16 rows run vectorised in float32; float64 rows run as plain loops.

namespace wsfast::boxes::WS_SIMD {

using simd::WS_SIMD::Vec;

struct Passes {
  static constexpr int kTables = 4;  // histograms that take turns

  // Bit i is lane i of the comparison.
  template <class Mask>
  static uint64_t mask_bits(Mask mask) {
    if constexpr (std::is_integral_v<Mask>) {
      return mask;
    } else {
      return static_cast<unsigned>(_mm256_movemask_ps(mask));
    }
  }

  // Bit x % 64 of words[x / 64] says row[x] >= threshold. False if the row holds NaN.
  template <class T>
  static bool threshold_row(const T* row, int64_t n, acc_t<T> threshold, uint64_t* words) {
    bool numbers = true;
    int64_t i = 0;
    if constexpr (!std::is_same_v<T, double>) {
      constexpr uint64_t full = (uint64_t{1} << Vec::lanes) - 1;
      const Vec limit = Vec::set1(threshold);
      uint64_t known = full;
      for (; i + 64 <= n; i += 64) {
        uint64_t word = 0;
        for (int j = 0; j < 64; j += Vec::lanes) {
          const Vec x = Vec::load(row + i + j);
          const uint64_t above = mask_bits(Vec::at_least(x, limit));
          known &= above | mask_bits(Vec::greater(limit, x));  // NaN is neither
          word |= above << j;
        }
        words[i / 64] = word;
      }
      numbers = known == full;
    }
    for (; i < n; i += 64) {
      const int64_t count = n - i < 64 ? n - i : 64;
      uint64_t word = 0;
      for (int64_t j = 0; j < count; ++j) {
        const acc_t<T> x = to_acc(row[i + j]);
        word |= static_cast<uint64_t>(x >= threshold) << j;
        numbers &= x == x;
      }
      words[i / 64] = word;
    }
    return numbers;
  }

  // The sum in double, in interleaved parts.
  template <class T>
  static double sum(const T* row, int64_t n) {
    double total = 0;
    int64_t i = 0;
    if constexpr (!std::is_same_v<T, double>) {
      constexpr int step = 16;
      if (n >= 2 * step) {
        double part[step] = {};
        for (; i + step <= n; i += step) {
          float value[step];
          for (int j = 0; j < step; j += Vec::lanes) Vec::load(row + i + j).store(value + j);
          for (int j = 0; j < step; ++j) part[j] += static_cast<double>(value[j]);
        }
        for (int j = 0; j < step; ++j) total += part[j];
      }
    }
    for (; i < n; ++i) total += static_cast<double>(to_acc(row[i]));
    return total;
  }

  // Counts the levels of a map in several tables, so that equal neighbours do not wait for each
  // other. False if the map holds NaN.
  template <class T>
  static bool count_levels(const T* map, int64_t n, uint32_t (*tables)[kLevels]) {
    bool numbers = true;
    int64_t i = 0;
    if constexpr (!std::is_same_v<T, double>) {
      constexpr uint64_t full = (uint64_t{1} << Vec::lanes) - 1;
      const Vec scale = Vec::set1(255.0f), zero = Vec::set1(0.0f);
      uint64_t known = full;
      for (; i + Vec::lanes <= n; i += Vec::lanes) {
        const Vec x = Vec::load(map + i);
        known &= mask_bits(Vec::at_least(x, x));
        float value[Vec::lanes];
        Vec::min(Vec::max(x * scale, zero), scale).store(value);
        int level[Vec::lanes];
        for (int j = 0; j < Vec::lanes; ++j) level[j] = static_cast<int>(value[j]);
        for (int j = 0; j < Vec::lanes; ++j) ++tables[j % kTables][level[j]];
      }
      numbers = known == full;
    }
    for (; i < n; ++i) {
      const acc_t<T> x = to_acc(map[i]);
      numbers &= x == x;
      ++tables[i % kTables][level_of(x)];
    }
    return numbers;
  }
};

}  // namespace wsfast::boxes::WS_SIMD
