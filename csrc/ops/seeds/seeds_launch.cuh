// The launches of the seeds room's ops, for seeds_cuda.cu and the emulator alike. No torch.
#pragma once

#include "seeds_kernels.cuh"

namespace wsfast::seeds {

inline void launch_keys(const uint64_t* seed, const uint64_t* image_ids, int64_t images,
                        uint64_t epoch, uint64_t* keys, [[maybe_unused]] cudaStream_t stream) {
  if (images == 0) return;
  WS_LAUNCH(keys_kernel, grid_of(images, kThreads), dim3(kThreads), 0, stream, seed, image_ids,
            images, epoch, keys);
}

inline void launch_seeds(const Batch& batch, const Options& options,
                         [[maybe_unused]] cudaStream_t stream) {
  const int64_t pixels = batch.images * batch.pixels();
  if (pixels == 0) return;
  const dim3 images(static_cast<unsigned>(batch.images));
  const dim3 windows = grid_of(pixels, kThreads);
  WS_LAUNCH(region_kernel, images, dim3(kBlockThreads), 0, stream, batch, options);
  if (options.erode_radius > 0) {
    WS_LAUNCH(erode_rows_kernel, windows, dim3(kThreads), 0, stream, batch, options.erode_radius);
    WS_LAUNCH(erode_columns_kernel, windows, dim3(kThreads), 0, stream, batch,
              options.erode_radius);
  }
  WS_LAUNCH(draw_kernel, images, dim3(kBlockThreads), 0, stream, batch, options);
  WS_LAUNCH(claim_rows_kernel, windows, dim3(kThreads), 0, stream, batch, options.dilate_radius);
  WS_LAUNCH(write_seeds_kernel, windows, dim3(kThreads), 0, stream, batch, options.dilate_radius);
}

}  // namespace wsfast::seeds
