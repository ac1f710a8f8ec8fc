// CUDA kernels of boxes and scores: sizes of components, slots for the largest, and what the slots
// hold, summed by integer atomics, so that nothing depends on scheduling. No torch.
#pragma once

#include "boxes_kernels.cuh"

namespace wsfast::boxes {

// ---- sizes and selection ------------------------------------------------------------------------

// Calls visit(place, begin, length, component) for every run inside a word.
template <class Visit>
WS_DEVICE void for_runs(const Grid& grid, const Labeling& labeling, const Visit& visit) {
  for (int64_t i = global_thread_id(); i < grid.words(); i += global_thread_count()) {
    const WordPlace at(grid, i);
    const uint32_t bits = labeling.bits[i];
    const int32_t* const parents = labeling.parents + at.image * grid.pixels();
    for_bits(run_begins(bits), [&](int begin) {
      visit(at, begin, run_length(bits, begin), component_at(parents, at.pixel + begin));
    });
  }
}

WS_GLOBAL void __launch_bounds__(kThreads)
    size_kernel(const Grid grid, const Labeling labeling, int32_t* sizes) {
  for_runs(grid, labeling, [&](const WordPlace& at, int, int length, int component) {
    atomic_add(sizes + at.image * grid.most_components + component, length);
  });
}

// Boxes of a batch, max_boxes slots per image.
struct BoxSlots {
  int64_t max_boxes, min_area;
  int32_t* sizes;  // most_components per image: areas, then slots (-1: none)
  uint64_t* keys;  // key_capacity per image
  int64_t key_capacity;
  int32_t* boxes;
  int32_t* areas;
  int32_t* counts;
  int64_t* sums;     // fixed point; null for masks
  int32_t* infinite;  // bit 0: +infinity in the sum, bit 1: -infinity; null for masks
};

// What the block knows while it looks for the smallest area that still gets a slot.
struct Cutoff {
  int area, equals;  // all larger areas, and the first `equals` of this area
};

inline constexpr int kDigitBits = 8;
inline constexpr int kDigits = 1 << kDigitBits;

// By the first warp: adds the digit in which the wanted-th largest falls. Lanes count from the top;
// in exactly one of them the count comes to `wanted`.
WS_DEVICE inline void pick_digit(const int* histogram, int shift, Cutoff cutoff, Cutoff* found) {
  constexpr int lane_digits = kDigits / kWarpSize;
  int digit = kDigits - 1 - warp_lane() * lane_digits, count = 0;
  for (int i = 0; i < lane_digits; ++i) count += histogram[digit - i];
  const int above = warp_exclusive_sum(count);
  int wanted = cutoff.equals - above;
  if (wanted <= 0 || wanted > count) return;
  for (; wanted > histogram[digit]; --digit) wanted -= histogram[digit];
  *found = {cutoff.area | digit << shift, wanted};
}

// The K-th largest of the image's sizes of at least min_area, digit by digit from the highest that
// the area of all pixels has.
WS_DEVICE inline Cutoff find_cutoff(const int32_t* sizes, int count, int64_t pixels,
                                    int64_t min_area, int64_t k, int* histogram, Cutoff* shared) {
  Cutoff cutoff = {0, static_cast<int>(k)};
  const int highest_bit = 31 - __clz(static_cast<int>(pixels));
  for (int shift = highest_bit / kDigitBits * kDigitBits; shift >= 0; shift -= kDigitBits) {
    for (int d = block_thread(); d < kDigits; d += kBlockThreads) histogram[d] = 0;
    __syncthreads();
    for (int i = block_thread(); i < count; i += kBlockThreads) {
      const int size = sizes[i];
      const bool candidate = size >= min_area && (size ^ cutoff.area) >> shift >> kDigitBits == 0;
      if (candidate) atomic_add(histogram + (size >> shift & (kDigits - 1)), 1);
    }
    __syncthreads();
    if (block_warp() == 0) pick_digit(histogram, shift, cutoff, shared);
    __syncthreads();
    cutoff = *shared;
  }
  return cutoff;
}

// Writes the keys of the components that get a slot, in any order.
WS_DEVICE inline void gather_keys(const int32_t* sizes, int count, int64_t min_area,
                                  const Cutoff& cutoff, uint64_t* keys, int* next, int* scratch) {
  int equals_before = 0;
  for (int first = 0; first < count; first += kBlockThreads) {
    const int i = first + block_thread();
    const int size = i < count ? sizes[i] : 0;
    const bool equal = size >= min_area && size == cutoff.area;
    int equals;
    const int rank = equals_before + block_exclusive_sum(equal, scratch, equals);
    equals_before += equals;
    if (size >= min_area && (size > cutoff.area || (equal && rank < cutoff.equals))) {
      keys[atomic_add(next, 1)] = size_key(size, static_cast<uint32_t>(i));
    }
  }
}

// Sorts a power of two of keys in place, ascending (Batcher's bitonic network).
WS_DEVICE inline void sort_keys(uint64_t* keys, int count) {
  for (int64_t length = 2; length <= count; length *= 2) {
    for (int gap = static_cast<int>(length / 2); gap > 0; gap /= 2) {
      __syncthreads();
      for (int pair = block_thread(); pair < count / 2; pair += kBlockThreads) {
        const int low = pair / gap * 2 * gap + pair % gap, high = low + gap;
        const bool descending = low & length;
        const uint64_t a = keys[low], b = keys[high];
        if ((a > b) != descending) {
          keys[low] = b;
          keys[high] = a;
        }
      }
    }
  }
  __syncthreads();
}

WS_DEVICE inline void open_slot(const Grid& grid, const BoxSlots& out, int64_t slot, bool used,
                                int area) {
  int32_t* const box = out.boxes + slot * 4;
  box[0] = used ? grid.width : -1;
  box[1] = used ? grid.height : -1;
  box[2] = used ? 0 : -1;
  box[3] = used ? 0 : -1;
  out.areas[slot] = area;
  if (out.sums == nullptr) return;
  out.sums[slot] = 0;
  out.infinite[slot] = 0;
}

// One block per image: counts components and gives slots to the largest, equals in raster order.
WS_GLOBAL void __launch_bounds__(kBlockThreads)
    select_kernel(const Grid grid, const int32_t* components, const BoxSlots out) {
  __shared__ int histogram[kDigits], scratch[kBlockThreads / kWarpSize], next;
  __shared__ Cutoff shared_cutoff;
  const int64_t image = blockIdx.x;
  const int count = components[image];
  int32_t* const sizes = out.sizes + image * grid.most_components;
  uint64_t* const keys = out.keys + image * out.key_capacity;
  int large = 0;
  for (int i = block_thread(); i < count; i += kBlockThreads) large += sizes[i] >= out.min_area;
  large = block_sum(large, scratch);
  Cutoff cutoff = {0, 0};  // everything
  if (large > out.max_boxes) {
    cutoff = find_cutoff(sizes, count, grid.pixels(), out.min_area, out.max_boxes, histogram,
                         &shared_cutoff);
  }
  const int kept = large < out.max_boxes ? large : static_cast<int>(out.max_boxes);
  int padded = 1;
  while (padded < kept) padded *= 2;
  if (block_thread() == 0) next = 0;
  for (int k = block_thread(); k < padded; k += kBlockThreads) keys[k] = ~uint64_t{0};
  __syncthreads();
  gather_keys(sizes, count, out.min_area, cutoff, keys, &next, scratch);
  __syncthreads();
  sort_keys(keys, padded);
  for (int i = block_thread(); i < count; i += kBlockThreads) sizes[i] = -1;
  __syncthreads();
  for (int64_t k = block_thread(); k < out.max_boxes; k += kBlockThreads) {
    const bool used = k < kept;
    if (used) sizes[component_of(keys[k])] = static_cast<int32_t>(k);
    open_slot(grid, out, image * out.max_boxes + k, used, used ? area_of(keys[k]) : -1);
  }
  if (block_thread() == 0) out.counts[image] = large;
}

// ---- boxes and scores ---------------------------------------------------------------------------

// Reading first spares most atomics: limits only ever move outwards.
WS_DEVICE inline void lower(int32_t* limit, int value) {
  if (value < *limit) atomic_min(limit, value);
}
WS_DEVICE inline void raise(int32_t* limit, int value) {
  if (value > *limit) atomic_max(limit, value);
}

WS_GLOBAL void __launch_bounds__(kThreads)
    box_kernel(const Grid grid, const Labeling labeling, const BoxSlots out) {
  for_runs(grid, labeling, [&](const WordPlace& at, int begin, int length, int component) {
    const int slot = out.sizes[at.image * grid.most_components + component];
    if (slot < 0) return;
    int32_t* const box = out.boxes + (at.image * out.max_boxes + slot) * 4;
    const int x = at.word * kWordBits + begin;
    lower(box, x);
    lower(box + 1, at.y);
    raise(box + 2, x + length);
    raise(box + 3, at.y + 1);
  });
}

// Sums are integers in units of 2^-shift, so their order does not matter. No value of the map
// reaches 2^exponent, no sum of all pixels 2^62. The units are below float32's rounding of any mean
// that is not tiny beside the map's largest value.
WS_DEVICE inline int fixed_point_shift(int exponent, int pixel_bits) {
  const int shift = 61 - exponent - pixel_bits;
  return shift < 1000 ? shift : 1000;
}

// Adds a warp's values, a lane per pixel of the word, to the slots of the runs that they lie in.
// `slot` is that of the lane's pixel, -1 without one.
WS_DEVICE inline void add_word(uint32_t bits, double value, double scale, int slot, int64_t first,
                               const BoxSlots& out) {
  const int lane = warp_lane();
  const bool finite = value - value == 0.0;
  const int64_t units = finite ? static_cast<int64_t>(rint(value * scale)) : 0;
  const unsigned plus = warp_ballot(!finite && value > 0.0);
  const unsigned minus = warp_ballot(!finite && value < 0.0);
  for_bits(run_begins(bits), [&](int begin) {
    const int run_slot = warp_shfl(slot, begin);
    if (run_slot < 0) return;
    const int length = run_length(bits, begin);
    const uint32_t run = (length < kWordBits ? (1u << length) - 1 : ~0u) << begin;
    const int64_t total = warp_sum(run >> lane & 1 ? units : int64_t{0});
    if (lane != 0) return;
    atomic_add(out.sums + first + run_slot, total);
    const int infinite = ((plus & run) != 0) | ((minus & run) != 0) << 1;
    if (infinite != 0) atomic_or(out.infinite + first + run_slot, infinite);
  });
}

template <class T>
WS_GLOBAL void __launch_bounds__(kThreads)
    sum_kernel(const Grid grid, const T* maps, const Labeling labeling, const int32_t* exponents,
               int pixel_bits, const BoxSlots out) {
  const int lane = warp_lane();
  for_warp_words(grid, [&](const WarpWords& words) {
    const uint32_t bits = load_bits(labeling, words);
    int32_t slots[kWarpWords];
    find_components(grid, labeling, words, bits, slots);
    T values[kWarpWords];
    words.each(grid, [&](int w, const WordPlace& at) {
      const int32_t found = slots[w];
      const bool inside = found != kOutside;
      slots[w] = inside ? out.sizes[at.image * grid.most_components + ~found] : -1;
      values[w] = inside ? maps[at.batch_pixel() + lane] : T{};
    });
    int64_t image = -1;
    double scale = 0;
    words.each(grid, [&](int w, const WordPlace& at) {
      const uint32_t here = warp_shfl(bits, w);
      if (here == 0) return;
      if (at.image != image) {
        image = at.image;
        scale = ldexp(1.0, fixed_point_shift(exponents[image], pixel_bits));
      }
      add_word(here, static_cast<double>(to_acc(values[w])), scale, slots[w],
               image * out.max_boxes, out);
    });
  });
}

WS_GLOBAL void __launch_bounds__(kThreads)
    score_kernel(int64_t images, const int32_t* exponents, int pixel_bits, const BoxSlots out,
                 float* scores) {
  const int64_t slots = images * out.max_boxes;
  for (int64_t i = global_thread_id(); i < slots; i += global_thread_count()) {
    if (out.areas[i] < 0) {
      scores[i] = -1.0f;
      continue;
    }
    const int shift = fixed_point_shift(exponents[i / out.max_boxes], pixel_bits);
    double sum = ldexp(static_cast<double>(out.sums[i]), -shift);
    if (out.infinite[i] & 1) sum += HUGE_VAL;
    if (out.infinite[i] & 2) sum -= HUGE_VAL;  // both: NaN
    scores[i] = static_cast<float>(sum / out.areas[i]);
  }
}

}  // namespace wsfast::boxes
