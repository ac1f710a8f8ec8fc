// The launches of the crf ops, for crf_cuda.cu and the emulator alike. No torch.
#pragma once

#include <algorithm>
#include <bit>

#include "crf_filter.cuh"

namespace wsfast::crf {

inline constexpr int64_t kMostColumns = int64_t{1} << 16;  // of blocks in a grid
inline constexpr int64_t kMostRows = 65535;
inline constexpr int64_t kPartPoints = 8192;  // that one block reads, at least

inline dim3 blocks_for(int64_t threads) { return grid_of(threads, kThreads, kMostColumns); }

// Rows of blocks, one per image; kernels loop over images beyond kMostRows.
inline dim3 rows_of_blocks(unsigned blocks, int64_t images) {
  return dim3(blocks, static_cast<unsigned>(std::clamp<int64_t>(images, 1, kMostRows)));
}

// Of an image, where the counts lie on the device alone: what a grid is sized for. Twice the mean;
// kernels loop where an image has more.
inline int64_t likely_vertices(int64_t total, int64_t images) {
  return std::min(total, 2 * ceil_div(total, images));
}

inline int parts_of(int64_t points) {
  return static_cast<int>(std::clamp<int64_t>(points / kPartPoints, 1, 64));
}

// Slots of one image's table: the most vertices there can be, and an eighth more.
inline int64_t table_slots(const Points& points) {
  const int64_t most = points.points * points.corners();
  return ceil_div(most + most / 8 + 1, kWarpSize) * kWarpSize;
}

template <class A>
void embed_points(const Points& points, const Build<A>& build, [[maybe_unused]] cudaStream_t stream) {
  const dim3 blocks = blocks_for(points.images * points.points), threads(kThreads);
  const auto launch = [&]<int D>() {
    const auto kernel = embed_kernel<A, D>;
    WS_LAUNCH(kernel, blocks, threads, 0, stream, points, build);
  };
  switch (points.d) {
    case 1: return launch.template operator()<1>();
    case 2: return launch.template operator()<2>();
    case 3: return launch.template operator()<3>();
    case 4: return launch.template operator()<4>();
    case 5: return launch.template operator()<5>();
    case 6: return launch.template operator()<6>();
    case 7: return launch.template operator()<7>();
    default: return launch.template operator()<8>();
  }
}

// Finds and numbers the vertices; build.offsets say how many there are.
template <class T, class A>
void find_vertices(const Points& points, const T* planes, const Build<A>& build,
                   [[maybe_unused]] cudaStream_t stream) {
  const dim3 threads(kThreads);
  WS_LAUNCH(begin_kernel<A>, blocks_for(points.images * build.slots), threads, 0, stream, points,
            build);
  if (points.planes > 0) {
    const int parts = parts_of(points.points);
    const auto kernel = widen_kernel<T, A>;
    WS_LAUNCH(kernel, dim3(static_cast<unsigned>(points.images * points.planes * parts)), threads, 0,
              stream, points, planes, parts, build);
  }
  WS_LAUNCH(space_kernel<A>, blocks_for(points.images), threads, 0, stream, points, build);
  embed_points(points, build, stream);
  const dim3 numbering = blocks_for(ceil_div(build.slots, kNumberSlots));
  WS_LAUNCH(number_kernel<A>, rows_of_blocks(numbering.x, points.images), threads, 0, stream, points,
            build);
  WS_LAUNCH(offset_kernel, dim3(1), dim3(1), 0, stream, points.images, build.offsets);
  WS_LAUNCH(settle_kernel<A>, blocks_for(points.images * points.points * points.corners()), threads,
            0, stream, points, build);
}

template <class A>
void find_neighbours(const Points& points, const Build<A>& build, int64_t vertices,
                     int32_t* neighbours, [[maybe_unused]] cudaStream_t stream) {
  const dim3 blocks = blocks_for(ceil_div(build.slots, kNeighbourSlots));
  WS_LAUNCH(neighbour_kernel<A>, rows_of_blocks(blocks.x, points.images), dim3(kThreads), 0, stream,
            points, build, vertices, neighbours);
}

// Memory of a filter: exponents (images, channels) and three arrays of rows (total, group). What is
// splatted is summed where the first two are, and read into the third before they are written.
template <class A>
struct FilterMemory {
  int32_t* exponents;
  A* rows;
};

// Filters values (images, channels, points) and sums their energies; `energy` and `filtered` may be
// null. Grids are sized for images of so many vertices.
template <class T>
class LatticeFilter {
  using A = acc_t<T>;

