// The truncation kernels, launched as truncation_cuda.cu launches them.
#include "../../csrc/ops/truncation/truncation_cam_kernels.cuh"
#include "bind.h"

namespace wsfast::bind {
namespace {

namespace tr = wsfast::truncation;

unsigned to_unsigned(int64_t value) { return static_cast<unsigned>(value); }

template <class T, class Count>
void select_long_rows(const T* grads, int64_t rows, int64_t n, double percentile, T* thresholds,
                      T* truncated) {
  using State = tr::Selection<typename tr::RowKey<T>::Key>;
  const dim3 block(tr::kThreads), grid(to_unsigned(rows));
  const int64_t tiles = ceil_div(n, tr::kTileLength);
  DeviceArray<Count> histograms(rows * tr::kBins);
  DeviceArray<State> states(rows);
  histograms.zero();
  states.zero();
  const auto count = tr::count_digits_kernel<T, Count>;
  const auto pick = tr::pick_digit_kernel<T, Count>;
  for (int level = 0; level < tr::kLevels<T>; ++level) {
    WS_LAUNCH(count, dim3(to_unsigned(rows * tiles)), block, 0, nullptr, grads, n, tiles, level,
              states.data(), histograms.data());
    WS_LAUNCH(pick, grid, block, 0, nullptr, histograms.data(), level, percentile, states.data(),
              thresholds);
  }
  WS_LAUNCH(tr::keep_kernel<T>, dim3(to_unsigned(rows * tiles)), block, 0, nullptr, grads, n, tiles,
            thresholds, truncated);
}

template <class T, int PerLane>
void select_by_warps(const T* grads, int64_t rows, int64_t n, double percentile, T* thresholds,
                     T* truncated, acc_t<T>* weights) {
  const auto kernel = tr::select_short_row_kernel<T, PerLane>;
  const int64_t blocks = ceil_div(rows * kWarpSize, tr::kShortThreads);
  WS_LAUNCH(kernel, dim3(to_unsigned(blocks)), dim3(tr::kShortThreads), 0, nullptr, grads, rows, n,
            percentile, thresholds, truncated, weights);
}

template <class T, bool Cached, int Threads>
void select_by_blocks(const T* grads, int64_t rows, int64_t n, double percentile, T* thresholds,
                      T* truncated, acc_t<T>* weights) {
  const auto kernel = tr::select_row_kernel<T, Cached, Threads>;
  WS_LAUNCH(kernel, dim3(to_unsigned(rows)), dim3(Threads), Cached ? n * sizeof(T) : 0, nullptr,
            grads, n, percentile, thresholds, truncated, weights);
}

template <class T>
void select_rows(const std::string& path, const T* grads, int64_t rows, int64_t n,
                 double percentile, T* thresholds, T* truncated, acc_t<T>* weights) {
  const auto select = [&](auto function) {
    function(grads, rows, n, percentile, thresholds, truncated, weights);
  };
  if (path == "warp" && n <= 8 * kWarpSize) return select(select_by_warps<T, 8>);
  if (path == "warp") return select(select_by_warps<T, 32>);
  if (path == "block 128") return select(select_by_blocks<T, true, 128>);
  if (path == "block 256") return select(select_by_blocks<T, true, 256>);
  if (path == "block") return select(select_by_blocks<T, true, tr::kMostThreads<T>>);
  if (path == "uncached") return select(select_by_blocks<T, false, tr::kMostThreads<T>>);
  if (path == "long") {
    select_long_rows<T, uint32_t>(grads, rows, n, percentile, thresholds, truncated);
  } else {
    select_long_rows<T, unsigned long long>(grads, rows, n, percentile, thresholds, truncated);
  }
}

template <class T>
void interpolate_long_rows(const T* grads, int64_t rows, int64_t n, double percentile,
                           const T* thresholds, T* out) {
  const dim3 block(tr::kThreads);
  const int64_t tiles = ceil_div(n, tr::kTileLength);
  DeviceArray<tr::Below<typename tr::RowKey<T>::Key>> below(rows);
  below.zero();
  WS_LAUNCH(tr::look_below_kernel<T>, dim3(to_unsigned(rows * tiles)), block, 0, nullptr, grads, n,
            tiles, thresholds, below.data());
  WS_LAUNCH(tr::interpolate_long_kernel<T>, dim3(to_unsigned(ceil_div(rows, tr::kThreads))), block,
            0, nullptr, below.data(), rows, percentile, thresholds, out);
}

template <class T>
py::tuple truncation(const Array<T>& activations, const Array<T>& grads, double percentile,
                     bool per_sample, const std::string& path, int groups) {
  const int64_t samples = grads.shape(0), channels = grads.shape(1);
  const int64_t pixels = grads.shape(2) * grads.shape(3);
  const int64_t rows = per_sample ? samples : samples * channels;
  const int64_t n = per_sample ? channels * pixels : pixels;
  const int64_t maps_per_row = per_sample ? channels : 1;
  const dim3 block(tr::kThreads);
  DeviceArray<T> a(activations), g(grads), thresholds(rows), deltas(rows), truncated(g.count());
  DeviceArray<acc_t<T>> weights(samples * channels);
  DeviceArray<T> gradcams(samples * pixels), layercams(samples * pixels);
  select_rows<T>(path, g.data(), rows, n, percentile, thresholds.data(), truncated.data(),
                 nullptr);
  const bool long_rows = path == "long" || path == "longest";
  if (long_rows) {
    interpolate_long_rows(g.data(), rows, n, percentile, thresholds.data(), deltas.data());
  } else {
    WS_LAUNCH(tr::interpolate_kernel<T>, dim3(to_unsigned(rows)), block, 0, nullptr, g.data(), n,
              percentile, thresholds.data(), deltas.data());
  }
  if (!per_sample && !long_rows) {  // as CAMs ask: weights, no rows
    select_rows<T>(path, g.data(), rows, n, percentile, thresholds.data(), nullptr, weights.data());
  } else {
    WS_LAUNCH(tr::map_weight_kernel<T>, dim3(to_unsigned(samples * channels)), block, 0, nullptr,
              g.data(), pixels, maps_per_row, thresholds.data(), weights.data());
  }
  const auto weighted = tr::weighted_cam_kernel<T, T>;
  WS_LAUNCH(weighted, dim3(2), block, 0, nullptr, a.data(), weights.data(), samples, channels,
            pixels, groups, gradcams.data());
  const auto product = tr::kept_product_cam_kernel<T, T>;
  WS_LAUNCH(product, dim3(2), block, 0, nullptr, a.data(), g.data(), thresholds.data(),
            maps_per_row, samples, channels, pixels, groups, layercams.data());
  const std::vector<py::ssize_t> map_shape = {grads.shape(0), grads.shape(2), grads.shape(3)};
  return py::make_tuple(truncated.numpy({grads.shape(0), grads.shape(1), grads.shape(2),
                                         grads.shape(3)}),
                        deltas.numpy(), gradcams.numpy(map_shape), layercams.numpy(map_shape),
                        weights.numpy({grads.shape(0), grads.shape(1)}));
}

}  // namespace

void bind_truncation(py::module_& m) {
  def_floating(m, "truncation", []<class Tag>(Tag) { return &truncation<typename Tag::type>; });
}

}  // namespace wsfast::bind
