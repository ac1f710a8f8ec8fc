// CUDA kernels of the fusion room's gradient, for sums of layers: through the last normalisation,
// back to the layers' sizes, through theirs. Fixed partitions and trees and no atomics, so results
// do not depend on scheduling. No torch: the emulator runs this file on the CPU.
#pragma once

#include "fusion_kernels.cuh"

namespace wsfast::fusion {

inline constexpr int kGradientThreads = 256;
inline constexpr int kMostRows = 8;        // of a tile of a layer
inline constexpr int kLoadsPerThread = 4;  // of each map, in flight

// ---- gradient of a normalisation ----------------------------------------------------------------

// How one map was normalised, for the sums that its gradient needs.
template <class A>
struct Normalized {
  Stats<A> stats;
  Affine<A> affine;

  WS_DEVICE void add(A value, A gradient, GradientSums<A>& sums) const {
    sums.gradient += gradient;
    sums.product += gradient * affine(value);
    sums.lowest += value <= stats.low;
    sums.highest += value >= stats.high;
  }
};

// All threads' sums, for every thread; once per kernel. `scratch` holds one value per warp.
template <class A>
WS_DEVICE GradientSums<A> block_sums(const GradientSums<A>& mine, GradientSums<A>* scratch) {
  const GradientSums<A> warp = {warp_sum(mine.gradient), warp_sum(mine.product),
                                warp_sum(mine.lowest), warp_sum(mine.highest)};
  if (warp_lane() == 0) scratch[block_warp()] = warp;
  __syncthreads();
  GradientSums<A> all = scratch[0];
  for (int w = 1; w < kGradientThreads / kWarpSize; ++w) all = merge(all, scratch[w]);
  return all;
}

// `count` sums together, for every thread of the block.
template <class A>
WS_DEVICE GradientSums<A> merge_sums(const GradientSums<A>* parts, int count,
                                     GradientSums<A>* scratch) {
  GradientSums<A> mine = {};
  for (int p = block_thread(); p < count; p += kGradientThreads) mine = merge(mine, parts[p]);
  return block_sums(mine, scratch);
}

// visit(place, grad, value) for all n places, shared out among the block's threads, with loads in
// flight.
template <class Grad, class Value, class Visit>
WS_DEVICE void visit_pairs(const Grad* grad, const Value* values, int64_t n, const Visit& visit) {
  for (int64_t i = threadIdx.x; i < n; i += kLoadsPerThread * kGradientThreads) {
    Grad grads[kLoadsPerThread];
    Value held[kLoadsPerThread];
    for (int b = 0; b < kLoadsPerThread; ++b) {
      const int64_t at = i + b * kGradientThreads;
      if (at < n) {
        grads[b] = grad[at];
        held[b] = values[at];
      }
    }
    for (int b = 0; b < kLoadsPerThread; ++b) {
      const int64_t at = i + b * kGradientThreads;
      if (at < n) visit(at, to_acc(grads[b]), to_acc(held[b]));
    }
  }
}

// ---- the fused maps -----------------------------------------------------------------------------

// One warp: whether all layers of an image are finite. For where nothing is reduced again.
template <class A>
WS_GLOBAL void __launch_bounds__(kWarpSize)
    finite_kernel(const Stats<A>* layer_stats, int parts_per_image, bool* finite) {
  const Stats<A>* parts = layer_stats + int64_t{blockIdx.x} * parts_per_image;
  const Stats<A> mine = merge_share(parts, parts_per_image, warp_lane(), kWarpSize);
  const bool all = warp_ballot(mine.finite) == kFullWarp;
  if (warp_lane() == 0) finite[blockIdx.x] = all;
}

// What was fused, before its normalisation, in spans of each image.
template <class A>
struct FusedMaps {
  int64_t pixels, span_length;
  int spans;
  const Stats<A>* stats;  // `parts` of every image
  int parts;
  Norm norm;
  double eps;

