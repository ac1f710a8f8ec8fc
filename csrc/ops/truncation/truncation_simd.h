// The passes over a row, one copy per instruction set (core/foreach_simd.h). No include guard.
// float32, float16 and bfloat16 rows run vectorised in float32; float64 rows run as plain loops.

namespace wsfast::truncation::WS_SIMD {

using simd::WS_SIMD::Vec;

struct Passes {
  // Counts the positives of row and those below `lower`, and copies the values in [lower, upper]
  // to `out` (up to `capacity` of them; `inside` counts all). lower > 0.
  template <class T>
  static Collected collect(const T* row, int64_t n, float lower, float upper, float* out,
                           int64_t capacity) {
    const Vec zero = Vec::set1(0.0f), low = Vec::set1(lower), high = Vec::set1(upper);
    int64_t positives = 0, not_below = 0, inside = 0, written = 0, i = 0;
    for (; i + Vec::lanes <= n; i += Vec::lanes) {
      const Vec x = Vec::load(row + i);
      const auto positive = Vec::greater(x, zero);
      const auto reach = Vec::both(positive, Vec::at_least(x, low));
      const auto hit = Vec::both(reach, Vec::at_least(high, x));
      positives += Vec::count(positive);
      not_below += Vec::count(reach);
      if (written + Vec::lanes <= capacity) {
        const int hits = Vec::compress(out + written, hit, x);
        written += hits;
        inside += hits;
      } else {
        inside += Vec::count(hit);
      }
    }
    for (; i < n; ++i) {
      const float x = to_acc(row[i]);
      positives += x > 0.0f;
      not_below += x > 0.0f && x >= lower;
      if (x > 0.0f && x >= lower && x <= upper) {
        ++inside;
        if (written < capacity) out[written++] = x;
      }
    }
    return {positives, positives - not_below, inside, written};
  }

  static Collected collect(const double* row, int64_t n, double lower, double upper, double* out,
                           int64_t capacity) {
    Collected c{0, 0, 0, 0};
    for (int64_t i = 0; i < n; ++i) {
      const double x = row[i];
      c.positives += x > 0.0;
      c.below += x > 0.0 && x < lower;
      if (x > 0.0 && x >= lower && x <= upper) {
        ++c.inside;
        if (c.written < capacity) out[c.written++] = x;
      }
    }
    return c;
  }

  // out = row where row >= threshold, else 0. NaN is never kept.
  template <class T>
  static void keep_at_least(const T* row, int64_t n, float threshold, T* out, bool stream) {
    constexpr int64_t align = Vec::lanes * static_cast<int64_t>(sizeof(T));
    int64_t i = 0;
    if (stream) {
      for (; i < n && reinterpret_cast<uintptr_t>(out + i) % align != 0; ++i) {
        out[i] = to_acc(row[i]) >= threshold ? row[i] : from_acc<T>(0.0f);
      }
    }
    const Vec limit = Vec::set1(threshold);
    for (; i + Vec::lanes <= n; i += Vec::lanes) {
      const Vec x = Vec::load(row + i);
      const Vec kept = Vec::keep(Vec::at_least(x, limit), x);
      if (stream) {
        kept.stream(out + i);
      } else {
        kept.store(out + i);
      }
    }
    for (; i < n; ++i) out[i] = to_acc(row[i]) >= threshold ? row[i] : from_acc<T>(0.0f);
    if (stream) simd::WS_SIMD::stream_fence();
  }

  static void keep_at_least(const double* row, int64_t n, double threshold, double* out, bool) {
    for (int64_t i = 0; i < n; ++i) out[i] = row[i] >= threshold ? row[i] : 0.0;
  }

  // Sum of the kept values: lanes within a block, blocks in double, so the error stays flat.
  template <class T>
  static double sum_at_least(const T* row, int64_t n, float threshold) {
    constexpr int64_t block = 4096;
    const Vec limit = Vec::set1(threshold);
    double total = 0.0;
    int64_t i = 0;
    while (i + Vec::lanes <= n) {
      const int64_t end = n - i < block ? n : i + block;
      Vec sum = Vec::set1(0.0f);
      for (; i + Vec::lanes <= end; i += Vec::lanes) {
        const Vec x = Vec::load(row + i);
        sum = sum + Vec::keep(Vec::at_least(x, limit), x);
      }
      total += Vec::sum(sum);
    }
    for (; i < n; ++i) {
      const float x = to_acc(row[i]);
      total += x >= threshold ? x : 0.0f;
    }
    return total;
  }

  static double sum_at_least(const double* row, int64_t n, double threshold) {
    double total = 0.0;
    for (int64_t i = 0; i < n; ++i) total += row[i] >= threshold ? row[i] : 0.0;
    return total;
  }

  // sum += weight * values
  template <class T>
  static void add_scaled(const T* values, int64_t n, float weight, float* sum) {
    const Vec w = Vec::set1(weight);
    int64_t i = 0;
    for (; i + Vec::lanes <= n; i += Vec::lanes) {
      Vec::fma(w, Vec::load(values + i), Vec::load(sum + i)).store(sum + i);
    }
    for (; i < n; ++i) sum[i] += weight * to_acc(values[i]);
  }

  static void add_scaled(const double* values, int64_t n, double weight, double* sum) {
    for (int64_t i = 0; i < n; ++i) sum[i] += weight * values[i];
  }

  // sum += values * (grads where grads >= threshold)
  template <class T>
  static void add_kept_product(const T* values, const T* grads, int64_t n, float threshold,
                               float* sum) {
    const Vec limit = Vec::set1(threshold);
    int64_t i = 0;
    for (; i + Vec::lanes <= n; i += Vec::lanes) {
      const Vec g = Vec::load(grads + i);
      const Vec kept = Vec::keep(Vec::at_least(g, limit), g);
      Vec::fma(kept, Vec::load(values + i), Vec::load(sum + i)).store(sum + i);
    }
    for (; i < n; ++i) {
      const float g = to_acc(grads[i]);
      sum[i] += (g >= threshold ? g : 0.0f) * to_acc(values[i]);
    }
  }

  static void add_kept_product(const double* values, const double* grads, int64_t n,
                               double threshold, double* sum) {
    for (int64_t i = 0; i < n; ++i) {
      sum[i] += (grads[i] >= threshold ? grads[i] : 0.0) * values[i];
    }
  }
};

}  // namespace wsfast::truncation::WS_SIMD
