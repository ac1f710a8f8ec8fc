// CUDA kernels of the seeds room: regions and draws by one block per image, squares by all of them.
// Whatever is chosen is the first n pixels of an order without equals, so nothing depends on
// scheduling. No torch: the emulator runs this file on the CPU.
#pragma once

#include "../boxes/boxes_otsu.cuh"
#include "seeds_math.h"

namespace wsfast::seeds {

inline constexpr int kThreads = 256;
inline constexpr int kBlockThreads = 512;  // where one block works on one image

// One thread per image.
WS_GLOBAL void __launch_bounds__(kThreads)
    keys_kernel(const uint64_t* seed, const uint64_t* image_ids, int64_t images, uint64_t epoch,
                uint64_t* keys) {
  for (int64_t n = global_thread_id(); n < images; n += global_thread_count()) {
    keys[n] = image_key(*seed, image_ids[n], epoch);
  }
}

// Bits of a pixel's mark.
inline constexpr int kInRegion = 1, kInShrunk = 2, kDrawnShift = 2;

// A batch and the memory to sample it in.
struct Batch {
  int64_t images;
  int height, width;
  const float* cams;
  const uint64_t* keys;
  const uint8_t* roi_masks;       // or null
  const int32_t* roi_boxes;       // or null
  const bool* background_only;    // or null
  uint8_t* marks;                 // per pixel
  uint8_t* rows;                  // per pixel: a square's reach along the row; while drawing, 1 in
                                  // the background region
  uint32_t* clocks;               // per pixel, null unless draws are weighted
  bool* varies;                   // per image: not constant in 8 bits
  bool* valid;                    // per image: free of NaN
  int64_t* seeds;

  WS_HD int64_t pixels() const { return static_cast<int64_t>(height) * width; }
};

// ---- one image ----------------------------------------------------------------------------------

struct Image {
  int64_t first;  // of its pixels in the batch
  int64_t pixels;
  int width;
  const float* cam;
  const uint8_t* roi_mask;
  const int32_t* roi_box;

  WS_DEVICE Image(const Batch& batch, int64_t image)
      : first(image * batch.pixels()),
        pixels(batch.pixels()),
        width(batch.width),
        cam(batch.cams + first),
        roi_mask(batch.roi_masks == nullptr ? nullptr : batch.roi_masks + first),
        roi_box(batch.roi_boxes == nullptr ? nullptr : batch.roi_boxes + image * 4) {}

  WS_DEVICE bool has_roi() const { return roi_mask != nullptr || roi_box != nullptr; }

  WS_DEVICE bool inside(int64_t pixel) const {
    if (roi_mask != nullptr) return roi_mask[pixel] != 0;
    if (roi_box == nullptr) return true;
    const auto place = static_cast<uint32_t>(pixel), columns = static_cast<uint32_t>(width);
    const auto x = static_cast<int32_t>(place % columns), y = static_cast<int32_t>(place / columns);
    return x >= roi_box[0] && x < roi_box[2] && y >= roi_box[1] && y < roi_box[3];
  }

