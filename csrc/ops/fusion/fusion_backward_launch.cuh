// The launches of one fuse_cams_backward call, for fusion_cuda.cu and the emulator alike. No torch.
#pragma once

#include "fusion_backward_kernels.cuh"
#include "fusion_launch.cuh"

namespace wsfast::fusion {

// The gradient of a Fusion that sums. The buffers belong to the caller.
template <class T>
class FusionGradient {
 public:
  using A = acc_t<T>;

  struct Buffers {
    Stats<A>* layer_stats;         // layer_stats_count() of the Fusion
    Stats<A>* tile_stats;          // tile_stats_count() of the Fusion
    A* upstream;                   // output pixels
    A* resized;                    // resized_count()
    bool* finite;                  // images
    GradientSums<A>* output_sums;  // output_sums_count()
    GradientSums<A>* layer_sums;   // layer_sums_count()
  };

  // `fusion` has all its layers; `grads` are like them, in their order.
  FusionGradient(const Fusion<T>& fusion, const std::vector<T*>& grads) : fusion_(fusion) {
    const Output& output = fusion.output();
    for (size_t l = 0; l < grads.size(); ++l) {
      const LayerMaps<T>& layer = fusion.layers()[l];
      // A thread reads the output rows in reach of its rows, and more per row in smaller layers.
      const int64_t rows = std::clamp<int64_t>(
          int64_t{2} * kMostRows * layer.height / output.height, 1, kMostRows);
      const int64_t columns = ceil_div(int64_t{layer.width}, kGradientThreads);
      const int64_t tiles = ceil_div(int64_t{layer.height}, rows) * columns;
      layers_.push_back({layer, nullptr, grads[l], static_cast<int>(rows),
                         static_cast<int>(columns), static_cast<int>(tiles_),
                         static_cast<int>(tiles)});
      tiles_ += tiles;
      if (!fusion.at_output_size(layer)) resized_ += layer.pixels();
    }
  }

  int64_t output_sums_count() const { return fusion_.images() * fusion_.spans(); }
  int64_t layer_sums_count() const { return fusion_.images() * tiles_; }
  // The gradients of float and double layers are resized in their place.
  int64_t resized_count() const {
    return std::is_same_v<T, A> ? 0 : fusion_.images() * resized_;
  }
  int64_t largest_grid() const {
    return std::max(fusion_.largest_grid(), fusion_.images() * tiles_);
  }

  // `grad` is that of the output.
  void launch(const T* grad, const A* weights, const Buffers& buffers, A* grad_weights,
              [[maybe_unused]] cudaStream_t stream) const {
    if (fusion_.images() == 0) return;
    fusion_.measure(buffers.layer_stats, stream);
    const A* upstream = through_norm(grad, weights, buffers, stream);
    A* resized = buffers.resized;
    for (size_t first = 0; first < layers_.size(); first += kLayersPerLaunch) {
      const LayerGradients<T> layers = chunk(first, &resized);
      WS_LAUNCH(resize_gradient_kernel<T>, grid(layers.tiles), dim3(kGradientThreads), 0, stream,
                layers, fusion_.output(), upstream, buffers.layer_stats,
                buffers.finite, static_cast<int>(tiles_), buffers.layer_sums);
      WS_LAUNCH(layer_gradient_kernel<T>, grid(layers.parts), dim3(kGradientThreads), 0, stream,
                layers, fusion_.output(), fusion_.images(), upstream, weights + first,
                buffers.layer_stats, buffers.finite, static_cast<int>(tiles_), buffers.layer_sums,
                grad_weights + first);
    }
  }

 private:
  dim3 grid(int64_t blocks_per_image) const {
    return dim3(static_cast<unsigned>(fusion_.images() * blocks_per_image));
  }

  // The gradient of what was fused, before its normalisation.
  const A* through_norm(const T* grad, const A* weights, const Buffers& buffers,
                        [[maybe_unused]] cudaStream_t stream) const {
    const Norm norm = fusion_.norm();
    const Output& output = fusion_.output();
    if (norm == Norm::none) {
      WS_LAUNCH(finite_kernel<A>, grid(1), dim3(kWarpSize), 0, stream, buffers.layer_stats,
                output.parts, buffers.finite);
      if constexpr (std::is_same_v<T, A>) return grad;
    }
    const FusedMaps<A> maps = {int64_t{output.height} * output.width, fusion_.span_length(),
                               static_cast<int>(fusion_.spans()), buffers.tile_stats, output.tiles,
                               norm, output.eps};
    if (norm != Norm::none) {
      fusion_.reduce(weights, buffers.layer_stats, buffers.upstream, buffers.tile_stats,
                     buffers.finite, stream);
      WS_LAUNCH(output_sums_kernel<T>, grid(maps.spans), dim3(kGradientThreads), 0, stream, maps,
                grad, buffers.upstream, buffers.finite, buffers.output_sums);
    }
    WS_LAUNCH(output_gradient_kernel<T>, grid(maps.spans), dim3(kGradientThreads), 0, stream, maps,
              grad, buffers.upstream, buffers.finite, buffers.output_sums, buffers.upstream);
    return buffers.upstream;
  }

  // Layers of one launch; `*resized` is where the memory for those of half types begins.
  LayerGradients<T> chunk(size_t first, A** resized) const {
    LayerGradients<T> layers = {};
    const size_t end = std::min(first + kLayersPerLaunch, layers_.size());
    for (size_t l = first; l < end; ++l) {
      LayerGradient<T> gradient = layers_[l];
      if (!fusion_.at_output_size(gradient.layer)) {
        if constexpr (std::is_same_v<T, A>) {
          gradient.resized = gradient.grad;
        } else {
          gradient.resized = *resized;
          *resized += fusion_.images() * gradient.layer.pixels();
        }
      }
      layers.at[layers.count++] = gradient;
      layers.tiles += gradient.tiles;
      layers.parts += gradient.layer.parts;
    }
    return layers;
  }

  const Fusion<T>& fusion_;
  int64_t tiles_ = 0, resized_ = 0;  // of one image
  std::vector<LayerGradient<T>> layers_;
};

}  // namespace wsfast::fusion
