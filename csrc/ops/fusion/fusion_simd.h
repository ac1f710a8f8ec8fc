// Row loops of the fusion room, one copy per instruction set (core/foreach_simd.h). The compiler
// vectorises the plain ones for the set in force. No include guard.

namespace wsfast::fusion::WS_SIMD {

struct Rows {
  using Vec = simd::WS_SIMD::Vec;

  template <class T>
  static Stats<acc_t<T>> stats(const T* values, int64_t n) {
    using A = acc_t<T>;
    A low = to_acc(values[0]), high = low, residue = A(0);
    int64_t i = 0;
    if constexpr (std::is_same_v<A, float>) {
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
    }
    for (; i < n; ++i) {
      const A x = to_acc(values[i]);
      low = x < low ? x : low;
      high = x > high ? x : high;
      residue += x - x;  // NaN once any value is not finite
    }
    return {low, high, residue == A(0)};
  }

  // One normalised row, resized to the output's width. kRowPadding values past its end may be read.
  template <class A>
  static void stretch(const A* row, const int32_t* first, const int32_t* second, const A* weight,
                      int64_t width, A* out) {
    int64_t x = 0;
    if constexpr (std::is_same_v<A, float>) {
      for (; x + Vec::lanes <= width; x += Vec::lanes) {
        const Vec share = Vec::load(weight + x);
        if (second[x + Vec::lanes - 1] - first[x] < Vec::lanes) {
          const Vec near = Vec::load(row + first[x]);
          const Vec a = Vec::pick(near, first + x, first[x]);
          Vec::fma(share, Vec::pick(near, second + x, first[x]) - a, a).store(out + x);
        } else {
          const Vec a = Vec::gather(row, first + x);
          Vec::fma(share, Vec::gather(row, second + x) - a, a).store(out + x);
        }
      }
    }
    for (; x < width; ++x) {
      const A a = row[first[x]];
      out[x] = a + weight[x] * (row[second[x]] - a);
    }
  }

  // sum = reduce(sum, u * top + v * bottom), or the blend itself for the first layer.
  template <class A>
  static void blend(const A* WS_RESTRICT top, const A* WS_RESTRICT bottom, A u, A v, Reduce reduce,
                    bool is_first, int64_t width, A* WS_RESTRICT sum) {
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

  // out = affine(values); in place is fine
  template <class In, class T, class A>
  static void normalize(const In* values, Affine<A> affine, int64_t n, T* out) {
    int64_t i = 0;
    if constexpr (std::is_same_v<A, float>) {
      const Vec shift = Vec::set1(affine.shift), scale = Vec::set1(affine.scale);
      for (; i + Vec::lanes <= n; i += Vec::lanes) {
        ((Vec::load(values + i) - shift) * scale).store(out + i);
      }
    }
    for (; i < n; ++i) out[i] = from_acc<T>(affine(to_acc(values[i])));
  }
};

}  // namespace wsfast::fusion::WS_SIMD