  // How an image was normalised, by all threads of the block.
  WS_DEVICE Normalized<A> normalized(int64_t image, Stats<A>* scratch) const {
    share_stats(merge_share(stats + image * parts, parts, block_thread(), kGradientThreads),
                scratch);
    const Stats<A> all = merge_warps<kGradientThreads>(scratch);
    return {all, normalization(all, norm, eps)};
  }
};

// One block: the sums of one span of one image. Of images that are not finite nothing is written.
template <class T>
WS_GLOBAL void __launch_bounds__(kGradientThreads)
    output_sums_kernel(const FusedMaps<acc_t<T>> maps, const T* grad, const acc_t<T>* fused,
                       const bool* finite, GradientSums<acc_t<T>>* sums) {
  using A = acc_t<T>;
  __shared__ Stats<A> stats_scratch[kGradientThreads / kWarpSize];
  __shared__ GradientSums<A> sums_scratch[kGradientThreads / kWarpSize];
  const int64_t image = blockIdx.x / maps.spans;
  if (!finite[image]) return;
  const int64_t first = blockIdx.x % maps.spans * maps.span_length;
  const int64_t rest = maps.pixels - first, begin = image * maps.pixels + first;
  const Normalized<A> map = maps.normalized(image, stats_scratch);
  GradientSums<A> mine = {};
  visit_pairs(grad + begin, fused + begin, rest < maps.span_length ? rest : maps.span_length,
              [&](int64_t, A g, A value) { map.add(value, g, mine); });
  const GradientSums<A> all = block_sums(mine, sums_scratch);
  if (threadIdx.x == 0) sums[blockIdx.x] = all;
}

// One block: the gradient of one span of one fused image, before the normalisation. `upstream` may
// be `fused`. Without a normalisation `fused` and `sums` hold nothing.
template <class T>
WS_GLOBAL void __launch_bounds__(kGradientThreads)
    output_gradient_kernel(const FusedMaps<acc_t<T>> maps, const T* grad, const acc_t<T>* fused,
                           const bool* finite, const GradientSums<acc_t<T>>* sums,
                           acc_t<T>* upstream) {
  using A = acc_t<T>;
  __shared__ Stats<A> stats_scratch[kGradientThreads / kWarpSize];
  __shared__ GradientSums<A> sums_scratch[kGradientThreads / kWarpSize];
  const int64_t image = blockIdx.x / maps.spans, first = blockIdx.x % maps.spans * maps.span_length;
  const int64_t rest = maps.pixels - first, begin = image * maps.pixels + first;
  const int64_t length = rest < maps.span_length ? rest : maps.span_length;
  const bool usable = finite[image];
  if (maps.norm == Norm::none || !usable) {
    for (int64_t i = begin + threadIdx.x; i < begin + length; i += kGradientThreads) {
      upstream[i] = usable ? to_acc(grad[i]) : A(0);
    }
    return;
  }
  const Normalized<A> map = maps.normalized(image, stats_scratch);
  const GradientSums<A> all = merge_sums(sums + image * maps.spans, maps.spans, sums_scratch);
  const NormGradient<A> gradient_of =
      normalization_gradient(map.stats, map.affine, maps.norm, A(1), all);
  visit_pairs(grad + begin, fused + begin, length,
              [&](int64_t i, A g, A value) { upstream[begin + i] = gradient_of(value, g); });
}

// ---- back to the layers' sizes ------------------------------------------------------------------

// The output positions that read a source position.
struct Reach {
  int begin, end;
};

// The first output position whose first tap is `source` or beyond; out_size where there is none.
template <class A>
WS_HD int first_reading(int source, int in_size, int out_size, A scale) {
  int low = 0, high = out_size;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (scaled_tap<A>(middle, in_size, scale).first >= source) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// Taps never go back, so the positions that read one source follow each other.
template <class A>
WS_HD Reach reach_of(int source, int in_size, int out_size, A scale) {
  return {first_reading(source - 1, in_size, out_size, scale),
          first_reading(source + 1, in_size, out_size, scale)};
}

// How much of a source position an output position holds.
template <class A>
WS_HD A share_of(int source, int position, int in_size, A scale) {
  const Tap<A, int> tap = scaled_tap<A>(position, in_size, scale);
  return (tap.first == source ? A(1) - tap.weight : A(0)) +
         (tap.second == source ? tap.weight : A(0));
}

// One layer's gradient. It is resized in tiles of `rows` rows and kGradientThreads columns, which
// are the tiles [first_tile, first_tile + tiles) of every image.
template <class T>
struct LayerGradient {
  LayerMaps<T> layer;
  acc_t<T>* resized;  // the output's gradient at the layer's size; none where that is its own
  T* grad;            // may be `resized`
  int rows, column_tiles;
  int first_tile, tiles;
};

// The layers of one launch; they follow each other in the tiles, too.
template <class T>
struct LayerGradients {
  LayerGradient<T> at[kLayersPerLaunch];
  int count;
  int tiles, parts;
};

// One output column's gradient at a source row.
template <class A>
WS_DEVICE A pulled_rows(const A* column, int width, int source, const Reach& reach, int in_size,
                        A scale) {
  A sum = 0;
  for (int y = reach.begin; y < reach.end; y += kLoadsPerThread) {
    A held[kLoadsPerThread];
    for (int b = 0; b < kLoadsPerThread; ++b) {
      if (y + b < reach.end) held[b] = column[static_cast<int64_t>(y + b) * width];
    }
    for (int b = 0; b < kLoadsPerThread; ++b) {
      if (y + b < reach.end) sum += share_of(source, y + b, in_size, scale) * held[b];
    }
  }
  return sum;
}

// What a block shares while it resizes a tile.
template <class A>
struct PullScratch {
  A rows[kMostRows][kGradientThreads];  // of some output columns, at the tile's rows
  Reach row_reach[kMostRows];
  Reach columns;  // of all the tile's columns
};

// The output's gradient at the tile's rows y .. y + rows - 1 and the thread's column x, which may
// lie beyond the layer. By all threads of the block.
template <class T>
WS_DEVICE void pull_tile(const LayerMaps<T>& layer, const Output& output,
                         const acc_t<T>* upstream, int x, int y, int rows,
                         PullScratch<acc_t<T>>& scratch, acc_t<T>* gradient) {
  using A = acc_t<T>;
  const int thread = block_thread();
  Reach mine = {0, 0};
  if (x < layer.width) mine = reach_of(x, layer.width, output.width, layer.column_scale);
  if (thread < rows) {
    scratch.row_reach[thread] = reach_of(y + thread, layer.height, output.height, layer.row_scale);
  }
  if (thread == 0) scratch.columns.begin = mine.begin;
  if (x == layer.width - 1 || (x < layer.width && thread == kGradientThreads - 1)) {
    scratch.columns.end = mine.end;
  }
  __syncthreads();
  const Reach all = scratch.columns;
  for (int begin = all.begin; begin < all.end; begin += kGradientThreads) {
    const int column = begin + thread;
    for (int k = 0; k < kMostRows; ++k) {
      if (k < rows && column < all.end) {
        scratch.rows[k][thread] = pulled_rows(upstream + column, output.width, y + k,
                                              scratch.row_reach[k], layer.height, layer.row_scale);
      }
    }
    __syncthreads();
    const int first = mine.begin > begin ? mine.begin : begin;
    const int last = begin + kGradientThreads < mine.end ? begin + kGradientThreads : mine.end;
    for (int c = first; c < last; ++c) {
      const A share = share_of(x, c, layer.width, layer.column_scale);
      for (int k = 0; k < kMostRows; ++k) {
        if (k < rows) gradient[k] += share * scratch.rows[k][c - begin];
      }
    }
    __syncthreads();
  }
}

// How an image's map of a layer was normalised, by the first warp of the block, for all.
template <class T>
WS_DEVICE Normalized<acc_t<T>> layer_normalization(const LayerMaps<T>& layer, const Output& output,
                                                   const Stats<acc_t<T>>* image_stats,
                                                   Normalized<acc_t<T>>* shared) {
  if (block_warp() == 0) {
    const Stats<acc_t<T>> stats = warp_stats(
        merge_share(image_stats + layer.first_part, layer.parts, warp_lane(), kWarpSize));
    if (warp_lane() == 0) {
      *shared = {stats, normalization(stats, output.layer_norm, output.eps)};
    }
  }
  __syncthreads();
  return *shared;
}

// One block: the output's gradient in one tile of one image's map of one layer, and its sums.
template <class T>
WS_GLOBAL void __launch_bounds__(kGradientThreads)
    resize_gradient_kernel(const LayerGradients<T> layers, const Output output,
                           const acc_t<T>* upstream, const Stats<acc_t<T>>* layer_stats,
                           const bool* finite, int tiles_per_image, GradientSums<acc_t<T>>* sums) {
  using A = acc_t<T>;
  __shared__ Normalized<A> shared_map;
  __shared__ PullScratch<A> pulled;
  __shared__ GradientSums<A> scratch[kGradientThreads / kWarpSize];
  const int64_t image = blockIdx.x / layers.tiles;
  const int tile = layers.at[0].first_tile + static_cast<int>(blockIdx.x % layers.tiles);
  int l = 0;
  while (tile >= layers.at[l].first_tile + layers.at[l].tiles) ++l;
  const LayerGradient<T>& gradient = layers.at[l];
  const LayerMaps<T>& layer = gradient.layer;
  GradientSums<A>* result = sums + image * tiles_per_image + tile;
  const int local = tile - gradient.first_tile;
  const int x = local % gradient.column_tiles * kGradientThreads + block_thread();
  const int y = local / gradient.column_tiles * gradient.rows;
  const int rows = layer.height - y < gradient.rows ? layer.height - y : gradient.rows;
  const int own_rows = x < layer.width ? rows : 0;
  const int64_t at = image * layer.pixels() + static_cast<int64_t>(y) * layer.width + x;
  if (!finite[image]) {
    for (int k = 0; gradient.resized != nullptr && k < own_rows; ++k) {
      gradient.resized[at + static_cast<int64_t>(k) * layer.width] = A(0);  // read, but not used
    }
    if (threadIdx.x == 0) *result = {};
    return;
  }
  const Normalized<A> map = layer_normalization(
      layer, output, layer_stats + image * output.parts, &shared_map);
  T values[kMostRows];  // on their way while the gradient is resized
  for (int k = 0; k < kMostRows; ++k) {
    if (k < own_rows) values[k] = layer.maps[at + static_cast<int64_t>(k) * layer.width];
  }
  A grads[kMostRows] = {};
  if (gradient.resized == nullptr) {
    for (int k = 0; k < kMostRows; ++k) {
      if (k < own_rows) grads[k] = upstream[at + static_cast<int64_t>(k) * layer.width];
    }
  } else {
    pull_tile(layer, output, upstream + image * output.height * output.width, x, y, rows, pulled,
              grads);
  }
  GradientSums<A> mine = {};
  for (int k = 0; k < kMostRows; ++k) {
    if (k >= own_rows) continue;
    map.add(to_acc(values[k]), grads[k], mine);
    if (gradient.resized != nullptr) {
      gradient.resized[at + static_cast<int64_t>(k) * layer.width] = grads[k];
    }
  }
  const GradientSums<A> all = block_sums(mine, scratch);
  if (threadIdx.x == 0) *result = all;
}

// ---- the layers ---------------------------------------------------------------------------------

// One weight's gradient: what its layer's sums of all images hold, for every thread.
template <class A>
WS_DEVICE A weight_gradient(const GradientSums<A>* sums, int64_t images, int tiles,
                            int tiles_per_image, A* scratch) {
  A mine = 0;
  for (int64_t i = block_thread(); i < images * tiles; i += kGradientThreads) {
    mine += sums[i / tiles * tiles_per_image + i % tiles].product;
  }
  return block_sum(mine, scratch);
}

// One block: the gradient of one part of one image's map of one layer; the first image's first part
// adds up the layer's weight's gradient, too.
template <class T>
WS_GLOBAL void __launch_bounds__(kGradientThreads)
    layer_gradient_kernel(const LayerGradients<T> layers, const Output output, int64_t images,
                          const acc_t<T>* upstream, const acc_t<T>* weights,
                          const Stats<acc_t<T>>* layer_stats, const bool* finite,
                          int tiles_per_image, const GradientSums<acc_t<T>>* sums,
                          acc_t<T>* grad_weights) {
  using A = acc_t<T>;
  __shared__ Normalized<A> shared_map;
  __shared__ GradientSums<A> sums_scratch[kGradientThreads / kWarpSize];
  __shared__ A weight_scratch[kGradientThreads / kWarpSize];
  const int64_t image = blockIdx.x / layers.parts;
  const int part = layers.at[0].layer.first_part + static_cast<int>(blockIdx.x % layers.parts);
  int l = 0;
  while (part >= layers.at[l].layer.first_part + layers.at[l].layer.parts) ++l;
  const LayerGradient<T>& gradient = layers.at[l];
  const LayerMaps<T>& layer = gradient.layer;
  const GradientSums<A>* layer_sums = sums + gradient.first_tile;
  if (image == 0 && part == layer.first_part) {
    const A sum =
        weight_gradient(layer_sums, images, gradient.tiles, tiles_per_image, weight_scratch);
    if (threadIdx.x == 0) grad_weights[l] = sum;
  }
  const Normalized<A> map = layer_normalization(
      layer, output, layer_stats + image * output.parts, &shared_map);
  const GradientSums<A> all =
      merge_sums(layer_sums + image * tiles_per_image, gradient.tiles, sums_scratch);
  const NormGradient<A> gradient_of =
      normalization_gradient(map.stats, map.affine, output.layer_norm, weights[l], all);
  const bool usable = finite[image];
  const int64_t first = (part - layer.first_part) * layer.part_length;
  const int64_t rest = layer.pixels() - first, begin = image * layer.pixels() + first;
  const A* resized = gradient.resized == nullptr ? upstream : gradient.resized;
  visit_pairs(resized + begin, layer.maps + begin,
              rest < layer.part_length ? rest : layer.part_length,
              [&](int64_t i, A g, A value) {
                gradient.grad[begin + i] = from_acc<T>(usable ? gradient_of(value, g) : A(0));
              });
}

}  // namespace wsfast::fusion
