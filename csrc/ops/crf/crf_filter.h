// Filtering with a kept lattice on the CPU, and energies of it. Points are added up in their order, one group of channels
// after the other, so results are the same for any number of threads.
#pragma once

#include <algorithm>
#include <cmath>

#include "crf_lattice.h"

namespace wsfast::crf {

// The points of a kept lattice as splat and slice read them: row by row.
template <class A>
struct RowPoints {
  const int32_t* vertices;
  const A* weights;
  int corners;

  const int32_t* vertices_at(int64_t i, int n) const { return vertices + i * n; }
};

template <class Loops, class T>
struct Filter {
  using A = acc_t<T>;
  const T* values;
  const int32_t* vertices;
  const A* weights;
  const int32_t* neighbours;
  const int64_t* offsets;
  int64_t images, channels, points, total;
  int corners;
  Direction direction;
  A* energy;    // or null
  T* filtered;  // or null

  static constexpr int64_t kPointGrain = 8192;

  void run() const {
    const int64_t groups = ceil_div<int64_t>(channels, 8);
    constexpr int64_t parts = 2;  // one thread adds up the points, half of the work
    for_images(images * groups, parts, [&](int64_t begin, int64_t end) {
      Buffer<A> scratch;
      for (int64_t task = begin; task < end; ++task) {
        const int64_t c = task % groups * 8;
        const int group = static_cast<int>(std::min<int64_t>(8, channels - c));
        group <= 4 ? apply<4>(task / groups, c, group, scratch) : apply<8>(task / groups, c, group, scratch);
      }
    });
  }

 private:
  template <int W>
  void apply(int64_t n, int64_t c, int group, Buffer<A>& scratch) const {
    const int64_t plane = n * channels + c, count = offsets[n + 1] - offsets[n];
    if (count == 0) return fill_nan(plane, group);
    const int64_t size = (count + 1) * W;  // row -1 is 0
    A* all = scratch.resize(3 * size);
    A* rows[3];
    for (int i = 0; i < 3; ++i) {
      std::fill(all + i * size, all + i * size + W, A(0));
      rows[i] = all + i * size + W;
    }
    std::fill(rows[0], rows[0] + count * W, A(0));
    const RowPoints<A> own{vertices + n * points * corners, weights + n * points * corners, corners};
    splat<W>(values + plane * points, group, own, rows[0]);
    A* forward = nullptr;
    if (energy != nullptr || direction != Direction::transpose) {
      forward = blur<W>(n, rows[0], rows[1], rows[2], false);
    }
    if (energy != nullptr) sum_energies<W>(rows[0], forward, count, plane, group);
    if (filtered == nullptr) return;
    A* result = forward;
    if (direction != Direction::forward) {
      A* free = forward == rows[1] ? rows[2] : rows[1];
      result = blur<W>(n, rows[0], free, rows[0], true);
    }
    if (direction == Direction::symmetric) Loops::add(forward, count * W, result);
    const double share = direction == Direction::symmetric ? 0.5 : 1.0;
    slice<W>(result, group, own, static_cast<A>(share * blur_scale(corners - 1)),
             filtered + plane * points);
  }

  void fill_nan(int64_t plane, int group) const {
    if (energy != nullptr) std::fill_n(energy + plane, group, A(NAN));
    if (filtered != nullptr) {
      std::fill_n(filtered + plane * points, group * points, from_acc<T>(A(NAN)));
    }
  }

  // s' A s from what s is on the vertices, before and after the blurs.
  template <int W>
  void sum_energies(const A* in, const A* out, int64_t count, int64_t plane, int group) const {
    double sums[W] = {};
    Loops::template dot<A, W>(in, out, count, sums);
    const double scale = blur_scale(corners - 1);
    for (int c = 0; c < group; ++c) energy[plane + c] = static_cast<A>(scale * sums[c]);
  }

  template <int W>
  void splat(const T* in, int group, const RowPoints<A>& own, A* rows) const {
    const A* none = nullptr;
    if (corners == 6) {
      Loops::template splat<A, W, 6>(in, points, group, none, 0, points, own, rows);
    } else {
      Loops::template splat<A, W, 0>(in, points, group, none, 0, points, own, rows);
    }
  }

  template <int W>
  void slice(const A* rows, int group, const RowPoints<A>& own, A scale, T* out) const {
    const A* none = nullptr;
    parallel_for(0, points, kPointGrain, [&](int64_t begin, int64_t end) {
      const RowPoints<A> part{own.vertices + begin * corners, own.weights + begin * corners, corners};
      if (corners == 6) {
        Loops::template slice<A, W, 6>(out, points, group, none, begin, end, part, rows, scale);
      } else {
        Loops::template slice<A, W, 0>(out, points, group, none, begin, end, part, rows, scale);
      }
    });
  }

  template <int W>
  A* blur(int64_t n, const A* in, A* a, A* b, bool transpose) const {
    const int64_t count = offsets[n + 1] - offsets[n];
    const auto pair = [&](int axis) {
      return NeighbourPair{neighbours + 2 * axis * total + offsets[n],
                           neighbours + (2 * axis + 1) * total + offsets[n]};
    };
    return blur_axes<Loops, A, W>(in, a, b, corners, count, transpose, pair);
  }
};

}  // namespace wsfast::crf
