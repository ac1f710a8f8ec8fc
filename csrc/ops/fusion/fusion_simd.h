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
      constexpr int turns = 4;  // an extreme need not wait for the one before
      if (n >= turns * Vec::lanes) {
        const Vec zero = Vec::set1(0.0f);
        Vec lows[turns], highs[turns], residues[turns];
        for (int j = 0; j < turns; ++j) {
          lows[j] = highs[j] = Vec::set1(low);
          residues[j] = zero;
        }
        for (; i + turns * Vec::lanes <= n; i += turns * Vec::lanes) {
          for (int j = 0; j < turns; ++j) {
            const Vec x = Vec::load(values + i + j * Vec::lanes);
            lows[j] = Vec::min(lows[j], x);
            highs[j] = Vec::max(highs[j], x);
            residues[j] = Vec::fma(x, zero, residues[j]);  // NaN once any value is not finite
          }
        }
        for (int j = 1; j < turns; ++j) {
          lows[0] = Vec::min(lows[0], lows[j]);
          highs[0] = Vec::max(highs[0], highs[j]);
          residues[0] = residues[0] + residues[j];
        }
        low = Vec::lowest(lows[0]);
        high = Vec::highest(highs[0]);
        residue = Vec::sum(residues[0]);
      }
    }
    for (; i < n; ++i) {
      const A x = to_acc(values[i]);
      low = x < low ? x : low;
      high = x > high ? x : high;
      residue += x * A(0);
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

  // out = the sum
  template <class A>
  static void add(const RowSum<A>& sum, int64_t width, A* out) {
    if constexpr (std::is_same_v<A, float>) {
      if (width >= 8 * Vec::lanes) return add_vectors<8>(sum, width, out);
      if (width >= 2 * Vec::lanes) return add_vectors<2>(sum, width, out);
    }
    std::fill(out, out + width, A(0));
    size_t k = 0;
    for (; k < sum.raw.size(); ++k) {
      add_raw(sum.terms[k].row, sum.raw[k], sum.terms[k].factor, width, out);
    }
    for (; k + 1 < sum.terms.size(); k += 2) add_two(sum.terms[k], sum.terms[k + 1], width, out);
    if (k < sum.terms.size()) add_row(sum.terms[k].row, sum.terms[k].factor, width, out);
  }

  // so_far = reduce(so_far, top + bottom), the largest or the product; the first layer is taken as it is
  template <class A>
  static void combine(Term<A> top, Term<A> bottom, Reduce reduce, bool is_first, int64_t width,
                      A* WS_RESTRICT so_far) {
    const A* WS_RESTRICT above = top.row;
    const A* WS_RESTRICT below = bottom.row;
    const A u = top.factor, v = bottom.factor;
    if (is_first) {
      for (int64_t x = 0; x < width; ++x) so_far[x] = u * above[x] + v * below[x];
    } else if (reduce == Reduce::prod) {
      for (int64_t x = 0; x < width; ++x) so_far[x] *= u * above[x] + v * below[x];
    } else {
      for (int64_t x = 0; x < width; ++x) {
        const A value = u * above[x] + v * below[x];
        so_far[x] = so_far[x] > value ? so_far[x] : value;
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
  // sum += share * affine(row)
  template <class A>
  static void add_raw(const A* WS_RESTRICT row, Affine<A> affine, A share, int64_t width,
                      A* WS_RESTRICT sum) {
    for (int64_t x = 0; x < width; ++x) sum[x] += share * affine(row[x]);
  }

  template <class A>
  static void add_two(const Term<A>& first, const Term<A>& second, int64_t width,
                      A* WS_RESTRICT sum) {
    const A* WS_RESTRICT a = first.row;
    const A* WS_RESTRICT b = second.row;
    for (int64_t x = 0; x < width; ++x) sum[x] += first.factor * a[x] + second.factor * b[x];
  }

  // The sum, some vectors at a time; the last ones overlap those before, in place of a tail.
  template <int vectors>
  static void add_vectors(const RowSum<float>& sum, int64_t width, float* out) {
    constexpr int64_t columns = vectors * Vec::lanes;
    for (int64_t x = 0; x < width - columns; x += columns) add_columns<vectors>(sum, x, out + x);
    add_columns<vectors>(sum, width - columns, out + width - columns);
  }

  // Unrolled early: else GCC keeps the totals in memory.
  template <int vectors>
  static void add_columns(const RowSum<float>& sum, int64_t x, float* out) {
    Vec total[vectors];
#pragma GCC unroll 8
    for (int i = 0; i < vectors; ++i) total[i] = Vec::set1(0.0f);
    size_t k = 0;
    for (; k < sum.raw.size(); ++k) {
      const Vec shift = Vec::set1(sum.raw[k].shift), scale = Vec::set1(sum.raw[k].scale);
      const Vec factor = Vec::set1(sum.terms[k].factor);
      const float* const row = sum.terms[k].row + x;
#pragma GCC unroll 8
      for (int i = 0; i < vectors; ++i) {
        total[i] = Vec::fma(factor, (Vec::load(row + i * Vec::lanes) - shift) * scale, total[i]);
      }
    }
    for (; k < sum.terms.size(); ++k) {
      const Vec factor = Vec::set1(sum.terms[k].factor);
      const float* const row = sum.terms[k].row + x;
#pragma GCC unroll 8
      for (int i = 0; i < vectors; ++i) {
        total[i] = Vec::fma(factor, Vec::load(row + i * Vec::lanes), total[i]);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < vectors; ++i) total[i].store(out + i * Vec::lanes);
  }

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
