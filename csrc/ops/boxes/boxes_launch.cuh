// The launches of the boxes ops, for boxes_cuda.cu and the emulator alike. No torch.
#pragma once

#include <algorithm>
#include <bit>

#include "boxes_slots.cuh"

namespace wsfast::boxes {

inline constexpr int64_t kPartPixels = 8192;  // pixels of a map that one block counts, at least
inline constexpr int64_t kMostParts = 256;

inline dim3 blocks_for(int64_t threads) { return grid_of(threads, kThreads); }

inline dim3 block_per_image(int64_t images) { return dim3(static_cast<unsigned>(images)); }

// The components of a batch of masks or maps. Buffers belong to the caller.
class Components {
 public:
  Components(int64_t images, int64_t height, int64_t width, int64_t connectivity)
      : grid_{images, static_cast<int>(height), static_cast<int>(width),
              static_cast<int>(ceil_div(width, kWordBits)),
              static_cast<int>(ceil_div(width, 2) *
                               (connectivity == 8 ? ceil_div(height, 2) : height)),
              connectivity == 8} {}

  int64_t bits_count() const { return grid_.words(); }
  int64_t parents_count() const { return grid_.images * grid_.pixels(); }
  int64_t row_roots_count() const { return grid_.rows(); }
  int64_t sizes_count() const { return grid_.images * grid_.most_components; }
  // Keys of one image: room for sorting as many as there can be slots in use.
  int64_t key_capacity(int64_t max_boxes) const {
    const auto slots = static_cast<uint64_t>(std::min<int64_t>(max_boxes, grid_.most_components));
    return static_cast<int64_t>(std::bit_ceil(std::max<uint64_t>(1, slots)));
  }

  void label_masks(const uint8_t* masks, const Labeling& labeling, int32_t* labels,
                   cudaStream_t stream) const {
    if (grid_.images == 0) return;
    find(masks, nullptr, labeling, {}, nullptr, stream);
    WS_LAUNCH(label_kernel, word_warps(), dim3(kThreads), 0, stream, grid_, labeling, labels);
  }

  void box_masks(const uint8_t* masks, const Labeling& labeling, const BoxSlots& out,
                 cudaStream_t stream) const {
    if (grid_.images == 0) return;
    find(masks, nullptr, labeling, {}, out.sizes, stream);
    box(labeling, out, stream);
  }

  template <class T>
  void box_maps(const T* maps, const acc_t<T>* thresholds, const Labeling& labeling,
                const MapFacts& facts, const BoxSlots& out, float* scores,
                cudaStream_t stream) const {
    if (grid_.images == 0) return;
    const int pixel_bits = static_cast<int>(std::bit_width(static_cast<uint64_t>(grid_.pixels())));
    WS_LAUNCH(begin_maps_kernel, blocks_for(grid_.images), dim3(kThreads), 0, stream, grid_.images,
              facts);
    find(maps, thresholds, labeling, facts, out.sizes, stream);
    box(labeling, out, stream);
    WS_LAUNCH(sum_kernel<T>, word_warps(), dim3(kThreads), 0, stream, grid_, maps, labeling,
              facts.exponents, pixel_bits, out);
    WS_LAUNCH(score_kernel, blocks_for(grid_.images * out.max_boxes), dim3(kThreads), 0, stream,
              grid_.images, facts.exponents, pixel_bits, out, scores);
  }

 private:
  // For kernels in which a warp takes kWarpWords words at a time.
  dim3 word_warps() const { return blocks_for(ceil_div(grid_.words(), kWarpWords) * kWarpSize); }

  // Components with their numbers; their counts are in labeling.counts.
  template <class T>
  void find(const T* images, const acc_t<T>* thresholds, const Labeling& labeling,
            const MapFacts& facts, int32_t* sizes, [[maybe_unused]] cudaStream_t stream) const {
    WS_LAUNCH(pack_kernel<T>, word_warps(), dim3(kThreads), 0, stream, grid_, images, thresholds,
              labeling, facts);
    WS_LAUNCH(join_kernel, blocks_for(grid_.words()), dim3(kThreads), 0, stream, grid_, labeling);
    const dim3 rows = blocks_for(grid_.rows() * kWarpSize);
    WS_LAUNCH(flatten_kernel, rows, dim3(kThreads), 0, stream, grid_, labeling);
    WS_LAUNCH(scan_rows_kernel, block_per_image(grid_.images), dim3(kBlockThreads), 0, stream,
              grid_, labeling);
    WS_LAUNCH(number_kernel, rows, dim3(kThreads), 0, stream, grid_, labeling, sizes);
  }

  void box(const Labeling& labeling, const BoxSlots& out,
           [[maybe_unused]] cudaStream_t stream) const {
    const dim3 words = blocks_for(grid_.words());
    WS_LAUNCH(size_kernel, words, dim3(kThreads), 0, stream, grid_, labeling, out.sizes);
    WS_LAUNCH(select_kernel, block_per_image(grid_.images), dim3(kBlockThreads), 0, stream, grid_,
              labeling.counts, out);
    WS_LAUNCH(box_kernel, words, dim3(kThreads), 0, stream, grid_, labeling, out);
  }

  Grid grid_;
};

// Otsu's level of every map; `histograms` has room for kLevels counts per image.
template <class T>
void find_otsu_levels(const T* maps, int64_t images, int64_t pixels, int64_t repeat,
                      uint32_t* histograms, int32_t* levels, bool* valid,
                      [[maybe_unused]] cudaStream_t stream) {
  if (images == 0) return;
  const int parts = static_cast<int>(std::clamp<int64_t>(pixels / kPartPixels, 1, kMostParts));
  WS_LAUNCH(begin_histograms_kernel, blocks_for(images * kLevels), dim3(kThreads), 0, stream,
            images, histograms, valid);
  WS_LAUNCH(histogram_kernel<T>, block_per_image(images * parts), dim3(kBlockThreads), 0, stream,
            maps, pixels, parts, histograms, valid);
  WS_LAUNCH(otsu_kernel, block_per_image(images), dim3(kWarpSize), 0, stream, histograms, repeat,
            levels);
}

}  // namespace wsfast::boxes