  WS_DEVICE uint32_t bits(int64_t pixel) const { return clean_bits(cam[pixel]); }
};

// The stream, from a lane: what follows from the key alone, nvcc computes anew for every pixel.
WS_DEVICE inline Stream block_stream(uint64_t key, Purpose purpose) {
  return Stream(warp_shfl(Stream(key, purpose).word(), 0));
}

// Calls visit(pixel) for the image's pixels, shared out among the block's threads.
template <class Visit>
WS_DEVICE void for_pixels(const Image& image, const Visit& visit) {
  for (int64_t i = block_thread(); i < image.pixels; i += kBlockThreads) visit(i);
}

template <class Test>
WS_DEVICE int64_t count_pixels(const Image& image, int64_t* scratch, const Test& test) {
  int64_t count = 0;
  for_pixels(image, [&](int64_t pixel) { count += test(pixel); });
  return block_sum(count, scratch);
}

WS_DEVICE inline int64_t count_inside(const Image& image, int64_t* scratch) {
  if (!image.has_roi()) return image.pixels;
  return count_pixels(image, scratch, [&](int64_t pixel) { return image.inside(pixel); });
}

// The low word of a pixel's order where the digit at `shift` is wanted: a hash, if that is below 32.
WS_DEVICE inline uint32_t tie(const Stream& ties, int64_t pixel, int shift) {
  return shift < 32 ? ties(static_cast<uint32_t>(pixel)) : 0;
}

// What a block shares while it looks for a cutoff.
struct Digits {
  int64_t sums[kBlockThreads / kWarpSize];  // scratch of block sums
  uint32_t counts[256];
  int digit;
  int64_t wanted;
  bool whole;
};

// By the first warp: the digit in which the wanted-th falls, and how many of that digit are wanted.
WS_DEVICE inline void pick_digit(Digits& shared, int64_t wanted) {
  constexpr int bins = 256 / kWarpSize;
  const uint32_t* const counts = shared.counts + warp_lane() * bins;
  int64_t mine = 0;
  for (int i = 0; i < bins; ++i) mine += counts[i];
  int64_t through = mine;
  for (int delta = 1; delta < kWarpSize; delta *= 2) {
    const int64_t below = warp_shfl_up(through, delta);
    if (warp_lane() >= delta) through += below;
  }
  int64_t before = through - mine;
  if (wanted <= before || wanted > through) return;
  int bin = 0;
  for (; before + counts[bin] < wanted; ++bin) before += counts[bin];
  shared.digit = warp_lane() * bins + bin;
  shared.wanted = wanted - before;
  shared.whole = shared.wanted == counts[bin];
}

// Where the highest digit of an order begins, and of one whose high word is 0.
inline constexpr int kOrderShift = 56, kLowWordShift = 24;

// The largest of the `wanted` smallest orders, 1 <= wanted <= their number; digit by digit from
// `first_shift`. order(pixel, shift) is kExcluded for pixels that do not take part; its digits below
// `shift` do not matter. May be larger than that order if no other lies between.
template <class Order>
WS_DEVICE uint64_t find_cutoff(const Image& image, int64_t wanted, Digits& shared,
                               const Order& order, int first_shift) {
  uint64_t cutoff = 0;
  for (int shift = first_shift; shift >= 0; shift -= 8) {
    for (int d = block_thread(); d < 256; d += kBlockThreads) shared.counts[d] = 0;
    __syncthreads();
    for_pixels(image, [&](int64_t pixel) {
      const uint64_t place = order(pixel, shift);
      if (place == kExcluded || (place ^ cutoff) >> shift >> 8 != 0) return;
      atomic_add(shared.counts + (place >> shift & 255), 1);
    });
    __syncthreads();
    if (block_warp() == 0) pick_digit(shared, wanted);
    __syncthreads();
    cutoff |= static_cast<uint64_t>(shared.digit) << shift;
    wanted = shared.wanted;
    if (shared.whole) return cutoff | ((uint64_t{1} << shift) - 1);
  }
  return cutoff;
}

// The cutoff of the first `wanted` of `available` pixels.
template <class Order>
WS_DEVICE uint64_t cutoff_of(const Image& image, int64_t wanted, int64_t available, Digits& shared,
                             const Order& order, int first_shift = kOrderShift) {
  if (wanted >= available) return kExcluded - 1;
  return find_cutoff(image, wanted, shared, order, first_shift);
}

// ---- regions ------------------------------------------------------------------------------------

// One block per image: marks the foreground region.
WS_GLOBAL void __launch_bounds__(kBlockThreads)
    region_kernel(const Batch batch, const Options options) {
  __shared__ Digits shared;
  const int64_t n = blockIdx.x;
  const Image image(batch, n);
  uint8_t* const marks = batch.marks + image.first;
  for (int level = block_thread(); level < kLevels; level += kBlockThreads) {
    shared.counts[level] = 0;
  }
  __syncthreads();
  const int64_t unknown = count_pixels(image, shared.sums, [&](int64_t pixel) {
    const float value = image.cam[pixel];
    atomic_add(shared.counts + level_of_bits(clean_bits(value)), 1);
    return value != value;
  });
  __syncthreads();
  int levels = 0;
  for (int level = block_thread(); level < kLevels; level += kBlockThreads) {
    levels += shared.counts[level] != 0;
  }
  const bool varies = block_sum<int64_t>(levels, shared.sums) > 1;
  if (block_thread() == 0) {
    batch.varies[n] = varies;
    batch.valid[n] = unknown == 0;
  }
  if (varies && !options.top && block_warp() == 0) {
    const int level = region_level(boxes::warp_otsu_level(shared.counts, 0));
    if (warp_lane() == 0) shared.digit = level;
  }
  __syncthreads();
  const bool none = !varies || (batch.background_only != nullptr && batch.background_only[n]);
  if (none || !options.top) {
    const int level = shared.digit;
    for_pixels(image, [&](int64_t pixel) {
      marks[pixel] = !none && image.inside(pixel) && level_of_bits(image.bits(pixel)) > level;
    });
    return;
  }
  const Stream ties = block_stream(batch.keys[n], Purpose::ties_foreground);
  const auto order = [&](int64_t pixel, int shift = 0) {
    if (!image.inside(pixel)) return kExcluded;
    return order_of(kOne - image.bits(pixel), tie(ties, pixel, shift));
  };
  const int64_t available = count_inside(image, shared.sums);
  const int64_t wanted = share_of(available, options.foreground_share);
  const uint64_t cutoff = wanted == 0 ? 0 : cutoff_of(image, wanted, available, shared, order);
  for_pixels(image, [&](int64_t pixel) { marks[pixel] = wanted > 0 && order(pixel) <= cutoff; });
}

// ---- squares ------------------------------------------------------------------------------------

// The pixel's place in its image, and its row's and column's parts of the square around it.
struct Window {
  int64_t pixel;
  int x, y;

