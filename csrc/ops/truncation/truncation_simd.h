// The passes over a row, one copy per instruction set (core/foreach_simd.h). No include guard.
// float32, float16 and bfloat16 rows run vectorised in float32; float64 rows run as plain loops.

namespace wsfast::truncation::WS_SIMD {

using simd::WS_SIMD::Vec;

// Counts what a row holds and copies what lies in [lower, upper], up to `capacity` values. Positive
// is asked too: with subnormals flushed, 0 >= lower holds for a subnormal lower.
class Collector {
 public:
  Collector(float lower, float upper, float* out, int64_t capacity)
      : lower_(lower), upper_(upper), zero_(Vec::set1(0.0f)), low_(Vec::set1(lower)),
        high_(Vec::set1(upper)), out_(out), capacity_(capacity) {}

  void add(const Vec& x) {
    const auto positive = Vec::greater(x, zero_);
    const auto reach = Vec::both(positive, Vec::at_least(x, low_));
    const auto hit = Vec::both(reach, Vec::at_least(high_, x));
    positive_lanes_.add(positive);
    reach_lanes_.add(reach);
    if (written_ + Vec::lanes <= capacity_) {
      const int hits = Vec::compress(out_ + written_, hit, x);
      written_ += hits;
      inside_ += hits;
    } else {
      inside_ += Vec::count(hit);
    }
  }

  template <class T>
  void add_scalars(const T* row, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float x = to_acc(row[i]);
      const bool positive = x > 0.0f, reach = positive && x >= lower_;
      positives_ += positive;
      not_below_ += reach;
      if (reach && x <= upper_) {
        ++inside_;
        if (written_ < capacity_) out_[written_++] = x;
      }
    }
  }

  Collected result() const {
    const int64_t positives = positives_ + positive_lanes_.total();
    return {positives, positives - not_below_ - reach_lanes_.total(), inside_, written_};
  }

 private:
  float lower_, upper_;
  Vec zero_, low_, high_;
  float* out_;
  int64_t capacity_;
  Vec::Counter positive_lanes_, reach_lanes_;
  int64_t positives_ = 0, not_below_ = 0, inside_ = 0, written_ = 0;
};

struct Passes {
  // Counts the positives of row and those below `lower`, and copies those in [lower, upper] to `out`
  // (up to `capacity` of them; `inside` counts all). Of the row after this one, one line per
  // `stride` values is fetched.
  template <class T>
  static Collected collect(const T* row, int64_t n, int64_t stride, float lower, float upper,
                           float* out, int64_t capacity) {
    Collector collector(lower, upper, out, capacity);
    int64_t i = 0, fetch = 0;
    for (; i + Vec::lanes <= n; i += Vec::lanes) {
      fetch_line(row + n, stride, i, fetch);
      __builtin_prefetch(row + i + 512, 0, 3);
      collector.add(Vec::load(row + i));
    }
    collector.add_scalars(row, i, n);
    return collector.result();
  }

