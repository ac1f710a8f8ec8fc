// CUDA kernels of the boxes room: masks as words of 32 bits, a union-find over the runs inside words
// whose roots are the first pixels of components, numbers by scans; Otsu's histograms. Nothing
// depends on scheduling. No torch: the emulator runs this file on the CPU. Boxes and scores are in
// boxes_slots.cuh, the search for Otsu's level in boxes_otsu.cuh.
#pragma once

#include <cmath>

#include "boxes_otsu.cuh"

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
// still a way to the root. That holds because shortcuts are taken by minimum: a plain store could
// put back a parent that has sunk since, after its run was already pointed at the root.

WS_DEVICE inline int32_t find_root(int32_t* parents, int32_t pixel) {
  for (;;) {
    const int32_t parent = parents[pixel];
    if (parent == pixel) return pixel;
    const int32_t next = parents[parent];
    if (next != parent) atomic_min(parents + pixel, next);
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

WS_GLOBAL void __launch_bounds__(kThreads)
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

WS_GLOBAL void __launch_bounds__(kThreads)
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
WS_GLOBAL void __launch_bounds__(kThreads)
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

WS_DEVICE inline int warp_exclusive_sum(int value) { return warp_inclusive_sum(value) - value; }

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
WS_GLOBAL void __launch_bounds__(kBlockThreads)
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
WS_GLOBAL void __launch_bounds__(kThreads)
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
WS_GLOBAL void __launch_bounds__(kThreads)
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

// ---- Otsu ---------------------------------------------------------------------------------------

WS_GLOBAL void __launch_bounds__(kThreads)
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
  constexpr int ahead = 4;  // values that a thread loads before it counts them
  __shared__ uint32_t counts[copies * kLevels];
  for (int i = block_thread(); i < copies * kLevels; i += kBlockThreads) counts[i] = 0;
  __syncthreads();
  const int64_t image = blockIdx.x / parts;
  uint32_t* const mine = counts + block_warp() % copies * kLevels;
  bool numbers = true;
  const int64_t step = static_cast<int64_t>(parts) * kBlockThreads;
  int64_t i = blockIdx.x % parts * kBlockThreads + threadIdx.x;
  for (; i < pixels; i += ahead * step) {
    T values[ahead];
    for (int k = 0; k < ahead; ++k) {
      values[k] = i + k * step < pixels ? maps[image * pixels + i + k * step] : T{};
    }
    for (int k = 0; k < ahead; ++k) {
      if (i + k * step >= pixels) break;
      const acc_t<T> value = to_acc(values[k]);
      numbers = numbers && value == value;
      atomic_add(mine + level_of(value), 1);
    }
  }
  if (!numbers) valid[image] = false;
  __syncthreads();
  for (int level = block_thread(); level < kLevels; level += kBlockThreads) {
    const uint32_t count = counts[level] + counts[kLevels + level];
    if (count != 0) atomic_add(histograms + image * kLevels + level, count);
  }
}

// One warp per image.
WS_GLOBAL void __launch_bounds__(kWarpSize)
    otsu_kernel(const uint32_t* histograms, int64_t repeat, int32_t* levels) {
  const int64_t image = blockIdx.x;
  const int level = warp_repeated_otsu_level(histograms + image * kLevels, repeat);
  if (warp_lane() == 0) levels[image] = level;
}

}  // namespace wsfast::boxes
