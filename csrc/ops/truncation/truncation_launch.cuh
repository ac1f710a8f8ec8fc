// The launches of the truncation ops, for truncation_cuda.cu and the emulator alike. No torch.
#pragma once

#include <algorithm>

#include "truncation_cam_kernels.cuh"
#include "truncation_percentile_kernels.cuh"

namespace wsfast::truncation {

inline constexpr int64_t kLongRow = int64_t{1} << 17;   // longer rows are counted by many blocks
inline constexpr int64_t kSmallMap = int64_t{1} << 14;  // a thread per pixel of these is too few

inline dim3 blocks_for(int64_t threads) { return grid_of(threads, kThreads); }

// The maps of a call, and how many of them share a threshold.
struct Maps {
  int64_t samples, channels, pixels;
  bool per_sample;

  int64_t count() const { return samples * channels; }
  int64_t per_row() const { return per_sample ? channels : 1; }
  int64_t rows() const { return per_sample ? samples : count(); }
  int64_t row_length() const { return per_row() * pixels; }
  int64_t tiles() const { return ceil_div(row_length(), kTileLength); }  // of a row
};

// What selects the threshold of a row.
enum class Selector {
  warp_256,    // a warp that holds up to as many values
  warp_1024,
  block_128,   // a block of as many threads, the row in its shared memory
  block_256,
  block_most,
  uncached,    // a block of the most threads that reads the row digit by digit
  tiles,       // many blocks
  wide_tiles,  // many blocks that count in 64 bits
};

// Bytes of shared memory that the longest rows of select_row_kernel can not have.
template <class T>
inline constexpr int64_t kSharedElsewhere =
    kListed<T, kMostThreads<T>> * sizeof(T) + kBins * sizeof(uint32_t) + 1024;

// shared_bytes: what a block may have at most.
template <class T>
Selector selector_for(int64_t row_length, int64_t shared_bytes) {
  if (row_length > UINT32_MAX) return Selector::wide_tiles;
  if (row_length > kLongRow) return Selector::tiles;
  if (row_length <= 256) return Selector::warp_256;
  // A lane's 32 keys of 64 bits would take too many registers.
  if (sizeof(T) < 8 && row_length <= 1024) return Selector::warp_1024;
  const int64_t row_bytes = row_length * static_cast<int64_t>(sizeof(T));
  if (row_bytes + kSharedElsewhere<T> > shared_bytes) return Selector::uncached;
  if (row_length <= 4096) return Selector::block_128;
  return row_length <= 16384 ? Selector::block_256 : Selector::block_most;
}

// Any selector that takes rows of this type and length gives the same result; the rounding of a CAM's
// sums depends on `groups`.
struct Choice {
  Selector selector;
  int groups;           // threads that share a pixel of a CAM
  int64_t most_blocks;  // of a CAM
};

// Groups depend on a map's size alone, so that no sum depends on the batch.
template <class T>
Choice choice_for(const Maps& maps, int64_t shared_bytes) {
  return {selector_for<T>(maps.row_length(), shared_bytes),
          maps.pixels <= kSmallMap ? kChannelGroups : 1, kMostBlocks};
}

// A whole call: maps, percentile and choices. Buffers belong to the caller.
template <class T>
class Truncation {
 public:
  using A = acc_t<T>;
  using Key = typename RowKey<T>::Key;

  // Zeros, for rows of many blocks alone.
  struct Scratch {
    Selection<Key>* selections;  // a row each
    void* histograms;            // histogram_bytes()
  };

  // A threshold of each row and, where not null, the truncated gradients and the mean kept gradient
  // of each map.
  struct Kept {
    T* thresholds;
    T* truncated;
    A* weights;
  };

  Truncation(const Maps& maps, double percentile, int64_t shared_bytes, const Choice& choice)
      : maps_(maps), percentile_(percentile), shared_bytes_(shared_bytes), choice_(choice) {}
  Truncation(const Maps& maps, double percentile, int64_t shared_bytes)
      : Truncation(maps, percentile, shared_bytes, choice_for<T>(maps, shared_bytes)) {}

  const Maps& maps() const { return maps_; }
  bool has_tiles() const { return choice_.selector >= Selector::tiles; }
  int64_t histogram_bytes() const {
    const bool wide = choice_.selector == Selector::wide_tiles;
    return maps_.rows() * kBins * static_cast<int64_t>(wide ? sizeof(Wide) : sizeof(uint32_t));
  }

  void select(const T* grads, const Scratch& scratch, const Kept& kept,
              [[maybe_unused]] cudaStream_t stream) const {
    if (maps_.count() * maps_.pixels == 0) return;
    const bool weigh_apart = kept.weights != nullptr && (has_tiles() || maps_.per_sample);
    select_rows(grads, scratch,
                {kept.thresholds, kept.truncated, weigh_apart ? nullptr : kept.weights}, stream);
    if (has_tiles() && kept.truncated != nullptr) {
      WS_LAUNCH(keep_kernel<T>, tile_grid(), dim3(kThreads), 0, stream, grads, maps_.row_length(),
                maps_.tiles(), kept.thresholds, kept.truncated);
    }
    if (weigh_apart) {
      WS_LAUNCH(map_weight_kernel<T>, grid(maps_.count()), dim3(kThreads), 0, stream, grads,
                maps_.pixels, maps_.per_row(), kept.thresholds, kept.weights);
    }
  }

