// Pixels of each level of a map, one copy per instruction set (boxes_simd.h and the seeds room include
// it). A store per pixel bounds a plain histogram; large maps are counted by pairs of neighbours, at
// half as many.
// fetch(i) asks for the pixels of a later group; between the counts, so that memory is read while
// stores are waited for.
// No include guard.

#include "boxes_math.h"

namespace wsfast::boxes::WS_SIMD {

inline constexpr int kGroup = 16;  // pixels of which one may stand for all: backgrounds are flat
inline constexpr int64_t kManyPixels = 8192;  // that are worth the sums of LevelPairs

// Pixel by pixel, into tables that take turns: equal neighbours do not wait for each other.
class LevelTables {
 public:
  explicit LevelTables(uint32_t* histogram) : histogram_(histogram) {}

  template <class Fetch>
  void count(const uint8_t* levels, int64_t n, const Fetch& fetch) {
    for (int64_t j = 0; j < n; j += kGroup) fetch(j);
    int64_t i = 0;
    for (; i + kGroup <= n; i += kGroup) {
      uint64_t words[2];
      std::memcpy(words, levels + i, sizeof(words));
      if (words[0] == words[1] && words[0] == levels[i] * 0x0101010101010101u) {
        tables_[0][levels[i]] += kGroup;
        continue;
      }
      for (int j = 0; j < kGroup; ++j) ++tables_[j % kTables][levels[i + j]];
    }
    for (; i < n; ++i) ++tables_[0][levels[i]];
  }

  void finish() {
    for (const auto& table : tables_) {
      for (int level = 0; level < kLevels; ++level) histogram_[level] += table[level];
    }
  }

 private:
  static constexpr int kTables = 4;

  uint32_t* histogram_;
  uint32_t tables_[kTables][kLevels] = {};
};

// A pair of levels, in either order, is counted in the row of their difference at the lower level: few
// rows of a smooth map hold anything, and they stay in the cache. Counts are bytes; one that is full
// goes on from 0.
class LevelPairs {
 public:
  explicit LevelPairs(uint32_t* histogram) : histogram_(histogram), counts_(counts_of_thread()) {}

  template <class Fetch>
  void count(const uint8_t* levels, int64_t n, const Fetch& fetch) {
    int64_t i = 0;
    for (; i + kBlock <= n; i += kBlock) count_block(levels + i, fetch);
    for (; i < n; ++i) ++histogram_[levels[i]];
  }

  // Adds up the counts and clears them. 16 bits hold each sum: of 256 bytes at most.
  void finish() {
    uint16_t lower[kLevels] = {}, higher[kLevels] = {};
    const int rows = (*std::max_element(highest_, highest_ + kLanes) >> 8) + 1;
    for (int row = 0; row < rows; row += kRows) add_rows(row, lower, higher);
    higher[0] = counts_[0];  // the one pair whose higher level is 0
    std::memset(counts_, 0, (rows + kRows - 1) / kRows * kRows * kLevels);
    for (int level = 0; level < kLevels; ++level) {
      histogram_[level] += uint32_t{lower[level]} + higher[level];
    }
  }

  static constexpr int64_t kBlock = 512;

 private:
  static constexpr int kPairs = kBlock / 2, kLanes = 32;
  static constexpr int kRows = 4, kColumns = 64;  // added up at once

  // Zeros between maps.
  static uint8_t* counts_of_thread() {
    thread_local const auto counts = std::make_unique<uint8_t[]>(kLevels * kLevels);
    return counts.get();
  }

  // In row r the pair of higher level h is at column h - r. Columns below 0 fall into the row before,
  // whose columns from 257 - r on are empty: only higher[0] gets what is not its own.
  void add_rows(int row, uint16_t* lower, uint16_t* higher) const {
    const uint8_t* const counts = counts_ + row * kLevels;
    const int first = row / kColumns * kColumns;
    for (int level = 0; level < kLevels - first; level += kColumns) {
      add_columns(counts + level, kLevels, lower + level);
    }
    for (int level = first; level < kLevels; level += kColumns) {
      add_columns(counts + level - row, kLevels - 1, higher + level);
    }
  }

  // Not inlined: count_block() would lose registers to it.
  [[gnu::noinline]] static void add_columns(const uint8_t* counts, int stride, uint16_t* sums) {
    for (int column = 0; column < kColumns; ++column) {
      uint16_t sum = 0;
      for (int row = 0; row < kRows; ++row) sum += counts[row * stride + column];
      sums[column] += sum;
    }
  }

  template <class Fetch>
  void count_block(const uint8_t* levels, const Fetch& fetch) {
    alignas(64) uint16_t pairs[kPairs];
    std::memcpy(pairs, levels, kBlock);
    for (int i = 0; i < kPairs; i += kLanes) {
      for (int j = 0; j < kLanes; ++j) {
        const uint16_t a = pairs[i + j] & 255, b = pairs[i + j] >> 8;
        const uint16_t lower = std::min(a, b), higher = std::max(a, b);
        pairs[i + j] = static_cast<uint16_t>((higher - lower) << 8 | lower);
        highest_[j] = std::max(highest_[j], pairs[i + j]);
      }
    }
    for (int i = 0; i < kPairs; i += kGroup / 2) {
      fetch(2 * i);
      count_group(pairs + i);
    }
  }

  void count_group(const uint16_t* pairs) {
    uint32_t* const histogram = histogram_;  // else a store of a byte might change where they are
    uint8_t* const counts = counts_;
    uint64_t words[2];
    std::memcpy(words, pairs, sizeof(words));
    const int level = pairs[0] & 255;
    if (words[0] == words[1] && words[0] == level * 0x0001000100010001u) {
      histogram[level] += kGroup;
      return;
    }
    for (int i = 0; i < kGroup / 2; ++i) {
      const size_t pair = pairs[i];
      if (++counts[pair] == 0) [[unlikely]] {
        histogram[pair & 255] += 256;
        histogram[(pair & 255) + (pair >> 8)] += 256;
      }
    }
  }

  uint32_t* histogram_;
  uint8_t* counts_;
  uint16_t highest_[kLanes] = {};  // the highest row is that of the highest pair
};

template <class Counter>
void count_by(const uint8_t* levels, int64_t n, uint32_t* histogram) {
  Counter counter(histogram);
  counter.count(levels, n, [](int64_t) {});
  counter.finish();
}

// Adds n < 2^32 levels, written just before this, to the histogram.
inline void count_levels(const uint8_t* levels, int64_t n, uint32_t* histogram) {
  n < kManyPixels ? count_by<LevelTables>(levels, n, histogram)
                  : count_by<LevelPairs>(levels, n, histogram);
}

}  // namespace wsfast::boxes::WS_SIMD
