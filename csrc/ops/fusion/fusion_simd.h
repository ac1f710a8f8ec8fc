// Row loops of the fusion room, one copy per instruction set (core/foreach_simd.h). Plain loops: the
// compiler vectorises them for the set in force. No include guard.

namespace wsfast::fusion::WS_SIMD {

struct Rows {
  template <class T>
  static Stats<acc_t<T>> stats(const T* values, int64_t n) {
    using A = acc_t<T>;
    A low = to_acc(values[0]), high = low, residue = A(0);
    for (int64_t i = 0; i < n; ++i) {
      const A x = to_acc(values[i]);
      low = x < low ? x : low;
      high = x > high ? x : high;
      residue += x - x;  // NaN once any value is not finite
    }
    return {low, high, residue == A(0)};
  }

  static Stats<float> stats(const float* values, int64_t n) {
    using Vec = simd::WS_SIMD::Vec;
    int64_t i = 0;
    float low = values[0], high = low, residue = 0.0f;
    if (n >= Vec::lanes) {
      Vec lows = Vec::load(values), highs = lows, residues = Vec::set1(0.0f);
      for (; i + Vec::lanes <= n; i += Vec::lanes) {
        const Vec x = Vec::load(values + i);
        lows = Vec::min(lows, x);
        highs = Vec::max(highs, x);
        residues = residues + (x - x);
      }
      low = Vec::lowest(lows);
      high = Vec::highest(highs);
      residue = Vec::sum(residues);
    }
    for (; i < n; ++i) {
      low = values[i] < low ? values[i] : low;
      high = values[i] > high ? values[i] : high;
      residue += values[i] - values[i];
    }
    return {low, high, residue == 0.0f};
  }

  // One source row, normalised and resized to the output's width.
  template <class T, class A>
  static void stretch(const T* row, const Affine<A>& affine, const int32_t* first,
                      const int32_t* second, const A* weight, int64_t width, A* out) {
    for (int64_t x = 0; x < width; ++x) {
      const A a = affine(to_acc(row[first[x]])), b = affine(to_acc(row[second[x]]));
      out[x] = a + weight[x] * (b - a);
    }
  }

  // One source row of the output's width, normalised.
  template <class T, class A>
  static void copy(const T* row, const Affine<A>& affine, int64_t width, A* out) {
    for (int64_t x = 0; x < width; ++x) out[x] = affine(to_acc(row[x]));
  }

  // Blends two stretched rows, scales them by the layer's weight and reduces them into `sum`.
  template <class A>
  static void blend(const A* top, const A* bottom, A position, A layer_weight, Reduce reduce,
                    bool is_first, int64_t width, A* sum) {
    const A u = layer_weight * (A(1) - position), v = layer_weight * position;
    if (is_first) {
      for (int64_t x = 0; x < width; ++x) sum[x] = u * top[x] + v * bottom[x];
    } else if (reduce == Reduce::sum) {
      for (int64_t x = 0; x < width; ++x) sum[x] += u * top[x] + v * bottom[x];
    } else if (reduce == Reduce::prod) {
      for (int64_t x = 0; x < width; ++x) sum[x] *= u * top[x] + v * bottom[x];
    } else {
      for (int64_t x = 0; x < width; ++x) {
        const A value = u * top[x] + v * bottom[x];
        sum[x] = sum[x] > value ? sum[x] : value;
      }
    }
  }

  template <class T, class A>
  static void normalize(const A* values, const Affine<A>& affine, int64_t n, T* out) {
    for (int64_t i = 0; i < n; ++i) out[i] = from_acc<T>(affine(values[i]));
  }
};

}  // namespace wsfast::fusion::WS_SIMD