  // The interpolated percentiles. `below`: zeros, of a row each, for rows of many blocks alone.
  void interpolate(const T* grads, const T* thresholds, Below<Key>* below, T* out,
                   [[maybe_unused]] cudaStream_t stream) const {
    const int64_t rows = maps_.rows(), n = maps_.row_length();
    if (!has_tiles()) {
      WS_LAUNCH(interpolate_kernel<T>, grid(rows), dim3(kThreads), 0, stream, grads, n, percentile_,
                thresholds, out);
      return;
    }
    WS_LAUNCH(look_below_kernel<T>, tile_grid(), dim3(kThreads), 0, stream, grads, n,
              maps_.tiles(), thresholds, below);
    WS_LAUNCH(interpolate_long_kernel<T>, blocks_for(rows), dim3(kThreads), 0, stream, below, rows,
              percentile_, thresholds, out);
  }

  template <class Out>
  void grad_cam(const T* activations, const A* weights, Out* cams,
                [[maybe_unused]] cudaStream_t stream) const {
    if (maps_.samples * maps_.pixels == 0) return;
    const auto kernel = weighted_cam_kernel<T, Out>;
    WS_LAUNCH(kernel, cam_grid(), dim3(kThreads), 0, stream, activations, weights, maps_.samples,
              maps_.channels, maps_.pixels, choice_.groups, cams);
  }

  template <class Out>
  void layer_cam(const T* activations, const T* grads, const T* thresholds, Out* cams,
                 [[maybe_unused]] cudaStream_t stream) const {
    if (maps_.samples * maps_.pixels == 0) return;
    const auto kernel = kept_product_cam_kernel<T, Out>;
    WS_LAUNCH(kernel, cam_grid(), dim3(kThreads), 0, stream, activations, grads, thresholds,
              maps_.per_row(), maps_.samples, maps_.channels, maps_.pixels, choice_.groups, cams);
  }

 private:
  using Wide = unsigned long long;

  static dim3 grid(int64_t blocks) { return dim3(static_cast<unsigned>(blocks)); }
  dim3 tile_grid() const { return grid(maps_.rows() * maps_.tiles()); }
  dim3 cam_grid() const {
    return grid_of(maps_.samples * maps_.pixels * choice_.groups, kThreads, choice_.most_blocks);
  }

  void select_rows(const T* grads, const Scratch& scratch, const Kept& kept,
                   cudaStream_t stream) const {
    switch (choice_.selector) {
      case Selector::warp_256:
        return select_by_warps<8>(grads, kept, stream);
      case Selector::warp_1024:
        if constexpr (sizeof(T) < 8) select_by_warps<32>(grads, kept, stream);
        return;
      case Selector::block_128:
        return select_by_blocks<true, 128>(grads, kept, stream);
      case Selector::block_256:
        return select_by_blocks<true, 256>(grads, kept, stream);
      case Selector::block_most:
        return select_by_blocks<true, kMostThreads<T>>(grads, kept, stream);
      case Selector::uncached:
        return select_by_blocks<false, kMostThreads<T>>(grads, kept, stream);
      case Selector::tiles:
        return select_by_tiles<uint32_t>(grads, scratch, kept.thresholds, stream);
      case Selector::wide_tiles:
        return select_by_tiles<Wide>(grads, scratch, kept.thresholds, stream);
    }
  }

  template <int PerLane>
  void select_by_warps(const T* grads, const Kept& kept,
                       [[maybe_unused]] cudaStream_t stream) const {
    const auto kernel = select_short_row_kernel<T, PerLane>;
    WS_LAUNCH(kernel, grid(ceil_div(maps_.rows() * kWarpSize, kShortThreads)), dim3(kShortThreads),
              0, stream, grads, maps_.rows(), maps_.row_length(), percentile_, kept.thresholds,
              kept.truncated, kept.weights);
  }

  template <bool Cached, int Threads>
  void select_by_blocks(const T* grads, const Kept& kept,
                        [[maybe_unused]] cudaStream_t stream) const {
    const auto kernel = select_row_kernel<T, Cached, Threads>;
    const int64_t n = maps_.row_length();
    // Always the same bytes: another thread may set them between here and the launch.
    if (Cached) allow_dynamic_shared(kernel, shared_bytes_ - kSharedElsewhere<T>);
    WS_LAUNCH(kernel, grid(maps_.rows()), dim3(Threads), Cached ? n * sizeof(T) : 0, stream, grads,
              n, percentile_, kept.thresholds, kept.truncated, kept.weights);
  }

  // Count holds the number of values of a row.
  template <class Count>
  void select_by_tiles(const T* grads, const Scratch& scratch, T* thresholds,
                       [[maybe_unused]] cudaStream_t stream) const {
    const auto count = count_digits_kernel<T, Count>;
    const auto pick = pick_digit_kernel<T, Count>;
    auto* const histograms = static_cast<Count*>(scratch.histograms);
    for (int level = 0; level < kLevels<T>; ++level) {
      WS_LAUNCH(count, tile_grid(), dim3(kThreads), 0, stream, grads, maps_.row_length(),
                maps_.tiles(), level, scratch.selections, histograms);
      WS_LAUNCH(pick, grid(maps_.rows()), dim3(kThreads), 0, stream, histograms, level, percentile_,
                scratch.selections, thresholds);
    }
  }

  Maps maps_;
  double percentile_;
  int64_t shared_bytes_;
  Choice choice_;
};

}  // namespace wsfast::truncation
