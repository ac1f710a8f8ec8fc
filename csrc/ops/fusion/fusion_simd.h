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

  // Sums over n values and their gradients, for normalization_gradient: of pieces, and of these in
  // double, since few extremes outweigh all other gradients.
  template <class T, class G, class A>
  static GradientSums<double> gradient_sums(const T* values, const G* gradients,
                                            const Stats<A>& stats, const Affine<A>& affine,
                                            int64_t n) {
    constexpr int64_t piece = 512;
    GradientSums<double> sums{};
    for (int64_t i = 0; i < n; i += piece) {
      const int64_t count = n - i < piece ? n - i : piece;
      const GradientSums<A> part = piece_sums(values + i, gradients + i, stats, affine, count);
      sums = merge(sums, {part.gradient, part.product, part.lowest, part.highest});
    }
    return sums;
  }

  // out = gradient_of(values, gradients); in place is fine
  template <class T, class G, class A, class Out>
  static void apply_gradient(const T* values, const G* gradients, const NormGradient<A>& gradient_of,
                             int64_t n, Out* out) {
    int64_t i = 0;
    if constexpr (std::is_same_v<A, float>) {
      const Vec scale = Vec::set1(gradient_of.scale);
      const Vec low = Vec::set1(gradient_of.low), high = Vec::set1(gradient_of.high);
      const Vec low_share = Vec::set1(gradient_of.low_share);
      const Vec high_share = Vec::set1(gradient_of.high_share);
      for (; i + Vec::lanes <= n; i += Vec::lanes) {
        const Vec x = Vec::load(values + i), g = Vec::load(gradients + i);
        const Vec shared = Vec::keep(Vec::at_least(x, high), high_share) -
                           Vec::keep(Vec::at_least(low, x), low_share);
        Vec::fma(scale, g, shared).store(out + i);
      }
    }
    for (; i < n; ++i) {
      out[i] = from_acc<Out>(gradient_of(to_acc(values[i]), to_acc(gradients[i])));
    }
  }

  // sum += share * row
  template <class A>
  static void add_row(const A* WS_RESTRICT row, A share, int64_t width, A* WS_RESTRICT sum) {
    for (int64_t x = 0; x < width; ++x) sum[x] += share * row[x];
  }

  // out[i] = sum over k of share[k][i] * row[at[k][i]]; tables of `taps` rows of `width`
  template <class A>
  static void gather_row(const A* WS_RESTRICT row, const int32_t* WS_RESTRICT at,
                         const A* WS_RESTRICT share, int64_t taps, int64_t width,
                         A* WS_RESTRICT out) {
    for (int64_t i = 0; i < width; ++i) out[i] = share[i] * row[at[i]];
    for (int64_t k = 1; k < taps; ++k) {
      const int32_t* WS_RESTRICT place = at + k * width;
      const A* WS_RESTRICT part = share + k * width;
      for (int64_t i = 0; i < width; ++i) out[i] += part[i] * row[place[i]];
    }
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

 private:
  template <class T, class G, class A>
  static GradientSums<A> piece_sums(const T* values, const G* gradients, const Stats<A>& stats,
                                    const Affine<A>& affine, int64_t n) {
    GradientSums<A> sums{};
    int64_t i = 0;
    if constexpr (std::is_same_v<A, float>) {
      const Vec shift = Vec::set1(affine.shift), scale = Vec::set1(affine.scale);
      const Vec low = Vec::set1(stats.low), high = Vec::set1(stats.high);
      Vec gradient = Vec::set1(0.0f), product = gradient;
      typename Vec::Counter lowest, highest;
      for (; i + Vec::lanes <= n; i += Vec::lanes) {
        const Vec x = Vec::load(values + i), g = Vec::load(gradients + i);
        gradient = gradient + g;
        product = Vec::fma(g, (x - shift) * scale, product);
        lowest.add(Vec::at_least(low, x));
        highest.add(Vec::at_least(x, high));
      }
      sums = {Vec::sum(gradient), Vec::sum(product), lowest.total(), highest.total()};
    }
    for (; i < n; ++i) {
      const A x = to_acc(values[i]), g = to_acc(gradients[i]);
      sums = merge(sums, {g, g * affine(x), x <= stats.low, x >= stats.high});
    }
    return sums;
  }
};

}  // namespace wsfast::fusion::WS_SIMD
