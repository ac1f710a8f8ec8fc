// CUDA kernels of the boxes room: masks as words of 32 bits, a union-find over the runs inside words
// whose roots are the first pixels of components, numbers by scans, statistics by integer atomics.
// Nothing depends on scheduling. No torch: the emulator runs this file on the CPU.
#pragma once

#include <cmath>

#include "boxes_math.h"

namespace wsfast::boxes {

inline constexpr int kThreads = 256;
inline constexpr int kBlockThreads = 512;  // where one block works on one image
inline constexpr int kWordBits = 32;

// The masks of a batch. Pixels are numbered in raster order within their image.
struct Grid {
  int64_t images;
  int height, width;
  int row_words;        // of one row
  int most_components;  // that one image can have
  bool diagonal;        // 8 neighbours

  WS_HD int64_t pixels() const { return static_cast<int64_t>(height) * width; }
  WS_HD int64_t image_words() const { return static_cast<int64_t>(height) * row_words; }
  WS_HD int64_t words() const { return images * image_words(); }
  WS_HD int64_t rows() const { return images * height; }
};

// The labelling of a batch.
struct Labeling {
  uint32_t* bits;    // words(): bit i is pixel 32 w + i of the row
  int32_t* parents;  // per pixel, set where a run begins in its word: an earlier pixel of the
                     // component; at a root, the first pixel, ~number once it has one
  int32_t* row_roots;  // rows(): roots in the row, then those in earlier rows
  int32_t* counts;     // images: components
};

// Where a word lies.
struct WordPlace {
  int64_t image;
  int y, word, pixel;  // pixel: number of its first pixel

