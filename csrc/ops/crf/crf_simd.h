// Loops of the crf room, one copy per instruction set (core/foreach_simd.h), on the compiler's own
// vector types: float and double alike. No include guard.

namespace wsfast::crf::WS_SIMD {

inline constexpr int kVectorBytes = simd::WS_SIMD::Vec::lanes * static_cast<int>(sizeof(float));

// A vector of values as find_simplex wants it.
template <class A>
struct VectorLane {
  using Scalar = A;
  using Whole = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;
  typedef A Real __attribute__((vector_size(kVectorBytes)));
  typedef Whole Int __attribute__((vector_size(kVectorBytes)));
  static constexpr int lanes = kVectorBytes / static_cast<int>(sizeof(A));

  static Int round(Real value) {  // to the nearest, ties to even; |value| < 2^22
    constexpr A magic = sizeof(A) == 4 ? A(12582912.0) : A(6755399441055744.0);
    const Real shifted = value + magic;
    return __builtin_convertvector(shifted - magic, Int);
  }
  static Real real(Int value) { return __builtin_convertvector(value, Real); }
  static Int less(Real a, Real b) { return a < b; }
  static Int below(Int a, Whole b) { return a < b; }
  static Int above(Int a, Whole b) { return a > b; }
  static Real min(Real a, Real b) { return b < a ? b : a; }
  static Real max(Real a, Real b) { return b > a ? b : a; }
};

#include "crf_simplex.h"

struct Loops {
  template <class A>
  static constexpr int lanes = VectorLane<A>::lanes;

  // The simplices of `count` points, a multiple of the lanes. Per block of lanes: D + 1 vectors of
  // weights. `code` holds the ranks of axes 0..D-1, four bits each.
  template <class A, class Key, int D>
  static void embed(const A* const* features, const A* coefficient, const KeySpace& space,
                    int64_t count, A* weights, Key* first_key, uint32_t* code) {
    using Lane = VectorLane<A>;
    constexpr int L = Lane::lanes;
    // unsigned: parts of the sum may leave the range that the sum keeps
    typedef std::make_unsigned_t<Key> Keys __attribute__((vector_size(L * sizeof(Key))));
    typedef uint32_t Codes __attribute__((vector_size(L * sizeof(uint32_t))));
    for (int64_t p = 0; p < count; p += L) {
      typename Lane::Real scaled[D];
      for (int i = 0; i < D; ++i) {
        std::memcpy(&scaled[i], features[i] + p, kVectorBytes);
        scaled[i] *= coefficient[i];
      }
      Simplex<Lane, D> simplex;
      find_simplex<Lane, D>(scaled, simplex);
      Keys key = Keys{} + static_cast<std::make_unsigned_t<Key>>(space.base);
      Codes ranks = {};
      for (int i = 0; i < D; ++i) {
        key += __builtin_convertvector(simplex.quotient[i], Keys) *
               static_cast<std::make_unsigned_t<Key>>(space.stride[i]);
        ranks |= __builtin_convertvector(simplex.rank[i], Codes) << static_cast<uint32_t>(4 * i);
      }
      for (int k = 0; k <= D; ++k) {
        std::memcpy(weights + p * (D + 1) + k * L, &simplex.weight[k], kVectorBytes);
      }
      std::memcpy(first_key + p, &key, sizeof(key));
      std::memcpy(code + p, &ranks, sizeof(ranks));
    }
  }

  // A row of W values.
  template <class A, int W>
  struct Row {
    typedef A V __attribute__((vector_size(W * sizeof(A))));
    static V load(const A* p) {
      V v;
      std::memcpy(&v, p, sizeof(V));
      return v;
    }
    static void store(A* p, V v) { std::memcpy(p, &v, sizeof(V)); }
  };

  static constexpr int kRun = 16;  // points whose rows are transposed at once

  // Points first, ... of `channels` channel planes, a row of W each, masked.
  template <class A, int W, class T>
  static void gather_rows(const T* planes, int64_t pixels, int channels, const A* roi, int count,
                          A* rows) {
    for (int c = 0; c < channels; ++c) {
      const T* plane = planes + c * pixels;
      if (roi == nullptr) {
        for (int i = 0; i < count; ++i) rows[i * W + c] = to_acc(plane[i]);
      } else {
        for (int i = 0; i < count; ++i) rows[i * W + c] = to_acc(plane[i]) * roi[i];
      }
    }
  }

  template <class A, int W, class T>
  static void scatter_rows(const A* rows, int64_t pixels, int channels, const A* roi, int count,
                           T* planes) {
    for (int c = 0; c < channels; ++c) {
      T* plane = planes + c * pixels;
      if (roi == nullptr) {
        for (int i = 0; i < count; ++i) plane[i] = from_acc<T>(rows[i * W + c]);
      } else {
        for (int i = 0; i < count; ++i) plane[i] = from_acc<T>(rows[i * W + c] * roi[i]);
      }
    }
  }

