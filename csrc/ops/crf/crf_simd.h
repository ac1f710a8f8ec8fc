// Loops of the crf room, one copy per instruction set (core/foreach_simd.h), float and double alike.
// No include guard.

namespace wsfast::crf::WS_SIMD {

#include "crf_lanes.h"

struct Loops {
  template <class A>
  static constexpr int lanes = VectorLane<A>::lanes;

  // The simplices of `count` points, a multiple of the lanes: D + 1 weights per point, with scratch
  // behind them. `code` holds the ranks of axes 0..D-1, `rank_bits` each; `hash` is of both.
  template <class A, class Key, int D>
  static void embed(const A* const* features, const A* coefficient, const KeySpace& space,
                    int64_t count, A* weights, Key* first_key, uint32_t* code, uint32_t* hash) {
    using Lane = VectorLane<A>;
    constexpr int L = Lane::lanes;
    // unsigned: parts of the sum may leave the range that the sum keeps
    using Word = std::make_unsigned_t<Key>;
    typedef Word Keys __attribute__((vector_size(L * sizeof(Key))));
    typedef uint32_t Codes __attribute__((vector_size(L * sizeof(uint32_t))));
    for (int64_t p = 0; p < count; p += L) {
      typename Lane::Real scaled[D];
      for (int i = 0; i < D; ++i) {
        std::memcpy(&scaled[i], features[i] + p, kVectorBytes);
        scaled[i] *= coefficient[i];
      }
      Simplex<Lane, D> simplex;
      find_simplex<Lane, D>(scaled, simplex);
      Keys key = Keys{} + static_cast<Word>(space.base);
      Codes ranks = {};
      for (int i = 0; i < D; ++i) {
        key += __builtin_convertvector(simplex.quotient[i], Keys) *
               static_cast<Word>(space.stride[i]);
        ranks |= __builtin_convertvector(simplex.rank[i], Codes) << static_cast<uint32_t>(rank_bits<D> * i);
      }
      store_rows<A, D + 1>(simplex.weight, weights + p * (D + 1));
      const Codes mixed = __builtin_convertvector(
          (hash_simplex<Word, Keys>(key, __builtin_convertvector(ranks, Keys))), Codes);
      std::memcpy(first_key + p, &key, sizeof(key));
      std::memcpy(code + p, &ranks, sizeof(ranks));
      std::memcpy(hash + p, &mixed, sizeof(mixed));
    }
  }

  // The keys of the D + 1 vertices of simplices given by their first one and code; those of corner k
  // from k * kTileRow on, with scratch behind them. Vertex k follows vertex k - 1 by one colour minus
  // the stride of the axis with rank D + 1 - k.
  template <class Key, int D>
  static void list_corners(const Key* first_key, const uint32_t* code, const KeySpace& space,
                           int64_t count, Key* corners) {
    using Lane = VectorLane<std::conditional_t<sizeof(Key) == 4, float, double>>;
    using Word = std::make_unsigned_t<Key>;
    constexpr int L = Lane::lanes;
    typedef Word Keys __attribute__((vector_size(kVectorBytes)));
    typedef uint32_t Codes __attribute__((vector_size(L * sizeof(uint32_t))));
    for (int64_t i = 0; i < count; i += L) {
      Keys key;
      Codes codes;
      std::memcpy(&key, first_key + i, sizeof(key));
      std::memcpy(&codes, code + i, sizeof(codes));
      Keys stride_of_rank[D + 1];
      for (int r = 1; r <= D; ++r) stride_of_rank[r] = Keys{};
      for (int axis = 0; axis < D; ++axis) {
        const Keys rank = __builtin_convertvector(
            codes >> static_cast<uint32_t>(rank_bits<D> * axis) & ((1u << rank_bits<D>) - 1), Keys);
        const Keys stride = Keys{} + static_cast<Word>(space.stride[axis]);
        for (int r = 1; r <= D; ++r) stride_of_rank[r] |= rank == static_cast<Word>(r) ? stride : Keys{};
      }
      std::memcpy(corners + i, &key, sizeof(key));
      for (int k = 1; k <= D; ++k) {
        key += static_cast<Word>(space.colour) - stride_of_rank[D + 1 - k];
        std::memcpy(corners + k * kTileRow + i, &key, sizeof(key));
      }
    }
  }

