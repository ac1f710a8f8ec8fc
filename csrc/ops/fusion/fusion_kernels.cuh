// CUDA kernels of the fusion room: statistics of every layer's maps, one pass over the output, the
// final normalisation. Fixed partitions and reduction trees only, so results do not depend on
// scheduling. No torch: the emulator runs this file on the CPU.
#pragma once

#include <limits>

#include "fusion_math.h"

namespace wsfast::fusion {

inline constexpr int kStatsThreads = 512;
inline constexpr int kReduceThreads = 256;
// Blocks that registers are shared among. 0 leaves it to the compiler, which would spill doubles.
template <class A>
inline constexpr int kReduceBlocks = sizeof(A) == 4 ? 0 : 3;
inline constexpr int kNormalizeThreads = 256;
inline constexpr int kValuesPerThread = 16;  // of the normalisation: loads in flight
inline constexpr int kPackedValues = 4;      // that it moves at once, where pixels allow it
inline constexpr int kTileColumns = kWarpSize;  // a warp reads and writes along a row
inline constexpr int kRowsPerThread = 8;
inline constexpr int kTileRows = kReduceThreads / kTileColumns * kRowsPerThread;
inline constexpr int kHeldRows = kTileRows + 2;  // that a tile reads of layers no taller than it
inline constexpr int kLayersPerLaunch = 16;  // bounds kernel arguments and shared memory

// One layer's maps (images, height, width). They are measured in parts of part_length pixels, which
// are the parts [first_part, first_part + parts) of every image.
template <class T>
struct LayerMaps {
  const T* maps;
  int height, width;
  int first_part, parts;
  int64_t part_length;
  acc_t<T> row_scale, column_scale;  // source size / output size

  WS_HD int64_t pixels() const { return static_cast<int64_t>(height) * width; }
};

// The layers of one launch; they follow each other in the parts, too.
template <class T>
struct Layers {
  LayerMaps<T> at[kLayersPerLaunch];
  int count;
  int parts;
};

// What the output looks like.
struct Output {
  int height, width;
  int column_tiles, tiles;  // of one image
  int parts;                // of one image, all layers
  Norm layer_norm;
  Reduce reduce;
  double eps;
};

// ---- statistics ---------------------------------------------------------------------------------

// Statistics of the values seen so far.
template <class A>
struct Range {
  A low = std::numeric_limits<A>::infinity(), high = -low, residue = 0;