  static Collected collect(const double* row, int64_t n, int64_t, double lower, double upper,
                           double* out, int64_t capacity) {
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

  // Fetches the line at `fetch` once a loop has come to `i` = fetch.
  template <class T>
  static void fetch_line(const T* row, int64_t stride, int64_t i, int64_t& fetch) {
    if (i < fetch) return;
    __builtin_prefetch(row + fetch, 0, 3);
    fetch += stride;
  }

  // Copies the positives of row to `out`, which has room for n + kPadding values.
  template <class T>
  static int64_t positives(const T* row, int64_t n, float* out) {
    const Vec zero = Vec::set1(0.0f);
    const int64_t vectors = n - n % Vec::lanes;
    int64_t written = 0, i = 0;
    for (; i < vectors; i += Vec::lanes) {
      const Vec x = Vec::load(row + i);
      written += Vec::compress(out + written, Vec::greater(x, zero), x);
    }
    for (; i < n; ++i) {
      const float x = to_acc(row[i]);
      out[written] = x;
      written += x > 0.0f;
    }
    return written;
  }

  static int64_t positives(const double* row, int64_t n, double* out) {
    return std::copy_if(row, row + n, out, [](double x) { return x > 0.0; }) - out;
  }

  // Packs the values below `pivot` at the front of `values` and those above it in `above`.
  static Split split(float* values, int64_t n, float pivot, float* above) {
    const Vec p = Vec::set1(pivot);
    Split s{0, 0};
    int64_t i = 0;
    for (; i + Vec::lanes <= n; i += Vec::lanes) {
      const Vec x = Vec::load(values + i);  // before the store, which may cover it
      s.above += Vec::compress(above + s.above, Vec::greater(x, p), x);
      s.below += Vec::compress(values + s.below, Vec::greater(p, x), x);
    }
    for (; i < n; ++i) split_one(values[i], pivot, values, above, s);
    return s;
  }

  static Split split(double* values, int64_t n, double pivot, double* above) {
    Split s{0, 0};
    for (int64_t i = 0; i < n; ++i) split_one(values[i], pivot, values, above, s);
    return s;
  }

  template <class A>
  static void split_one(A x, A pivot, A* below, A* above, Split& s) {
    if (x < pivot) below[s.below++] = x;
    if (x > pivot) above[s.above++] = x;
  }

  // The value of rank `rank` among few values, each compared with all. Writes the padding.
  static float ranked(float* values, int64_t n, int64_t rank) {
    for (int i = 0; i < Vec::lanes; ++i) values[n + i] = infinity<float>();
    const Vec one = Vec::set1(1.0f), wanted = Vec::set1(static_cast<float>(rank));
    float found[Vec::lanes];
    for (int64_t i = 0; i < n; i += Vec::lanes) {
      const Vec x = Vec::load(values + i);
      Vec below = Vec::set1(0.0f), not_above = below;
      for (int64_t k = 0; k < n; ++k) {
        const Vec y = Vec::set1(values[k]);
        below = below + Vec::keep(Vec::greater(x, y), one);
        not_above = not_above + Vec::keep(Vec::at_least(x, y), one);
      }
      const auto chosen = Vec::both(Vec::at_least(wanted, below), Vec::greater(not_above, wanted));
      if (Vec::compress(found, chosen, x) > 0) return found[0];
    }
    return infinity<float>();  // not reached for 0 <= rank < n
  }

  static double ranked(double* values, int64_t n, int64_t rank) {
    std::nth_element(values, values + rank, values + n);
    return values[rank];
  }

  // The smallest positive of row; infinity where there is none.
  template <class T>
  static float lowest_positive(const T* row, int64_t n) {
    const Vec zero = Vec::set1(0.0f), infinite = Vec::set1(infinity<float>());
    Vec lowest = infinite;
    int64_t i = 0;
    for (; i + Vec::lanes <= n; i += Vec::lanes) {
      const Vec x = Vec::load(row + i);
      const Vec candidate = x + Vec::keep(Vec::at_least(zero, x), infinite);
      lowest = Vec::min(candidate, lowest);  // of which the second where the first is NaN
    }
    return lowest_scalar(row, i, n, Vec::lowest(lowest));
  }

  static double lowest_positive(const double* row, int64_t n) {
    return lowest_scalar(row, 0, n, infinity<double>());
  }

  template <class T, class A>
  static A lowest_scalar(const T* row, int64_t begin, int64_t end, A lowest) {
    for (int64_t i = begin; i < end; ++i) {
      const A x = to_acc(row[i]);
      lowest = x > A(0) && x < lowest ? x : lowest;
    }
    return lowest;
  }

  // The positives of row, those below `limit` and the largest of these (0 where there is none).
  template <class T>
  static Below<float> below(const T* row, int64_t n, float limit) {
    const Vec zero = Vec::set1(0.0f), high = Vec::set1(limit);
    Vec::Counter positive_lanes, smaller_lanes;
    Vec largest = zero;
    int64_t i = 0;
    for (; i + Vec::lanes <= n; i += Vec::lanes) {
      const Vec x = Vec::load(row + i);
      const auto positive = Vec::greater(x, zero);
      const auto smaller = Vec::both(positive, Vec::greater(high, x));
      positive_lanes.add(positive);
      smaller_lanes.add(smaller);
      largest = Vec::max(largest, Vec::keep(smaller, x));
    }
    Below<float> all{positive_lanes.total(), smaller_lanes.total(), Vec::highest(largest)};
    for (; i < n; ++i) count_below(to_acc(row[i]), limit, all);
    return all;
  }

  static Below<double> below(const double* row, int64_t n, double limit) {
    Below<double> all{0, 0, 0.0};
    for (int64_t i = 0; i < n; ++i) count_below(row[i], limit, all);
    return all;
  }

  template <class A>
  static void count_below(A x, A limit, Below<A>& all) {
    const bool smaller = x > A(0) && x < limit;
    all.positives += x > A(0);
    all.smaller += smaller;
    all.largest = smaller && x > all.largest ? x : all.largest;
  }

  // out = row where row >= threshold, else 0. NaN is never kept. `stream` bypasses the caches: call
  // end_stream before another thread reads.
  template <class T>
  static void keep_at_least(const T* row, int64_t n, float threshold, T* out, bool stream) {
    const int64_t head = stream ? std::min(n, elements_to_alignment(out)) : 0;
    keep_scalars(row, 0, head, threshold, out);
    const Vec limit = Vec::set1(threshold);
    int64_t i = head;
    for (; i + Vec::lanes <= n; i += Vec::lanes) keep_one(row + i, limit, out + i, stream);
    keep_scalars(row, i, n, threshold, out);
  }

  static void keep_at_least(const double* row, int64_t n, double threshold, double* out, bool) {
    keep_scalars(row, 0, n, threshold, out);
  }

  static void end_stream() { simd::WS_SIMD::stream_fence(); }

  // keep_at_least of one row and collect of the next in one loop: arithmetic hides behind memory.
  // Of the row after these, one line per `stride` values is fetched.
  template <class T>
  static Collected keep_and_collect(const T* row, int64_t n, float threshold, T* out, bool stream,
                                    const T* next, int64_t stride, float lower, float upper,
                                    float* inside, int64_t capacity) {
    Collector collector(lower, upper, inside, capacity);
    const int64_t head = stream ? std::min(n, elements_to_alignment(out)) : 0;
    keep_scalars(row, 0, head, threshold, out);
    collector.add_scalars(next, 0, head);
    const Vec limit = Vec::set1(threshold);
    int64_t i = head, fetch = 0;
    for (; i + Vec::lanes <= n; i += Vec::lanes) {
      fetch_line(next + n, stride, i, fetch);
      keep_one(row + i, limit, out + i, stream);
      __builtin_prefetch(next + i + 512, 0, 3);
      collector.add(Vec::load(next + i));
    }
    keep_scalars(row, i, n, threshold, out);
    collector.add_scalars(next, i, n);
    return collector.result();
  }

  static Collected keep_and_collect(const double* row, int64_t n, double threshold, double* out,
                                    bool, const double* next, int64_t, double lower,
                                    double upper, double* inside, int64_t capacity) {
    keep_scalars(row, 0, n, threshold, out);
    return collect(next, n, n, lower, upper, inside, capacity);
  }

  template <class T>
  static void keep_one(const T* row, const Vec& limit, T* out, bool stream) {
    const Vec x = Vec::load(row);
    const Vec kept = Vec::keep(Vec::at_least(x, limit), x);
    if (stream) {
      kept.stream(out);
    } else {
      kept.store(out);
    }
  }

  template <class T>
  static int64_t elements_to_alignment(const T* out) {
    constexpr uintptr_t align = Vec::lanes * sizeof(T);
    const uintptr_t past = reinterpret_cast<uintptr_t>(out) % align;
    return past == 0 ? 0 : static_cast<int64_t>((align - past) / sizeof(T));
  }

  template <class T, class A>
  static void keep_scalars(const T* row, int64_t begin, int64_t end, A threshold, T* out) {
    for (int64_t i = begin; i < end; ++i) {
      out[i] = to_acc(row[i]) >= threshold ? row[i] : from_acc<T>(A(0));
    }
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
