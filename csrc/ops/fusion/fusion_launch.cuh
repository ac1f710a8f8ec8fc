// The launches of one fuse_cams call, for fusion_cuda.cu and the emulator alike. No torch.
#pragma once

#include <algorithm>
#include <vector>

#include "fusion_kernels.cuh"

namespace wsfast::fusion {

inline constexpr int64_t kPartLength = 8192;  // pixels of a map that one block measures, at least
inline constexpr int64_t kMostParts = 128;
inline constexpr int64_t kSpanLength = 4096;  // pixels that one block normalises, at least
inline constexpr int64_t kMostSpans = 1024;
inline constexpr int64_t kLargestSide = int64_t{1} << 30;  // positions inside a map are int

// A whole call: layers, options and sizes. The buffers belong to the caller.
template <class T>
class Fusion {
 public:
  using A = acc_t<T>;

  struct Buffers {
    Stats<A>* layer_stats;  // layer_stats_count()
    Stats<A>* tile_stats;   // tile_stats_count()
    A* reduced;             // output pixels where needs_reduced()
    T* out;
    bool* finite;
  };

  Fusion(int64_t images, int64_t height, int64_t width, Norm layer_norm, Reduce reduce, Norm norm,
         double eps)
      : images_(images), norm_(norm) {
    const int64_t columns = ceil_div(width, kTileColumns);
    output_ = {static_cast<int>(height),
               static_cast<int>(width),
               static_cast<int>(columns),
               static_cast<int>(columns * ceil_div(height, kTileRows)),
               0,
               layer_norm,
               reduce,
               eps};
    const int64_t share = ceil_div(height * width, kMostSpans * kPackedValues) * kPackedValues;
    span_length_ = std::max(kSpanLength, share);
    spans_ = ceil_div(height * width, span_length_);
  }

  void add_layer(const T* maps, int64_t height, int64_t width) {
    const int64_t part_length = std::max(kPartLength, ceil_div(height * width, kMostParts));
    const int parts = static_cast<int>(ceil_div(height * width, part_length));
    layers_.push_back({maps, static_cast<int>(height), static_cast<int>(width), output_.parts, parts,
                       part_length, static_cast<A>(height) / output_.height,
                       static_cast<A>(width) / output_.width});
    output_.parts += parts;
  }

  int64_t layer_stats_count() const { return images_ * output_.parts; }
  int64_t tile_stats_count() const { return images_ * output_.tiles; }
  // The blocks of the largest launch; CUDA takes 2^31 - 1.
  int64_t largest_grid() const {
    return images_ * std::max({int64_t{output_.parts}, int64_t{output_.tiles}, spans_});
  }
  // Half types keep the reduced values in float until nothing more is done with them.
  bool needs_reduced() const {
    return !std::is_same_v<T, A> && !only_normalizes() &&
           (norm_ != Norm::none || layers_.size() > kLayersPerLaunch);
  }

  void launch(const A* weights, const Buffers& buffers,
              [[maybe_unused]] cudaStream_t stream) const {
    if (images_ == 0) return;
    measure(buffers.layer_stats, stream);
    if (only_normalizes()) {
      normalize(layers_[0].maps, buffers.layer_stats, output_.parts, weights, buffers, stream);
    } else if constexpr (std::is_same_v<T, A>) {
      reduce_to(buffers.out, weights, buffers, stream);
      if (norm_ != Norm::none) normalize_reduced(buffers.out, buffers, stream);
    } else if (needs_reduced()) {
      reduce_to(buffers.reduced, weights, buffers, stream);
      normalize_reduced(buffers.reduced, buffers, stream);
    } else {
      reduce_to(buffers.out, weights, buffers, stream);
    }
  }

  // The launches that the gradient repeats.
  void measure(Stats<A>* layer_stats, [[maybe_unused]] cudaStream_t stream) const {
    for (size_t first = 0; first < layers_.size(); first += kLayersPerLaunch) {
      const Layers<T> layers = chunk(first);
      WS_LAUNCH(layer_stats_kernel<T>, grid(layers.parts), dim3(kStatsThreads), 0, stream, layers,
                output_.parts, layer_stats);
    }
  }

  template <class Out>
  void reduce(const A* weights, const Stats<A>* layer_stats, Out* reduced, Stats<A>* tile_stats,
              bool* finite, [[maybe_unused]] cudaStream_t stream) const {
    constexpr size_t taps = kTileRows * sizeof(RowTap<A>);  // of a layer
    constexpr size_t held = kHeldRows * kTileColumns * sizeof(A);
    static_assert(kLayersPerLaunch * taps + held < 44 * 1024, "with statics, a block has 48 KB");
    const auto kernel = reduce_kernel<T, Out>;
    for (size_t first = 0; first < layers_.size(); first += kLayersPerLaunch) {
      const Layers<T> layers = chunk(first);
      WS_LAUNCH(kernel, grid(output_.tiles), dim3(kReduceThreads), layers.count * taps + held,
                stream, layers, weights + first, output_, layer_stats, first > 0, reduced,
                tile_stats, finite);
    }
  }

  int64_t images() const { return images_; }
  int64_t spans() const { return spans_; }
  int64_t span_length() const { return span_length_; }
  Norm norm() const { return norm_; }
  const Output& output() const { return output_; }
  const std::vector<LayerMaps<T>>& layers() const { return layers_; }
  bool at_output_size(const LayerMaps<T>& layer) const {
    return layer.height == output_.height && layer.width == output_.width;
  }

 private:
  // One layer at the output's size that is normalised once: its statistics are the result's.
  bool only_normalizes() const {
    return layers_.size() == 1 && at_output_size(layers_[0]) &&
           output_.layer_norm == Norm::none && norm_ != Norm::none;
  }

  dim3 grid(int64_t blocks_per_image) const {
    return dim3(static_cast<unsigned>(images_ * blocks_per_image));
  }

  Layers<T> chunk(size_t first) const {
    Layers<T> layers = {};
    const size_t end = std::min(first + kLayersPerLaunch, layers_.size());
    for (size_t l = first; l < end; ++l) {
      layers.at[layers.count++] = layers_[l];
      layers.parts += layers_[l].parts;
    }
    return layers;
  }

  template <class Out>
  void reduce_to(Out* reduced, const A* weights, const Buffers& buffers,
                 cudaStream_t stream) const {
    reduce(weights, buffers.layer_stats, reduced, buffers.tile_stats, buffers.finite, stream);
  }

  void normalize_reduced(const A* reduced, const Buffers& buffers, cudaStream_t stream) const {
    normalize(reduced, buffers.tile_stats, output_.tiles, nullptr, buffers, stream);
  }

  template <class In>
  void normalize(const In* values, const Stats<A>* stats, int parts, const A* weight,
                 const Buffers& buffers, [[maybe_unused]] cudaStream_t stream) const {
    const int64_t pixels = static_cast<int64_t>(output_.height) * output_.width;
    const auto address = reinterpret_cast<uintptr_t>(values);
    const bool packed =
        pixels % kPackedValues == 0 && address % alignof(Pack<In, kPackedValues>) == 0;
    const Source<A, In> source = {values, stats, parts, weight, packed};
    const auto kernel = normalize_kernel<T, In>;
    WS_LAUNCH(kernel, grid(spans_), dim3(kNormalizeThreads), 0, stream, source, pixels,
              static_cast<int>(spans_), span_length_, norm_, output_.eps, buffers.out,
              buffers.finite);
  }

  int64_t images_, spans_, span_length_;
  Norm norm_;
  Output output_;
  std::vector<LayerMaps<T>> layers_;
};

}  // namespace wsfast::fusion