  // N vectors of one corner's weights each, as rows of one point's. Behind the last row, up to 8
  // values more are written.
  template <class A, int N>
  static void store_rows(const typename VectorLane<A>::Real* corner, A* rows) {
    constexpr int L = VectorLane<A>::lanes, side = std::min(L, 8);
    if constexpr (N < 5 || N > 8) {
      for (int l = 0; l < L; ++l) {
        for (int k = 0; k < N; ++k) rows[l * N + k] = corner[k][l];
      }
    } else {
      typename VectorLane<A>::Real v[8];
      for (int k = 0; k < 8; ++k) v[k] = corner[std::min(k, N - 1)];
      if constexpr (side > 1) exchange<A, 1>(v);
      if constexpr (side > 2) exchange<A, 2>(v);
      if constexpr (side > 4) exchange<A, 4>(v);
      for (int l = 0; l < L; ++l) {
        for (int k = 0; k < 8; k += side) {
          std::memcpy(rows + l * N + k, reinterpret_cast<const A*>(v + k + l % side) + l / side * side,
                      side * sizeof(A));
        }
      }
    }
  }

  template <class A, int Bit>
  static void exchange(typename VectorLane<A>::Real* v) {
    constexpr int L = VectorLane<A>::lanes;
    for (int k = 0; k < 8; ++k) {
      if (k & Bit) continue;
      const auto low = shuffle<A, Exchange<L, Bit, false>>(v[k], v[k | Bit]);
      v[k | Bit] = shuffle<A, Exchange<L, Bit, true>>(v[k], v[k | Bit]);
      v[k] = low;
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

  // The planes of up to W channels from point `first` on; those that are missing lie at `instead`.
  template <int W, class T>
  struct Planes {
    T* plane[W];
    Planes(T* planes, int64_t pixels, int channels, int64_t first, T* instead) {
      for (int c = 0; c < W; ++c) plane[c] = c < channels ? planes + c * pixels + first : instead;
    }
  };

  // Rows of W values of `count` points, and back. Whole runs are written so that they become shuffles.
  template <class A, int W, int Run, class T>
  static void gather_rows(const T* const* plane, const A* mask, int count, A* rows) {
    if (count == Run) {
      for (int i = 0; i < Run; ++i) {
        for (int c = 0; c < W; ++c) rows[i * W + c] = to_acc(plane[c][i]) * mask[i];
      }
      return;
    }
    for (int i = 0; i < count; ++i) {
      for (int c = 0; c < W; ++c) rows[i * W + c] = to_acc(plane[c][i]) * mask[i];
    }
  }

  template <class A, int W, int Run, class T>
  static void scatter_rows(const A* rows, const A* mask, int count, T* const* plane) {
    if (count == Run) {
      for (int c = 0; c < W; ++c) {
        for (int i = 0; i < Run; ++i) plane[c][i] = from_acc<T>(rows[i * W + c] * mask[i]);
      }
      return;
    }
    for (int c = 0; c < W; ++c) {
      for (int i = 0; i < count; ++i) plane[c][i] = from_acc<T>(rows[i * W + c] * mask[i]);
    }
  }

  static constexpr int kRun = 16;  // points whose rows are transposed at once

  // body(first, count, rows) over runs of points [begin, end) with a row of W masked values each.
  template <class A, int W, class T, class Body>
  static void for_rows_of(const T* planes, int64_t pixels, int channels, const A* roi, int64_t begin,
                          int64_t end, const Body& body) {
    const T zeros[kRun] = {};
    A rows[kRun * W + VectorLane<A>::lanes], ones[kRun];
    std::fill(ones, ones + kRun, A(1));
    for (int64_t first = begin; first < end; first += kRun) {
      const int count = static_cast<int>(std::min<int64_t>(kRun, end - first));
      const Planes<W, const T> from(planes, pixels, channels, first, zeros);
      gather_rows<A, W, kRun>(from.plane, roi == nullptr ? ones : roi + first, count, rows);
      body(first - begin, count, rows);
    }
  }

  // The same for rows that `body` fills, to be masked.
  template <class A, int W, class T, class Body>
  static void for_rows_to(T* planes, int64_t pixels, int channels, const A* roi, int64_t begin,
                          int64_t end, const Body& body) {
    T nowhere[kRun];
    A rows[kRun * W + VectorLane<A>::lanes], ones[kRun];
    std::fill(ones, ones + kRun, A(1));
    for (int64_t first = begin; first < end; first += kRun) {
      const int count = static_cast<int>(std::min<int64_t>(kRun, end - first));
      body(first - begin, count, rows);
      const Planes<W, T> to(planes, pixels, channels, first, nowhere);
      scatter_rows<A, W, kRun>(rows, roi == nullptr ? ones : roi + first, count, to.plane);
    }
  }

  // vertices += weights * values over points [begin, end) of channel planes. Corners 0: as many as
  // `points` says.
  template <class A, int W, int Corners, class Points, class T>
  static void splat(const T* planes, int64_t pixels, int channels, const A* roi, int64_t begin,
                    int64_t end, const Points& points, A* vertices) {
    using R = Row<A, W>;
    const Points own = points;  // a copy that no store can change
    const int n = Corners > 0 ? Corners : own.corners;
    for_rows_of<A, W>(planes, pixels, channels, roi, begin, end,
                      [=](int64_t first, int count, const A* rows) {
      for (int i = 0; i < count; ++i) {
        const typename R::V x = R::load(rows + i * W);
        const int32_t* vertex = own.vertices_at(first + i, n);
        const A* weight = own.weights + (first + i) * n;
        for (int k = 0; k < n; ++k) {
          A* row = vertices + static_cast<int64_t>(vertex[k]) * W;
          R::store(row, R::load(row) + x * weight[k]);
        }
      }
    });
  }

  // The adjoint: planes = scale * (weights * vertices), masked.
  template <class A, int W, int Corners, class Points, class T>
  static void slice(T* planes, int64_t pixels, int channels, const A* roi, int64_t begin,
                    int64_t end, const Points& points, const A* vertices, A scale) {
    using R = Row<A, W>;
    const Points own = points;
    const int n = Corners > 0 ? Corners : own.corners;
    for_rows_to<A, W>(planes, pixels, channels, roi, begin, end,
                      [=](int64_t first, int count, A* rows) {
      for (int i = 0; i < count; ++i) {
        const int32_t* vertex = own.vertices_at(first + i, n);
        const A* weight = own.weights + (first + i) * n;
        typename R::V x = {};
        for (int k = 0; k < n; ++k) {
          x += R::load(vertices + static_cast<int64_t>(vertex[k]) * W) * weight[k];
        }
        R::store(rows + i * W, x * scale);
      }
    });
  }

  // The values of a simplex's corners side by side, padded to whole vectors: splat and slice in
  // vectors where many points share a simplex.
  template <class A, int W, int Corners>
  struct SimplexRow {
    using V = typename VectorLane<A>::Real;
    static constexpr int lanes = VectorLane<A>::lanes;
    static constexpr int parts = (Corners * W + lanes - 1) / lanes;
    static constexpr int size = parts * lanes;
    static constexpr int step = lanes / W;  // corners of a part

    static V load(const A* p) {
      V v;
      std::memcpy(&v, p, kVectorBytes);
      return v;
    }
    // body(part, the weights of its corners W times each) for every part
    template <class Body>
    static void for_parts(const A* weights, const Body& body) {
      [&]<int... P>(std::integer_sequence<int, P...>) {
        (body(P, spread<Corners - 1 - P * step>(load(weights + P * step))), ...);
      }(std::make_integer_sequence<int, parts>());
    }

    // The sums over corners of N points, side by side.
    template <int N>
    static V sum_up(V* points) {
      if constexpr (N == 1) {
        return points[0];
      } else {
        for (int i = 0; i < N / 2; ++i) {
          const V low = shuffle<A, Exchange<lanes, N / 2 * W, false>>(points[i], points[i + N / 2]);
          points[i] = low + shuffle<A, Exchange<lanes, N / 2 * W, true>>(points[i], points[i + N / 2]);
        }
        return sum_up<N / 2>(points);
      }
    }

   private:
    template <int Limit>
    static V spread(V weights) { return shuffle<A, Spread<W, Limit>>(weights, weights); }
  };

  template <class A, int W, int Corners, class Points, class T>
  static void splat_simplices(const T* planes, int64_t pixels, int channels, const A* roi,
                              int64_t begin, int64_t end, const Points& points, A* simplices) {
    using R = SimplexRow<A, W, Corners>;
    const Points own = points;
    for_rows_of<A, W>(planes, pixels, channels, roi, begin, end,
                      [=](int64_t first, int count, const A* rows) {
      for (int i = 0; i < count; ++i) {
        const typename R::V one = R::load(rows + i * W), x = shuffle<A, Repeat<W>>(one, one);
        A* row = simplices + static_cast<int64_t>(own.simplex[first + i]) * R::size;
        R::for_parts(own.weights + (first + i) * Corners, [=](int part, typename R::V weights) {
          A* p = row + part * R::lanes;
          const typename R::V sum = R::load(p) + x * weights;
          std::memcpy(p, &sum, kVectorBytes);
        });
      }
    });
  }

  template <class A, int W, int Corners, class Points, class T>
  static void slice_simplices(T* planes, int64_t pixels, int channels, const A* roi, int64_t begin,
                              int64_t end, const Points& points, const A* simplices, A scale) {
    using R = SimplexRow<A, W, Corners>;
    const Points own = points;
    for_rows_to<A, W>(planes, pixels, channels, roi, begin, end,
                      [=](int64_t first, int count, A* rows) {
      for (int i = 0; i < count; i += R::step) {
        typename R::V sums[R::step];  // of as many points as a vector holds the rows of
        for (int j = 0; j < R::step; ++j) {
          const int64_t point = first + std::min(i + j, count - 1);
          const A* row = simplices + static_cast<int64_t>(own.simplex[point]) * R::size;
          typename R::V x = {};
          R::for_parts(own.weights + point * Corners, [&](int part, typename R::V weights) {
            x += R::load(row + part * R::lanes) * weights;
          });
          sums[j] = x;
        }
        const typename R::V x = R::template sum_up<R::step>(sums) * scale;
        std::memcpy(rows + i * W, &x, kVectorBytes);
      }
    });
  }

  // sums[at] += rows, one after the other.
  template <class A, int W>
  static void add_rows(const A* rows, const int32_t* at, int64_t count, A* sums) {
    using R = Row<A, W>;
    for (int64_t i = 0; i < count; ++i) {
      A* sum = sums + int64_t{at[i]} * W;
      R::store(sum, R::load(sum) + R::load(rows + i * W));
    }
  }

  template <class A, int W>
  static void take_rows(const A* rows, const int32_t* at, int64_t count, A* taken) {
    using R = Row<A, W>;
    for (int64_t i = 0; i < count; ++i) R::store(taken + i * W, R::load(rows + int64_t{at[i]} * W));
  }

  // The same for the rows of simplices, whose corners lie at `at`.
  template <class A, int W, int Corners>
  static void add_simplices(const A* simplices, const int32_t* at, int64_t count, A* sums) {
    for (int64_t i = 0; i < count; ++i, at += Corners) {
      add_rows<A, W>(simplices + i * SimplexRow<A, W, Corners>::size, at, Corners, sums);
    }
  }

  template <class A, int W, int Corners>
  static void take_simplices(const A* rows, const int32_t* at, int64_t count, A* simplices) {
    using R = SimplexRow<A, W, Corners>;
    for (int64_t i = 0; i < count; ++i, at += Corners, simplices += R::size) {
      take_rows<A, W>(rows, at, Corners, simplices);
      std::fill(simplices + Corners * W, simplices + R::size, A(0));
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