  // vertices += weights * values over points [begin, end) of channel planes. Corners 0: as many as
  // `points` says.
  template <class A, int W, int Corners, class Points, class T>
  static void splat(const T* planes, int64_t pixels, int channels, const A* roi, int64_t begin,
                    int64_t end, const Points& points, A* vertices) {
    using R = Row<A, W>;
    const int n = Corners > 0 ? Corners : points.corners;
    A rows[kRun * W] = {};
    for (int64_t first = begin; first < end; first += kRun) {
      const int count = static_cast<int>(std::min<int64_t>(kRun, end - first));
      const A* mask = roi == nullptr ? nullptr : roi + first;
      gather_rows<A, W>(planes + first, pixels, channels, mask, count, rows);
      for (int i = 0; i < count; ++i) {
        const typename R::V x = R::load(rows + i * W);
        const int32_t* vertex = points.vertices_at(first - begin + i, n);
        const A* weight = points.weights_at(first - begin + i, n);
        for (int k = 0; k < n; ++k) {
          A* row = vertices + static_cast<int64_t>(vertex[k]) * W;
          R::store(row, R::load(row) + x * weight[k * Points::stride]);
        }
      }
    }
  }

  // The adjoint: planes = scale * (weights * vertices), masked.
  template <class A, int W, int Corners, class Points, class T>
  static void slice(T* planes, int64_t pixels, int channels, const A* roi, int64_t begin,
                    int64_t end, const Points& points, const A* vertices, A scale) {
    using R = Row<A, W>;
    const int n = Corners > 0 ? Corners : points.corners;
    A rows[kRun * W];
    for (int64_t first = begin; first < end; first += kRun) {
      const int count = static_cast<int>(std::min<int64_t>(kRun, end - first));
      for (int i = 0; i < count; ++i) {
        const int32_t* vertex = points.vertices_at(first - begin + i, n);
        const A* weight = points.weights_at(first - begin + i, n);
        typename R::V x = {};
        for (int k = 0; k < n; ++k) {
          x += R::load(vertices + static_cast<int64_t>(vertex[k]) * W) * weight[k * Points::stride];
        }
        R::store(rows + i * W, x * scale);
      }
      const A* mask = roi == nullptr ? nullptr : roi + first;
      scatter_rows<A, W>(rows, pixels, channels, mask, count, planes + first);
    }
  }

  // One axis of the blur for vertices [begin, end). Row -1 of `in` is 0.
  template <class A, int W>
  static void blur(const A* in, const int32_t* one, const int32_t* other, int64_t begin,
                   int64_t end, A* out) {
    using R = Row<A, W>;
    for (int64_t i = begin; i < end; ++i) {
      const typename R::V around = R::load(in + static_cast<int64_t>(one[i]) * W) +
                                   R::load(in + static_cast<int64_t>(other[i]) * W);
      R::store(out + i * W, R::load(in + i * W) + around * A(0.5));
    }
  }

  // Bounds of values padded to a multiple of the lanes; false where one is not finite.
  template <class A>
  static bool bounds(const A* values, int64_t count, double& low, double& high) {
    using Lane = VectorLane<A>;
    typename Lane::Real least, most, residue = {};
    std::memcpy(&least, values, kVectorBytes);
    most = least;
    for (int64_t i = 0; i < count; i += Lane::lanes) {
      typename Lane::Real x;
      std::memcpy(&x, values + i, kVectorBytes);
      least = Lane::min(least, x);
      most = Lane::max(most, x);
      residue += x - x;  // NaN once a value is not finite
    }
    A rest = A(0);
    for (int l = 0; l < Lane::lanes; ++l) {
      low = std::min(low, static_cast<double>(least[l]));
      high = std::max(high, static_cast<double>(most[l]));
      rest += residue[l];
    }
    return rest == A(0);
  }

  template <class A>
  static void add(const A* values, int64_t count, A* sum) {
    for (int64_t i = 0; i < count; ++i) sum[i] += values[i];
  }

  // sum[c] += a . b over rows, in short runs so that float sums stay exact enough.
  template <class A, int W>
  static void dot(const A* a, const A* b, int64_t rows, double* sum) {
    using R = Row<A, W>;
    constexpr int64_t run = 64;
    for (int64_t first = 0; first < rows; first += run) {
      const int64_t last = std::min(first + run, rows);
      typename R::V partial = {};
      for (int64_t i = first; i < last; ++i) partial += R::load(a + i * W) * R::load(b + i * W);
      for (int c = 0; c < W; ++c) sum[c] += static_cast<double>(partial[c]);
    }
  }
};

}  // namespace wsfast::crf::WS_SIMD