 public:
  LatticeFilter(const Kept<A>& lattice, int64_t channels, int64_t grid_vertices, Direction direction)
      : lattice_(lattice),
        channels_(channels),
        grid_vertices_(grid_vertices),
        direction_(direction),
        point_bits_(static_cast<int>(std::bit_width(static_cast<uint64_t>(lattice.points)))) {}

  static int64_t group_of(int64_t channels) { return std::min<int64_t>(channels, kGroup); }

  void launch(const T* values, const A* roi, const FilterMemory<A>& memory, A* energy, T* filtered,
              cudaStream_t stream) const {
    const int64_t planes = lattice_.images * channels_;
    if (planes == 0) return;
    WS_LAUNCH(begin_exponents_kernel, blocks_for(planes), dim3(kThreads), 0, stream, planes,
              memory.exponents);
    const int parts = parts_of(lattice_.points);
    WS_LAUNCH(exponent_kernel<T>, dim3(static_cast<unsigned>(planes * parts)), dim3(kThreads), 0,
              stream, values, roi, channels_, lattice_.points, parts, memory.exponents);
    for (int64_t first = 0; first < channels_; first += kGroup) {
      const int size = static_cast<int>(group_of(channels_ - first));
      filter({channels_, first, size, roi, memory.exponents}, values, memory, energy, filtered,
             stream);
    }
  }

 private:
  dim3 points_grid() const { return blocks_for(lattice_.images * lattice_.points); }
  dim3 rows_grid(unsigned blocks) const { return rows_of_blocks(blocks, lattice_.images); }

  void filter(const Group<A>& group, const T* values, const FilterMemory<A>& memory, A* energy,
              T* filtered, cudaStream_t stream) const {
    const dim3 threads(kThreads), vertices = rows_grid(blocks_for(grid_vertices_ * group.size).x);
    const int64_t entries = lattice_.total * group.size;
    A* const one = memory.rows;
    A* const other = one + entries;
    A* const in = other + entries;
    auto* const sums = reinterpret_cast<int64_t*>(one);
    WS_LAUNCH(clear_kernel, blocks_for(entries), threads, 0, stream, entries, sums);
    WS_LAUNCH(splat_kernel<T>, points_grid(), threads, 0, stream, lattice_, group, values,
              point_bits_, sums);
    WS_LAUNCH(settle_sums_kernel<A>, vertices, threads, 0, stream, lattice_, group, point_bits_, sums,
              in);
    const double scale = blur_scale(lattice_.corners - 1);
    A* rows = nullptr;
    if (energy != nullptr || direction_ != Direction::transpose) {
      rows = blur(group, vertices, in, one, other, false, nullptr, stream);
    }
    if (energy != nullptr) {
      WS_LAUNCH(energy_kernel<A>, rows_grid(static_cast<unsigned>(group.size)),
                dim3(kEnergyThreads), 0, stream, lattice_, group, point_bits_, scale, in, rows, energy);
    }
    if (filtered == nullptr) return;
    const bool both = direction_ == Direction::symmetric;
    if (direction_ != Direction::forward) {
      A* const free = rows == one ? other : one;
      rows = blur(group, vertices, in, free, in, true, both ? rows : nullptr, stream);
    }
    const auto share = static_cast<A>(both ? 0.5 * scale : scale);
    WS_LAUNCH(slice_kernel<T>, points_grid(), threads, 0, stream, lattice_, group, share, rows,
              filtered);
  }

  // All axes in turn, back and forth between `a` and `b`, which may be `in`; returns the last, to
  // which `more` is added where it is not null.
  A* blur(const Group<A>& group, dim3 vertices, const A* in, A* a, A* b, bool transpose,
          const A* more, [[maybe_unused]] cudaStream_t stream) const {
    const int axes = lattice_.corners;
    for (int step = 0; step < axes; ++step) {
      A* const to = step % 2 == 0 ? a : b;
      WS_LAUNCH(blur_kernel<A>, vertices, dim3(kThreads), 0, stream, lattice_,
                transpose ? axes - 1 - step : step, group.size, in, to,
                step + 1 == axes ? more : nullptr);
      in = to;
    }
    return axes % 2 == 0 ? b : a;
  }

  Kept<A> lattice_;
  int64_t channels_, grid_vertices_;
  Direction direction_;
  int point_bits_;
};

}  // namespace wsfast::crf
