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
inline constexpr int kWarpWords = 8;  // that a warp takes at a time

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
  int64_t image_begin;  // the image's first pixel in the batch
  int y, word, pixel;   // pixel: number of its first pixel

  WS_DEVICE WordPlace(const Grid& grid, int64_t index) {
    const int64_t row = index / grid.row_words;
    image = row / grid.height;
    image_begin = image * grid.pixels();
    y = static_cast<int>(row - image * grid.height);
    word = static_cast<int>(index - row * grid.row_words);
    pixel = y * grid.width + word * kWordBits;
  }

  // On to the next word of the batch; nothing overflows behind the last one.
  WS_DEVICE void next(const Grid& grid) {
    const bool row_ends = word == grid.row_words - 1;
    const int pixels = row_ends ? grid.width - word * kWordBits : kWordBits;
    pixel += pixels;
    word = row_ends ? 0 : word + 1;
    y += row_ends;
    if (y < grid.height) return;
    y = pixel = 0;
    ++image;
    image_begin += grid.pixels();
  }

  WS_DEVICE int64_t batch_pixel() const { return image_begin + pixel; }

  // Whether the word's bit is a pixel of the row.
  WS_DEVICE bool has(const Grid& grid, int bit) const {
    return word * kWordBits + bit < grid.width;
  }
};

// Words in a row, a lane per pixel: one set of divisions finds them all, and what a warp loads for
// each is in flight together.
struct WarpWords {
  int64_t index;  // of the first word
  int count;
  WordPlace first;

  WS_DEVICE WarpWords(const Grid& grid, int64_t index_)
      : index(index_),
        count(grid.words() - index_ < kWarpWords ? static_cast<int>(grid.words() - index_)
                                                 : kWarpWords),
        first(grid, index_) {}

  // Calls visit(w, place) for word index + w, w < count.
  template <class Visit>
  WS_DEVICE void each(const Grid& grid, const Visit& visit) const {
    WordPlace at = first;
#ifdef __CUDACC__
#pragma unroll  // keeps arrays with an element per word in registers
#endif
    for (int w = 0; w < kWarpWords; ++w) {
      if (w < count) visit(w, at);
      at.next(grid);
    }
  }
};

// Calls visit(words) for all words, shared out among the warps.
template <class Visit>
WS_DEVICE void for_warp_words(const Grid& grid, const Visit& visit) {
  const int64_t warp = global_thread_id() / kWarpSize, warps = global_thread_count() / kWarpSize;
  for (int64_t index = warp * kWarpWords; index < grid.words(); index += warps * kWarpWords) {
    visit(WarpWords(grid, index));
  }
}

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

// Reads maps, a value per lane, one map after the other.
template <class T>
class MaskReader {
 public:
  using Value = acc_t<T>;

  WS_DEVICE MaskReader(const Value* thresholds, const MapFacts& facts, int64_t image)
      : thresholds_(thresholds), facts_(facts) {
    begin(image);
  }

  // Whether the value is in the mask; notes NaN and the largest value.
  WS_DEVICE bool is_inside(T element, bool exists, int64_t image) {
    if (image != image_) {
      end();
      begin(image);
    }
    const Value value = to_acc(element), size = value < Value(0) ? -value : value;
    if (value != value) facts_.valid[image] = false;
    const bool inside = exists && value >= threshold_;
    if (inside && size > largest_ && size - size == Value(0)) largest_ = size;
    return inside;
  }

  // To be called behind the last value.
  WS_DEVICE void end() const {
    const int exponent = warp_max(largest_ > Value(0) ? ilogb(largest_) + 1 : kNoExponent);
    if (warp_lane() == 0 && exponent > facts_.exponents[image_]) {
      atomic_max(facts_.exponents + image_, exponent);
    }
  }

 private:
  WS_DEVICE void begin(int64_t image) {
    image_ = image;
    threshold_ = thresholds_[image];
    largest_ = Value(0);
  }

  const Value* thresholds_;
  const MapFacts& facts_;
  int64_t image_;
  Value threshold_;
  Value largest_;  // in size, of the lane's finite values in the mask
};

// For masks, which have no thresholds and no facts.
template <>
class MaskReader<uint8_t> {
 public:
  WS_DEVICE MaskReader(const uint8_t*, const MapFacts&, int64_t) {}
  WS_DEVICE bool is_inside(uint8_t element, bool, int64_t) const { return element != 0; }
  WS_DEVICE void end() const {}
};

// T is uint8_t for masks, else the maps' type. Every run inside a word begins as its own root.
template <class T>
WS_GLOBAL void __launch_bounds__(kThreads)
    pack_kernel(const Grid grid, const T* images, const acc_t<T>* thresholds,
                const Labeling labeling, const MapFacts facts) {
  const int lane = warp_lane();
  for_warp_words(grid, [&](const WarpWords& words) {
    T values[kWarpWords];
    words.each(grid, [&](int w, const WordPlace& at) {
      values[w] = at.has(grid, lane) ? images[at.batch_pixel() + lane] : T{};
    });
    MaskReader<T> reader(thresholds, facts, words.first.image);
    uint32_t mine = 0;  // word w in lane w
    words.each(grid, [&](int w, const WordPlace& at) {
      const uint32_t bits =
          warp_ballot(reader.is_inside(values[w], at.has(grid, lane), at.image));
      if (lane == w) mine = bits;
      if (run_begins(bits) >> lane & 1) {
        labeling.parents[at.batch_pixel() + lane] = at.pixel + lane;
      }
    });
    reader.end();
    if (lane < words.count) labeling.bits[words.index + lane] = mine;
  });
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

inline constexpr int32_t kOutside = INT32_MIN;

// ~component of the lane's pixel in every word, kOutside where it has none; `bits` is word w in
// lane w. Each step is taken in all words before the next one, which needs what this one loads.
WS_DEVICE inline void find_components(const Grid& grid, const Labeling& labeling,
                                      const WarpWords& words, uint32_t bits,
                                      int32_t (&found)[kWarpWords]) {
  const int lane = warp_lane();
  words.each(grid, [&](int w, const WordPlace& at) {
    const uint32_t here = warp_shfl(bits, w);
    const int32_t* const parents = labeling.parents + at.batch_pixel();
    found[w] = here >> lane & 1 ? parents[run_begin(here, lane)] : kOutside;
  });
  words.each(grid, [&](int w, const WordPlace& at) {
    const int32_t* const parents = labeling.parents + at.image_begin;
    if (found[w] >= 0) found[w] = parents[found[w]];
  });
}

WS_DEVICE inline uint32_t load_bits(const Labeling& labeling, const WarpWords& words) {
  return warp_lane() < words.count ? labeling.bits[words.index + warp_lane()] : 0;
}

WS_GLOBAL void __launch_bounds__(kThreads)
    label_kernel(const Grid grid, const Labeling labeling, int32_t* labels) {
  const int lane = warp_lane();
  for_warp_words(grid, [&](const WarpWords& words) {
    int32_t found[kWarpWords];
    find_components(grid, labeling, words, load_bits(labeling, words), found);
    words.each(grid, [&](int w, const WordPlace& at) {
      if (!at.has(grid, lane)) return;
      labels[at.batch_pixel() + lane] = found[w] == kOutside ? 0 : ~found[w] + 1;
    });
  });
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