  WS_DEVICE void add(A value) {
    low = value < low ? value : low;
    high = value > high ? value : high;
    residue += value - value;  // NaN once any value is not finite
  }
  WS_DEVICE Stats<A> stats() const { return {low, high, residue == A(0)}; }
};

template <class A>
WS_DEVICE Stats<A> warp_stats(const Stats<A>& mine) {
  return {warp_min(mine.low), warp_max(mine.high), warp_ballot(mine.finite) == kFullWarp};
}

// Leaves every warp's statistics in `scratch`, for merge_warps by whoever needs them.
template <class A>
WS_DEVICE void share_stats(const Stats<A>& mine, Stats<A>* scratch) {
  const Stats<A> warp = warp_stats(mine);
  if (warp_lane() == 0) scratch[block_warp()] = warp;
  __syncthreads();
}

template <int threads, class A>
WS_DEVICE Stats<A> merge_warps(const Stats<A>* scratch) {
  Stats<A> all = scratch[0];
  for (int w = 1; w < threads / kWarpSize; ++w) all = merge(all, scratch[w]);
  return all;
}

// What the thread at `place` of `places` that share the work merges of `count` parts: 1 at least.
template <class A>
WS_DEVICE Stats<A> merge_share(const Stats<A>* parts, int count, int place, int places) {
  Stats<A> mine = parts[place < count ? place : 0];
  for (int p = place + places; p < count; p += places) mine = merge(mine, parts[p]);
  return mine;
}

// Consecutive values that are moved at once, 16 bytes at a time where they are that long.
template <class T, int length = 16 / sizeof(T)>
struct alignas(length * sizeof(T) < 16 ? length * sizeof(T) : 16) Pack {
  static constexpr int size = length;
  T values[size];
};

// visit(value) for all n values, shared out among the block's threads, of which some are visited
// again; 16-byte loads between the first and the last aligned place.
template <class T, class Visit>
WS_DEVICE void visit_values(const T* values, int64_t n, const Visit& visit) {
  constexpr int size = Pack<T>::size, batch = 4;  // loads in flight
  const int past = static_cast<int>(reinterpret_cast<uintptr_t>(values) / sizeof(T) % size);
  const int64_t aligned = (size - past) % size;
  const int64_t head = aligned < n ? aligned : n;
  const int64_t packs = (n - head) / size;
  const auto* pack = reinterpret_cast<const Pack<T>*>(values + head);
  for (int64_t p = threadIdx.x; p < packs; p += batch * kStatsThreads) {
    Pack<T> loaded[batch];
    for (int b = 0; b < batch; ++b) {
      const int64_t at = p + b * kStatsThreads;
      loaded[b] = pack[at < packs ? at : p];
    }
    for (int b = 0; b < batch; ++b) {
      for (int i = 0; i < size; ++i) visit(loaded[b].values[i]);
    }
  }
  const int64_t tail = head + packs * size;
  const int64_t loose = threadIdx.x < head ? threadIdx.x : tail + threadIdx.x - head;
  if (loose < n) visit(values[loose]);  // head and tail hold fewer values than a block has threads
}

// One block: statistics of one part of one image's map of one layer.
template <class T>
WS_GLOBAL void __launch_bounds__(kStatsThreads)
    layer_stats_kernel(const Layers<T> layers, int parts_per_image, Stats<acc_t<T>>* stats) {
  __shared__ Stats<acc_t<T>> scratch[kStatsThreads / kWarpSize];
  const int64_t image = blockIdx.x / layers.parts;
  const int part = layers.at[0].first_part + static_cast<int>(blockIdx.x % layers.parts);
  int l = 0;
  while (part >= layers.at[l].first_part + layers.at[l].parts) ++l;
  const LayerMaps<T>& layer = layers.at[l];
  const int64_t pixels = layer.pixels(), begin = (part - layer.first_part) * layer.part_length;
  const int64_t length = pixels - begin < layer.part_length ? pixels - begin : layer.part_length;
  Range<acc_t<T>> range;
  visit_values(layer.maps + image * pixels + begin, length,
               [&](T value) { range.add(to_acc(value)); });
  share_stats(range.stats(), scratch);
  if (threadIdx.x == 0) {
    stats[image * parts_per_image + part] = merge_warps<kStatsThreads>(scratch);
  }
}

// ---- resizing and reduction ---------------------------------------------------------------------

// The two source rows of an output row and their shares, the layer's weight included.
template <class A>
struct RowTap {
  int first, second;
  A first_share, second_share;
};

// What a block needs to know of its layers for its image.
template <class A>
struct LayerValues {
  Affine<A> affine;
  A weight;
};

// One layer of one image above one output column.
template <class T>
class Column {
 public:
  using A = acc_t<T>;

  WS_DEVICE Column(const LayerMaps<T>& layer, const T* map, const Affine<A>& affine, int x)
      : width_(layer.width), affine_(affine) {
    const Tap<A, int> tap = scaled_tap<A>(x, layer.width, layer.column_scale);
    first_ = map + tap.first;
    to_second_ = tap.second - tap.first;
    weight_ = tap.weight;
  }

  // A source row at the column.
  WS_DEVICE A stretched(int y) const {
    const T* row = first_ + static_cast<int64_t>(y) * width_;
    const A a = affine_(to_acc(row[0])), b = affine_(to_acc(row[to_second_]));
    return a + weight_ * (b - a);
  }

