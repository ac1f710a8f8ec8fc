// CUDA kernels of the truncation room's CAMs: the maps' weights, and sums over channels in a fixed
// order. No torch: the emulator runs this file on the CPU.
#pragma once

#include "truncation_kernels.cuh"

namespace wsfast::truncation {

inline constexpr int kChannelGroups = 16;  // threads that share a pixel of a small map's CAM

// One block per map: the mean of its kept gradients (LTGrad-CAM eq. 9). `maps_per_row` maps share
// a threshold.
template <class T>
WS_GLOBAL void __launch_bounds__(kThreads)
    map_weight_kernel(const T* grads, int64_t pixels, int64_t maps_per_row, const T* thresholds,
                      acc_t<T>* weights) {
  const int64_t map = blockIdx.x;
  const acc_t<T> threshold = to_acc(thresholds[map / maps_per_row]);
  const acc_t<T> sum = kept_sum<kThreads>(grads + map * pixels, pixels, threshold);
  if (threadIdx.x == 0) weights[map] = sum / static_cast<acc_t<T>>(pixels);
}

template <class A>
WS_DEVICE A relu_keeping_nan(A x) {
  return x < A(0) ? A(0) : x;
}

// Blocks of an SM between which the registers of CAM kernels are shared out.
template <class T>
inline constexpr int kCamBlocks = sizeof(T) == 8 ? 1 : 2;

// cams = relu(the sum over channels), kThreads / groups pixels of the samples at a time. Each of a
// pixel's `groups` threads sums as many channels, sum_channels(sample, pixel, begin, end); the
// first adds their sums in order.
template <class A, class Out, class SumChannels>
WS_DEVICE void write_cams(int64_t samples, int64_t channels, int64_t pixels, int groups, Out* cams,
                          const SumChannels& sum_channels) {
  __shared__ A parts[kThreads];
  const int slots = kThreads / groups, slot = threadIdx.x % slots, group = threadIdx.x / slots;
  const int64_t share = ceil_div(channels, groups), total = samples * pixels;
  const int64_t begin = group * share, end = begin + share < channels ? begin + share : channels;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * slots; first < total;
       first += static_cast<int64_t>(gridDim.x) * slots) {
    const int64_t i = first + slot, sample = i / pixels;
    if (i < total) {
      parts[threadIdx.x] = sum_channels(sample, i - sample * pixels, static_cast<int>(begin),
                                        static_cast<int>(end));
    }
    __syncthreads();
    if (group == 0 && i < total) {
      A sum = parts[slot];
      for (int g = 1; g < groups; ++g) sum += parts[g * slots + slot];
      cams[i] = from_acc<Out>(relu_keeping_nan(sum));
    }
    __syncthreads();
  }
}

// relu(sum_k w_k A_k). A channel of weight 0 adds nothing, whatever it holds.
template <class T, class Out>
WS_GLOBAL void __launch_bounds__(kThreads, kCamBlocks<T>)
    weighted_cam_kernel(const T* activations, const acc_t<T>* weights, int64_t samples,
                        int64_t channels, int64_t pixels, int groups, Out* cams) {
  using A = acc_t<T>;
  constexpr int at_once = 16;
  const auto sum_channels = [&](int64_t sample, int64_t pixel, int begin, int end) {
    const A* weight = weights + sample * channels;
    const T* activation = activations + sample * channels * pixels + pixel;
    A sum = 0;
    for (int first = begin; first < end; first += at_once) {
      A w[at_once];
      T a[at_once];
      for (int k = 0; k < at_once; ++k) {  // all of them, so that no load waits for another
        const bool inside = first + k < end;
        w[k] = inside ? weight[first + k] : A(0);
        a[k] = inside ? activation[(first + k) * pixels] : T();
      }
      for (int k = 0; k < at_once; ++k) sum += w[k] * (w[k] != A(0) ? to_acc(a[k]) : A(0));
    }
    return sum;
  };
  write_cams<A>(samples, channels, pixels, groups, cams, sum_channels);
}

// relu(sum_k T(g_k) A_k). `maps_per_row`, 1 or `channels`, maps share a threshold.
template <class T, class Out>
WS_GLOBAL void __launch_bounds__(kThreads, kCamBlocks<T>)
    kept_product_cam_kernel(const T* activations, const T* grads, const T* thresholds,
                            int64_t maps_per_row, int64_t samples, int64_t channels,
                            int64_t pixels, int groups, Out* cams) {
  using A = acc_t<T>;
  constexpr int at_once = 8;  // of three loads each
  const auto sum_channels = [&](int64_t sample, int64_t pixel, int begin, int end) {
    const int64_t first_map = sample * channels;
    A sum = 0;
    for (int first = begin; first < end; first += at_once) {
      T threshold[at_once], g[at_once], a[at_once];
      for (int k = 0; k < at_once; ++k) {
        const bool inside = first + k < end;
        const int64_t map = first_map + first + k;
        threshold[k] = inside ? thresholds[maps_per_row == 1 ? map : sample] : T();
        g[k] = inside ? grads[map * pixels + pixel] : T();
        a[k] = inside ? activations[map * pixels + pixel] : T();
      }
      for (int k = 0; k < at_once; ++k) {
        const A kept = to_acc(g[k]) >= to_acc(threshold[k]) ? to_acc(g[k]) : A(0);
        sum += kept * to_acc(a[k]);
      }
    }
    return sum;
  };
  write_cams<A>(samples, channels, pixels, groups, cams, sum_channels);
}

}  // namespace wsfast::truncation