  WS_DEVICE WordPlace(const Grid& grid, int64_t index)
      : image(index / grid.image_words()),
        y(static_cast<int>(index % grid.image_words() / grid.row_words)),
        word(static_cast<int>(index % grid.row_words)),
        pixel(y * grid.width + word * kWordBits) {}
};

// ---- runs inside a word -------------------------------------------------------------------------

WS_DEVICE inline int lowest_bit(uint32_t bits) { return __ffs(static_cast<int>(bits)) - 1; }

// Where the run that holds `bit` begins.
WS_DEVICE inline int run_begin(uint32_t bits, int bit) {
  const uint32_t gaps = ~bits & ((1u << bit) - 1);
  return kWordBits - __clz(static_cast<int>(gaps));
}

WS_DEVICE inline uint32_t run_begins(uint32_t bits) { return bits & ~(bits << 1); }

// Length of the run that begins at `begin`.
WS_DEVICE inline int run_length(uint32_t bits, int begin) {
  const uint32_t gaps = ~(bits >> begin);
  return gaps == 0 ? kWordBits : lowest_bit(gaps);
}

template <class Visit>
WS_DEVICE void for_bits(uint32_t bits, const Visit& visit) {
  for (; bits != 0; bits &= bits - 1) visit(lowest_bit(bits));
}

// ---- union-find ---------------------------------------------------------------------------------
// Parents only ever sink to smaller pixels of the same component, so a value read too early is
// still a way to the root.

WS_DEVICE inline int32_t find_root(int32_t* parents, int32_t pixel) {
  for (;;) {
    const int32_t parent = parents[pixel];
    if (parent == pixel) return pixel;
    const int32_t next = parents[parent];
    if (next != parent) parents[pixel] = next;
    pixel = next;
  }
}

// The smaller root becomes the parent of the larger one; if that was no root any more, its parent
// is joined instead.
WS_DEVICE inline void unite(int32_t* parents, int32_t a, int32_t b) {
  for (;;) {
    a = find_root(parents, a);
    b = find_root(parents, b);
    if (a == b) return;
    const int32_t high = a > b ? a : b, low = a > b ? b : a;
    const int32_t before = atomic_min(parents + high, low);
    if (before == high) return;
    a = before;
    b = low;
  }
}

// ---- masks to bits ------------------------------------------------------------------------------

inline constexpr int kNoExponent = -2000;

// What cam_boxes needs to know of each map; null for masks.
struct MapFacts {
  int32_t* exponents;  // every finite value of the mask lies below 2^exponent in size
  bool* valid;         // free of NaN
};

WS_GLOBAL inline void __launch_bounds__(kThreads)
    begin_maps_kernel(int64_t images, MapFacts facts) {
  for (int64_t n = global_thread_id(); n < images; n += global_thread_count()) {
    facts.exponents[n] = kNoExponent;
    facts.valid[n] = true;
  }
}

WS_DEVICE inline bool is_inside(uint8_t value, const uint8_t*, int64_t) { return value != 0; }

template <class T>
WS_DEVICE bool is_inside(T value, const acc_t<T>* thresholds, int64_t image) {
  return to_acc(value) >= thresholds[image];
}

// A warp notes NaN and the largest exponent of its values.
template <class A>
WS_DEVICE void note_facts(A value, bool inside, int64_t image, const MapFacts& facts) {
  if (value != value) facts.valid[image] = false;
  const bool counts = inside && value != A(0) && value - value == A(0);
  const int exponent = warp_max(counts ? ilogb(value) + 1 : kNoExponent);
  if (warp_lane() == 0 && exponent > facts.exponents[image]) {
    atomic_max(facts.exponents + image, exponent);
  }
}

// One warp: one word after the other. T is uint8_t for masks, else the maps' type. Every run inside
// a word begins as its own root.
template <class T>
WS_GLOBAL void __launch_bounds__(kThreads)
    pack_kernel(const Grid grid, const T* images, const acc_t<T>* thresholds,
                const Labeling labeling, const MapFacts facts) {
  const int lane = warp_lane();
  const int64_t warps = global_thread_count() / kWarpSize;
  for (int64_t i = global_thread_id() / kWarpSize; i < grid.words(); i += warps) {
    const WordPlace at(grid, i);
    const bool exists = at.word * kWordBits + lane < grid.width;
    const int64_t pixel = at.image * grid.pixels() + at.pixel + lane;
    const T value = exists ? images[pixel] : T{};
    const bool inside = exists && is_inside(value, thresholds, at.image);
    if constexpr (!std::is_same_v<T, uint8_t>) {
      note_facts(to_acc(value), inside, at.image, facts);
    }
    const uint32_t bits = warp_ballot(inside);
    if (lane == 0) labeling.bits[i] = bits;
    if (run_begins(bits) >> lane & 1) labeling.parents[pixel] = at.pixel + lane;
  }
}

// ---- components ---------------------------------------------------------------------------------

// Joins the runs of a word with those that they touch in the word before and in the row above, once
// per stretch of contact; a diagonal contact counts only where no straight one joins the same runs.
WS_DEVICE inline void join_word(const Grid& grid, const uint32_t* word, const WordPlace& at,
                                int32_t* parents) {
  const uint32_t here = *word;
  if (here == 0) return;
  const bool first = at.word == 0, last = at.word == grid.row_words - 1;
  const uint32_t before = first ? 0 : word[-1], after = last ? 0 : word[1];
  if (here & before >> 31) {
    unite(parents, at.pixel - kWordBits + run_begin(before, 31), at.pixel);
  }
  if (at.y == 0) return;
  const uint32_t* above = word - grid.row_words;
  const uint32_t up = *above, up_before = first ? 0 : above[-1], up_after = last ? 0 : above[1];
  const uint32_t here_left = here << 1 | before >> 31, here_right = here >> 1 | after << 31;
  const uint32_t up_left = up << 1 | up_before >> 31, up_right = up >> 1 | up_after << 31;
  const int up_pixel = at.pixel - grid.width;
  for_bits(here & up & ~(here_left & up_left), [&](int bit) {
    unite(parents, up_pixel + run_begin(up, bit), at.pixel + run_begin(here, bit));
  });
  if (!grid.diagonal) return;
  for_bits(here & ~up & up_left & ~here_left, [&](int bit) {
    const int begin = bit > 0 ? run_begin(up, bit - 1) : run_begin(up_before, 31) - kWordBits;
    unite(parents, up_pixel + begin, at.pixel + bit);
  });
  for_bits(here & ~up & up_right & ~here_right, [&](int bit) {
    unite(parents, up_pixel + bit + 1, at.pixel + run_begin(here, bit));
  });
}

WS_GLOBAL inline void __launch_bounds__(kThreads)
    join_kernel(const Grid grid, const Labeling labeling) {
  for (int64_t i = global_thread_id(); i < grid.words(); i += global_thread_count()) {
    const WordPlace at(grid, i);
    join_word(grid, labeling.bits + i, at, labeling.parents + at.image * grid.pixels());
  }
}

// Calls visit(index, place) for the words of one row after the other, a warp per row and a lane per
// word; `index` is -1 for lanes without one. end_row(row) follows.
template <class Visit, class EndRow>
WS_DEVICE void for_rows(const Grid& grid, const Visit& visit, const EndRow& end_row) {
  const int64_t warps = global_thread_count() / kWarpSize;
  for (int64_t row = global_thread_id() / kWarpSize; row < grid.rows(); row += warps) {
    for (int first = 0; first < grid.row_words; first += kWarpSize) {
      const int word = first + warp_lane();
      visit(row, word < grid.row_words ? row * grid.row_words + word : -1);
    }
    end_row(row);
  }
}

// Points every run at its root and counts the roots of each row.
WS_GLOBAL inline void __launch_bounds__(kThreads)
    flatten_kernel(const Grid grid, const Labeling labeling) {
  int roots = 0;
  for_rows(
      grid,
      [&](int64_t, int64_t index) {
        if (index < 0) return;
        const WordPlace at(grid, index);
        int32_t* const parents = labeling.parents + at.image * grid.pixels();
        for_bits(run_begins(labeling.bits[index]), [&](int bit) {
          const int32_t root = find_root(parents, at.pixel + bit);
          parents[at.pixel + bit] = root;
          roots += root == at.pixel + bit;
        });
      },
      [&](int64_t row) {
        const int total = warp_sum(roots);
        if (warp_lane() == 0) labeling.row_roots[row] = total;
        roots = 0;
      });
}

WS_DEVICE inline int warp_exclusive_sum(int value) {
  int sum = value;
  for (int delta = 1; delta < kWarpSize; delta *= 2) {
    const int below = warp_shfl_up(sum, delta);
    if (warp_lane() >= delta) sum += below;
  }
  return sum - value;
}

// The sum of the values of all earlier threads; `scratch` holds one value per warp.
WS_DEVICE inline int block_exclusive_sum(int value, int* scratch, int& total) {
  const int before = warp_exclusive_sum(value);
  __syncthreads();  // a previous sum may still be reading scratch
  if (warp_lane() == kWarpSize - 1) scratch[block_warp()] = before + value;
  __syncthreads();
  int earlier = 0;
  total = 0;
  for (int w = 0; w < block_threads() / kWarpSize; ++w) {
    if (w < block_warp()) earlier += scratch[w];
    total += scratch[w];
  }
  return earlier + before;
}

// One block per image: turns the rows' root counts into the counts before each row.
WS_GLOBAL inline void __launch_bounds__(kBlockThreads)
    scan_rows_kernel(const Grid grid, const Labeling labeling) {
  __shared__ int scratch[kBlockThreads / kWarpSize];
  int32_t* const rows = labeling.row_roots + static_cast<int64_t>(blockIdx.x) * grid.height;
  int before = 0;
  for (int first = 0; first < grid.height; first += kBlockThreads) {
    const int y = first + block_thread();
    int total;
    const int earlier = block_exclusive_sum(y < grid.height ? rows[y] : 0, scratch, total);
    if (y < grid.height) rows[y] = before + earlier;
    before += total;
  }
  if (block_thread() == 0) labeling.counts[blockIdx.x] = before;
}

// Numbers the roots in raster order. `sizes`, if any, become 0.
WS_GLOBAL inline void __launch_bounds__(kThreads)
    number_kernel(const Grid grid, const Labeling labeling, int32_t* sizes) {
  int before = 0;
  for_rows(
      grid,
      [&](int64_t row, int64_t index) {
        const WordPlace at(grid, index < 0 ? 0 : index);
        int32_t* const parents = labeling.parents + at.image * grid.pixels() + at.pixel;
        uint32_t roots = 0;
        if (index >= 0) {
          for_bits(run_begins(labeling.bits[index]), [&](int bit) {
            roots |= static_cast<uint32_t>(parents[bit] == at.pixel + bit) << bit;
          });
        }
        const int count = __popc(roots), earlier = warp_exclusive_sum(count);
        int number = labeling.row_roots[row] + before + earlier;
        for_bits(roots, [&](int bit) {
          if (sizes != nullptr) sizes[at.image * grid.most_components + number] = 0;
          parents[bit] = ~number++;
        });
        before += warp_shfl(earlier + count, kWarpSize - 1);
      },
      [&](int64_t) { before = 0; });
}

// The component of the run that begins at `pixel`.
WS_DEVICE inline int component_at(const int32_t* parents, int32_t pixel) {
  const int32_t parent = parents[pixel];
  return ~(parent < 0 ? parent : parents[parent]);
}

// One warp: one word after the other, a lane per pixel.
WS_GLOBAL inline void __launch_bounds__(kThreads)
    label_kernel(const Grid grid, const Labeling labeling, int32_t* labels) {
  const int lane = warp_lane();
  const int64_t warps = global_thread_count() / kWarpSize;
  for (int64_t i = global_thread_id() / kWarpSize; i < grid.words(); i += warps) {
    const WordPlace at(grid, i);
    if (at.word * kWordBits + lane >= grid.width) continue;
    const int64_t image = at.image * grid.pixels();
    const uint32_t bits = labeling.bits[i];
    labels[image + at.pixel + lane] =
        bits >> lane & 1
            ? component_at(labeling.parents + image, at.pixel + run_begin(bits, lane)) + 1
            : 0;
  }
}

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

WS_GLOBAL inline void __launch_bounds__(kThreads)
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

// The K-th largest of the image's sizes of at least min_area, digit by digit from the top.
WS_DEVICE inline Cutoff find_cutoff(const int32_t* sizes, int count, int64_t min_area, int64_t k,
                                    int* histogram, Cutoff* shared) {
  Cutoff cutoff = {0, static_cast<int>(k)};
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int d = block_thread(); d < 256; d += kBlockThreads) histogram[d] = 0;
    __syncthreads();
    for (int i = block_thread(); i < count; i += kBlockThreads) {
      const int size = sizes[i];
      const bool candidate = size >= min_area && (size ^ cutoff.area) >> shift >> 8 == 0;
      if (candidate) atomic_add(histogram + (size >> shift & 255), 1);
    }
    __syncthreads();
    if (block_thread() == 0) {
      int digit = 255, wanted = cutoff.equals;
      for (; wanted > histogram[digit]; --digit) wanted -= histogram[digit];
      *shared = {cutoff.area | digit << shift, wanted};
    }
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
  for (int length = 2; length <= count; length *= 2) {
    for (int gap = length / 2; gap > 0; gap /= 2) {
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
WS_GLOBAL inline void __launch_bounds__(kBlockThreads)
    select_kernel(const Grid grid, const int32_t* components, const BoxSlots out) {
  __shared__ int histogram[256], scratch[kBlockThreads / kWarpSize], next;
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
    cutoff = find_cutoff(sizes, count, out.min_area, out.max_boxes, histogram, &shared_cutoff);
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

WS_GLOBAL inline void __launch_bounds__(kThreads)
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

// One warp: one word after the other, a lane per pixel.
template <class T>
WS_GLOBAL void __launch_bounds__(kThreads)
    sum_kernel(const Grid grid, const T* maps, const Labeling labeling, const int32_t* exponents,
               int pixel_bits, const BoxSlots out) {
  const int lane = warp_lane();
  const int64_t warps = global_thread_count() / kWarpSize;
  for (int64_t i = global_thread_id() / kWarpSize; i < grid.words(); i += warps) {
    const uint32_t bits = labeling.bits[i];
    if (bits == 0) continue;
    const WordPlace at(grid, i);
    const int64_t image = at.image * grid.pixels();
    const double value =
        bits >> lane & 1 ? static_cast<double>(to_acc(maps[image + at.pixel + lane])) : 0.0;
    const bool finite = value - value == 0.0;
    const double scale = ldexp(1.0, fixed_point_shift(exponents[at.image], pixel_bits));
    const int64_t units = finite ? static_cast<int64_t>(rint(value * scale)) : 0;
    const unsigned plus = warp_ballot(!finite && value > 0.0);
    const unsigned minus = warp_ballot(!finite && value < 0.0);
    for_bits(run_begins(bits), [&](int begin) {
      const int component = component_at(labeling.parents + image, at.pixel + begin);
      const int slot = out.sizes[at.image * grid.most_components + component];
      if (slot < 0) return;
      const int length = run_length(bits, begin);
      const uint32_t run = (length < kWordBits ? (1u << length) - 1 : ~0u) << begin;
      const int64_t total = warp_sum(run >> lane & 1 ? units : int64_t{0});
      if (lane != 0) return;
      const int64_t to = at.image * out.max_boxes + slot;
      atomic_add(out.sums + to, total);
      const int infinite = ((plus & run) != 0) | ((minus & run) != 0) << 1;
      if (infinite != 0) atomic_or(out.infinite + to, infinite);
    });
  }
}

WS_GLOBAL inline void __launch_bounds__(kThreads)
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

// ---- Otsu ---------------------------------------------------------------------------------------

WS_GLOBAL inline void __launch_bounds__(kThreads)
    begin_histograms_kernel(int64_t images, uint32_t* histograms, bool* valid) {
  for (int64_t i = global_thread_id(); i < images * kLevels; i += global_thread_count()) {
    histograms[i] = 0;
    if (i < images) valid[i] = true;
  }
}

// One block: one part of one image. Warps take turns at two histograms.
template <class T>
WS_GLOBAL void __launch_bounds__(kBlockThreads)
    histogram_kernel(const T* maps, int64_t pixels, int parts, uint32_t* histograms, bool* valid) {
  constexpr int copies = 2;
  __shared__ uint32_t counts[copies * kLevels];
  for (int i = block_thread(); i < copies * kLevels; i += kBlockThreads) counts[i] = 0;
  __syncthreads();
  const int64_t image = blockIdx.x / parts;
  uint32_t* const mine = counts + block_warp() % copies * kLevels;
  bool numbers = true;
  const int64_t step = static_cast<int64_t>(parts) * kBlockThreads;
  for (int64_t i = blockIdx.x % parts * kBlockThreads + threadIdx.x; i < pixels; i += step) {
    const acc_t<T> value = to_acc(maps[image * pixels + i]);
    numbers = numbers && value == value;
    atomic_add(mine + level_of(value), 1);
  }
  if (!numbers) valid[image] = false;
  __syncthreads();
  for (int level = block_thread(); level < kLevels; level += kBlockThreads) {
    const uint32_t count = counts[level] + counts[kLevels + level];
    if (count != 0) atomic_add(histograms + image * kLevels + level, count);
  }
}

// One warp per image; one lane decides.
WS_GLOBAL inline void __launch_bounds__(kWarpSize)
    otsu_kernel(const uint32_t* histograms, int64_t repeat, int32_t* levels) {
  __shared__ int64_t histogram[kLevels];
  for (int level = block_thread(); level < kLevels; level += kWarpSize) {
    histogram[level] = histograms[static_cast<int64_t>(blockIdx.x) * kLevels + level];
  }
  __syncthreads();
  if (block_thread() == 0) levels[blockIdx.x] = repeated_otsu_level(histogram, repeat);
}

}  // namespace wsfast::boxes