  // Rows first .. first + count - 1 into `held`, by all warps of the block: a row has kTileColumns.
  WS_DEVICE void stretch(int first, int count, A* held) const {
    constexpr int warps = kReduceThreads / kWarpSize, batch = 4;  // rows in flight
    for (int r = block_warp(); r < count; r += batch * warps) {
      A rows[batch];
      for (int b = 0; b < batch; ++b) {
        rows[b] = stretched(first + (r + b * warps < count ? r + b * warps : r));
      }
      for (int b = 0; b < batch; ++b) {
        if (r + b * warps < count) held[(r + b * warps) * kTileColumns + warp_lane()] = rows[b];
      }
    }
  }

 private:
  const T* first_;  // of the column's two source columns
  int to_second_, width_;
  A weight_;
  Affine<A> affine_;
};

// Fills the block's tables: every layer's normalisation and weight, and its taps of the tile's rows.
template <class T>
WS_DEVICE void prepare_layers(const Layers<T>& layers, const acc_t<T>* weights,
                              const Output& output, const Stats<acc_t<T>>* image_stats,
                              int first_row, LayerValues<acc_t<T>>* values,
                              RowTap<acc_t<T>>* rows) {
  using A = acc_t<T>;
  for (int i = block_thread(); i < layers.count * kTileRows; i += kReduceThreads) {
    const LayerMaps<T>& layer = layers.at[i / kTileRows];
    const int y = first_row + i % kTileRows;
    const A weight = weights[i / kTileRows];
    const Tap<A, int> tap = scaled_tap<A>(y, layer.height, layer.row_scale);
    rows[i] = {tap.first, tap.second, weight * (A(1) - tap.weight), weight * tap.weight};
  }
  for (int l = block_warp(); l < layers.count; l += kReduceThreads / kWarpSize) {
    const LayerMaps<T>& layer = layers.at[l];
    const Stats<A> stats = warp_stats(
        merge_share(image_stats + layer.first_part, layer.parts, warp_lane(), kWarpSize));
    if (warp_lane() == 0) {
      values[l] = {normalization(stats, output.layer_norm, output.eps), weights[l]};
    }
  }
}

// Adds all layers of the launch to `sums`: the output pixels (y .. y + rows - 1, x). By all threads
// of the block, which share the `taps` of the tile's rows and kHeldRows stretched rows.
template <class T>
WS_DEVICE void reduce_column(const Layers<T>& layers, const Output& output, int64_t image, int x,
                             int y, int rows, const LayerValues<acc_t<T>>* values,
                             const RowTap<acc_t<T>>* taps, acc_t<T>* held, bool begun,
                             acc_t<T>* sums) {
  using A = acc_t<T>;
  const int first_tap = block_warp() * kRowsPerThread;
  for (int l = 0; l < layers.count; ++l, begun = true) {
    const LayerMaps<T>& layer = layers.at[l];
    const T* map = layer.maps + image * layer.pixels();
    const auto add = [&](int k, A value) {
      sums[k] = begun ? combine(sums[k], value, output.reduce) : value;
    };
    if (layer.height == output.height && layer.width == output.width) {
      const T* pixel = map + static_cast<int64_t>(y) * layer.width + x;
      T pixels[kRowsPerThread];  // all loads before the first use
      for (int k = 0; k < kRowsPerThread; ++k, pixel += layer.width) {
        if (k < rows) pixels[k] = *pixel;
      }
      for (int k = 0; k < kRowsPerThread; ++k) {
        if (k < rows) add(k, values[l].weight * values[l].affine(to_acc(pixels[k])));
      }
    } else {
      const RowTap<A>* tile = taps + l * kTileRows;
      const int first = tile[0].first, count = tile[kTileRows - 1].second - first + 1;
      const Column<T> column(layer, map, values[l].affine, x);
      const auto add_rows = [&](const auto& stretched) {
        for (int k = 0; k < kRowsPerThread; ++k) {
          if (k >= rows) continue;
          const RowTap<A> tap = tile[first_tap + k];
          const A top = stretched(tap.first), bottom = stretched(tap.second);
          add(k, tap.first_share * top + tap.second_share * bottom);
        }
      };
      if (count <= kHeldRows) {
        column.stretch(first, count, held);
        __syncthreads();
        add_rows([&](int row) { return held[(row - first) * kTileColumns + warp_lane()]; });
        __syncthreads();
      } else {
        add_rows([&](int row) { return column.stretched(row); });
      }
    }
  }
}

// One block: one tile of one output image. With `begun`, `reduced` holds the earlier layers.
// Images with a map that is not finite become zero. Dynamic shared memory: layers.count * kTileRows
// row taps, then kHeldRows * kTileColumns values.
template <class T, class Out>
WS_GLOBAL void __launch_bounds__(kReduceThreads, kReduceBlocks<acc_t<T>>)
    reduce_kernel(const Layers<T> layers, const acc_t<T>* weights, const Output output,
                  const Stats<acc_t<T>>* layer_stats, bool begun, Out* reduced,
                  Stats<acc_t<T>>* tile_stats, bool* finite) {
  using A = acc_t<T>;
  WS_DYNAMIC_SHARED(RowTap<A>, row_taps);
  A* held = reinterpret_cast<A*>(row_taps + layers.count * kTileRows);
  __shared__ LayerValues<A> values[kLayersPerLaunch];
  __shared__ Stats<A> scratch[kReduceThreads / kWarpSize];
  __shared__ int all_finite[kReduceThreads / kWarpSize];
  const int64_t image = blockIdx.x / output.tiles;
  const int tile = static_cast<int>(blockIdx.x % output.tiles);
  const int first_row = tile / output.column_tiles * kTileRows;
  const Stats<A>* image_stats = layer_stats + image * output.parts;
  int usable = 1;
  for (int p = block_thread(); p < output.parts; p += kReduceThreads) {
    usable &= image_stats[p].finite;
  }
  prepare_layers(layers, weights, output, image_stats, first_row, values, row_taps);
  usable = block_min(usable, all_finite);  // its barriers also publish the tables
  if (tile == 0 && threadIdx.x == 0) finite[image] = usable != 0;

  const int x = tile % output.column_tiles * kTileColumns + warp_lane();
  const int y = first_row + block_warp() * kRowsPerThread;
  const int rows = x < output.width ? output.height - y : 0;
  Out* pixel = reduced + (image * output.height + y) * output.width + x;
  A sums[kRowsPerThread] = {};
  if (usable) {
    if (begun) {
      for (int k = 0; k < kRowsPerThread; ++k) {
        if (k < rows) sums[k] = to_acc(pixel[static_cast<int64_t>(k) * output.width]);
      }
    }
    reduce_column(layers, output, image, x, y, rows, values, row_taps, held, begun, sums);
  }
  Range<A> range;
  for (int k = 0; k < kRowsPerThread; ++k) {
    if (k >= rows) continue;
    pixel[static_cast<int64_t>(k) * output.width] = from_acc<Out>(sums[k]);
    range.add(sums[k]);
  }
  share_stats(range.stats(), scratch);
  if (threadIdx.x == 0) tile_stats[blockIdx.x] = merge_warps<kReduceThreads>(scratch);
}

// ---- final normalisation ------------------------------------------------------------------------

// a * b, rounded: in a fused multiplication and addition the smallest value would not become 0.
WS_DEVICE inline float rounded_product(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
WS_DEVICE inline double rounded_product(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

// How an image is normalised: its values times `weight` as `affine` has it; 0 if it is not usable.
template <class A>
struct Scaling {
  Affine<A> affine;
  A weight;
  bool usable;

  WS_DEVICE A operator()(A value) const {
    return usable ? affine(rounded_product(weight, value)) : A(0);
  }
};

// Statistics of the values times `weight`.
template <class A>
WS_DEVICE Stats<A> weighted(const Stats<A>& stats, A weight) {
  const A a = rounded_product(weight, stats.low), b = rounded_product(weight, stats.high);
  const bool finite = stats.finite && is_finite(a) && is_finite(b);
  return {weight < A(0) ? b : a, weight < A(0) ? a : b, finite};
}

// out = scaling(values) for `count` values in packs of `size`, by all threads of the block; `out`
// may be `values`. The first values are on their way when scaling_of() waits for other loads.
template <int size, class T, class In, class ScalingOf>
WS_DEVICE void normalize_span(const In* values, int64_t count, const ScalingOf& scaling_of,
                              T* out) {
  constexpr int batch = kValuesPerThread / size;
  const auto* from = reinterpret_cast<const Pack<In, size>*>(values);
  auto* to = reinterpret_cast<Pack<T, size>*>(out);
  const int64_t packs = count / size;
  Pack<In, size> held[batch];
  const auto load = [&](int64_t first) {
    for (int b = 0; b < batch; ++b) {
      const int64_t at = first + b * kNormalizeThreads;
      if (at < packs) held[b] = from[at];
    }
  };
  load(threadIdx.x);
  const Scaling<acc_t<T>> scaling = scaling_of();
  for (int64_t first = threadIdx.x; first < packs; first += batch * kNormalizeThreads) {
    if (first >= batch * kNormalizeThreads) load(first);
    for (int b = 0; b < batch; ++b) {
      const int64_t at = first + b * kNormalizeThreads;
      if (at >= packs) continue;
      Pack<T, size> scaled;
      for (int i = 0; i < size; ++i) {
        scaled.values[i] = from_acc<T>(scaling(to_acc(held[b].values[i])));
      }
      to[at] = scaled;
    }
  }
}

// What is normalised: reduced values, or the maps of the only layer themselves.
template <class A, class In>
struct Source {
  const In* values;
  const Stats<A>* stats;  // `parts` of every image
  int parts;
  const A* weight;  // of the maps; none of reduced values
  bool packed;      // every span begins and ends at whole packs

  // Of one image, by all threads of the block. `finite` is that of the image, of maps only.
  WS_DEVICE Scaling<A> scaling(int64_t image, Norm norm, double eps, Stats<A>* scratch,
                               bool* finite) const {
    share_stats(merge_share(stats + image * parts, parts, block_thread(), kNormalizeThreads),
                scratch);
    const Stats<A> all = merge_warps<kNormalizeThreads>(scratch);
    if (weight == nullptr) return {normalization(all, norm, eps), A(1), true};
    if (block_thread() == 0) *finite = all.finite;
    return {normalization(weighted(all, *weight), norm, eps), *weight, all.finite};
  }
};

// One block: one span of one image. `out` may be the source's values. Maps that are not finite
// become zero; of them, `finite` tells.
template <class T, class In>
WS_GLOBAL void __launch_bounds__(kNormalizeThreads)
    normalize_kernel(const Source<acc_t<T>, In> source, int64_t pixels, int spans,
                     int64_t span_length, Norm norm, double eps, T* out, bool* finite) {
  using A = acc_t<T>;
  __shared__ Stats<A> scratch[kNormalizeThreads / kWarpSize];
  const int64_t image = blockIdx.x / spans, first = blockIdx.x % spans * span_length;
  const int64_t length = first + span_length < pixels ? span_length : pixels - first;
  const int64_t begin = image * pixels + first;
  const auto scaling = [&] { return source.scaling(image, norm, eps, scratch, finite + image); };
  if (source.packed) {
    normalize_span<kPackedValues>(source.values + begin, length, scaling, out + begin);
  } else {
    normalize_span<1>(source.values + begin, length, scaling, out + begin);
  }
}

}  // namespace wsfast::fusion