  WS_DEVICE Window(const Batch& batch, int64_t at)
      : pixel(at),
        x(static_cast<int>(at % batch.width)),
        y(static_cast<int>(at / batch.width % batch.height)) {}

  // Calls visit(pixel) along the row until it returns false.
  template <class Visit>
  WS_DEVICE void along_row(const Batch& batch, int radius, const Visit& visit) const {
    const int64_t last = static_cast<int64_t>(x) + radius;
    const int64_t end = last < batch.width ? last : batch.width - 1;
    for (int64_t at = x > radius ? x - radius : 0; at <= end; ++at) {
      if (!visit(pixel - x + at)) return;
    }
  }
  template <class Visit>
  WS_DEVICE void along_column(const Batch& batch, int radius, const Visit& visit) const {
    const int64_t last = static_cast<int64_t>(y) + radius;
    const int64_t end = last < batch.height ? last : batch.height - 1;
    for (int64_t at = y > radius ? y - radius : 0; at <= end; ++at) {
      if (!visit(pixel + (at - y) * batch.width)) return;
    }
  }
};

template <class Visit>
WS_DEVICE void for_windows(const Batch& batch, const Visit& visit) {
  const int64_t pixels = batch.images * batch.pixels();
  for (int64_t i = global_thread_id(); i < pixels; i += global_thread_count()) {
    visit(Window(batch, i));
  }
}

WS_GLOBAL void __launch_bounds__(kThreads)
    erode_rows_kernel(const Batch batch, int radius) {
  for_windows(batch, [&](const Window& window) {
    bool whole = true;
    window.along_row(batch, radius, [&](int64_t at) {
      whole = batch.marks[at] & kInRegion;
      return whole;
    });
    batch.rows[window.pixel] = whole;
  });
}

WS_GLOBAL void __launch_bounds__(kThreads)
    erode_columns_kernel(const Batch batch, int radius) {
  for_windows(batch, [&](const Window& window) {
    bool whole = true;
    window.along_column(batch, radius, [&](int64_t at) {
      whole = batch.rows[at];
      return whole;
    });
    if (whole) batch.marks[window.pixel] |= kInShrunk;
  });
}

WS_GLOBAL void __launch_bounds__(kThreads)
    claim_rows_kernel(const Batch batch, int radius) {
  for_windows(batch, [&](const Window& window) {
    int claims = 0;
    window.along_row(batch, radius, [&](int64_t at) {
      claims |= batch.marks[at] >> kDrawnShift;
      return true;
    });
    batch.rows[window.pixel] = static_cast<uint8_t>(claims);
  });
}

WS_GLOBAL void __launch_bounds__(kThreads)
    write_seeds_kernel(const Batch batch, int radius) {
  for_windows(batch, [&](const Window& window) {
    int claims = 0;
    window.along_column(batch, radius, [&](int64_t at) {
      claims |= batch.rows[at];
      return true;
    });
    batch.seeds[window.pixel] = seed_of(claims);
  });
}

// ---- draws --------------------------------------------------------------------------------------

// Marks `most` of the `available` candidates, or all if there are fewer, first by `order`.
template <class Candidate, class Order>
WS_DEVICE void draw(const Image& image, int64_t available, int64_t most, int claim, uint8_t* marks,
                    Digits& shared, const Candidate& candidate, const Order& order,
                    int first_shift) {
  const int64_t wanted = most < available ? most : available;
  if (wanted == 0) return;
  const auto place = [&](int64_t pixel, int = 0) {
    return candidate(pixel) ? order(pixel) : kExcluded;
  };
  const uint64_t cutoff = cutoff_of(image, wanted, available, shared, place, first_shift);
  for_pixels(image, [&](int64_t pixel) {
    if (place(pixel) <= cutoff) marks[pixel] |= claim << kDrawnShift;
  });
  __syncthreads();
}

WS_DEVICE inline void draw_foreground(const Batch& batch, const Image& image, uint64_t key,
                                      const Options& options, Digits& shared) {
  uint8_t* const marks = batch.marks + image.first;
  const Stream stream = block_stream(key, Purpose::draw_foreground);
  const int64_t shrunk = count_pixels(
      image, shared.sums, [&](int64_t pixel) { return (marks[pixel] & kInShrunk) != 0; });
  const int region = shrunk > 0 ? kInShrunk : kInRegion;
  const auto in_region = [&](int64_t pixel) { return (marks[pixel] & region) != 0; };
  if (!options.weighted) {
    const int64_t available =
        shrunk > 0 ? shrunk : count_pixels(image, shared.sums, in_region);
    draw(
        image, available, options.foreground, kForegroundClaim, marks, shared, in_region,
        [&](int64_t pixel) { return order_of(0, stream(static_cast<uint32_t>(pixel))); },
        kLowWordShift);
    return;
  }
  uint32_t* const clocks = batch.clocks + image.first;
  const int64_t racing = count_pixels(image, shared.sums, [&](int64_t pixel) {
    const uint32_t bits = image.bits(pixel);
    const bool takes_part = in_region(pixel) && bits != 0;
    clocks[pixel] =
        takes_part ? float_bits(clock_of(stream(static_cast<uint32_t>(pixel)), bits)) : ~0u;
    return takes_part;
  });
  draw(
      image, racing, options.foreground, kForegroundClaim, marks, shared,
      [&](int64_t pixel) { return clocks[pixel] != ~0u; },
      [&](int64_t pixel) { return order_of(clocks[pixel], static_cast<uint32_t>(pixel)); },
      kOrderShift);
}

WS_DEVICE inline void draw_background(const Batch& batch, const Image& image, uint64_t key,
                                      bool everywhere, const Options& options, Digits& shared) {
  const Stream stream = block_stream(key, Purpose::draw_background);
  const Stream ties = block_stream(key, Purpose::ties_background);
  const auto order = [&](int64_t pixel) {
    return order_of(0, stream(static_cast<uint32_t>(pixel)));
  };
  const auto low = [&](int64_t pixel, int shift = 0) {
    if (options.outside_roi && image.inside(pixel)) return kExcluded;
    return order_of(image.bits(pixel), tie(ties, pixel, shift));
  };
  uint8_t* const region = batch.rows + image.first;  // each thread reads what it wrote
  int64_t available = image.pixels;
  if (!everywhere) {
    const int64_t inside = options.outside_roi ? count_inside(image, shared.sums) : 0;
    const int64_t allowed = image.pixels - inside;
    const int64_t wanted = share_of(allowed, options.background_share);
    if (wanted == 0) return;
    const uint64_t cutoff = cutoff_of(image, wanted, allowed, shared, low);
    available = count_pixels(image, shared.sums, [&](int64_t pixel) {
      const bool is_low = low(pixel) <= cutoff;
      region[pixel] = is_low;
      return is_low;
    });
  }
  draw(
      image, available, options.background, kBackgroundClaim, batch.marks + image.first, shared,
      [&](int64_t pixel) { return everywhere || region[pixel] != 0; }, order, kLowWordShift);
}

// One block per image: draws foreground and background.
WS_GLOBAL void __launch_bounds__(kBlockThreads)
    draw_kernel(const Batch batch, const Options options) {
  __shared__ Digits shared;
  const int64_t n = blockIdx.x;
  const Image image(batch, n);
  const uint64_t key = batch.keys[n];
  const bool clean = batch.background_only != nullptr && batch.background_only[n];
  if (!batch.varies[n] && !clean) return;
  if (!clean) draw_foreground(batch, image, key, options, shared);
  draw_background(batch, image, key, clean, options, shared);
}

}  // namespace wsfast::seeds
