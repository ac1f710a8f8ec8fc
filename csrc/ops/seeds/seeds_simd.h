// The loops over pixels of the seeds room, one copy per instruction set (core/foreach_simd.h):
// plain loops that the compiler vectorises. Buffers of bytes are padded with zeros to whole blocks.
// No include guard.

#include "../boxes/boxes_histogram.h"
#include "seeds_math.h"

namespace wsfast::seeds::WS_SIMD {

struct Loops {
  static constexpr int kBlock = 64;   // pixels
  static constexpr int kWord = 8;     // pixels whose bytes are looked at together

  // Cleaned values and their levels. False if the map holds NaN.
  static bool clean(const float* map, int64_t n, uint32_t* bits, uint8_t* levels) {
    int unknown = 0;
    for (int64_t i = 0; i < n; ++i) {
      unknown |= map[i] != map[i];
      bits[i] = clean_bits(map[i]);
      levels[i] = static_cast<uint8_t>(level_of_bits(bits[i]));
    }
    return unknown == 0;
  }

  // region = levels > level, inside `allowed` (null: everywhere).
  static void mark_above(const uint8_t* levels, int level, const uint8_t* allowed, int64_t n,
                         uint8_t* region) {
    const auto limit = static_cast<uint8_t>(level);
    for (int64_t i = 0; i < n; ++i) region[i] = levels[i] > limit;
    if (allowed != nullptr) intersect(allowed, n, region);
  }

  static void mark_below(const uint8_t* levels, int level, const uint8_t* allowed, int64_t n,
                         uint8_t* region) {
    const auto limit = static_cast<uint8_t>(level);
    for (int64_t i = 0; i < n; ++i) region[i] = levels[i] < limit;
    if (allowed != nullptr) intersect(allowed, n, region);
  }

  static void intersect(const uint8_t* other, int64_t n, uint8_t* region) {
    for (int64_t i = 0; i < n; ++i) region[i] &= other[i];
  }

  static void drop_zeros(const uint32_t* bits, int64_t n, uint8_t* region) {
    for (int64_t i = 0; i < n; ++i) region[i] &= bits[i] != 0;
  }

  static void invert(const uint8_t* mask, int64_t n, uint8_t* inverse) {
    for (int64_t i = 0; i < n; ++i) inverse[i] = mask[i] ^ 1;
  }

  // Ones of a padded mask.
  static int64_t count(const uint8_t* mask, int64_t n) {
    int64_t total = 0;
    for (int64_t i = 0; i < n; i += kWord) total += std::popcount(word_at(mask + i));
    return total;
  }

  // Adds the pixels of each level, inside `allowed` (null: everywhere), to the histogram.
  static void count_levels(const uint8_t* levels, const uint8_t* allowed, int64_t n,
                           uint32_t* histogram) {
    if (allowed != nullptr) return count_allowed(levels, allowed, n, histogram);
    boxes::WS_SIMD::count_levels(levels, n, histogram);
  }

  // The sum of the levels inside the region.
  static int64_t sum_levels(const uint8_t* levels, const uint8_t* region, int64_t n) {
    int64_t total = 0;
    for (int64_t i = 0; i < n; ++i) total += levels[i] & -region[i];
    return total;
  }

  static void smallest_and_largest(const uint32_t* values, int64_t n, uint32_t& least,
                                   uint32_t& most) {
    uint32_t low = ~0u, high = 0;
    for (int64_t i = 0; i < n; ++i) {
      low = values[i] < low ? values[i] : low;
      high = values[i] > high ? values[i] : high;
    }
    least = low;
    most = high;
  }

  static void hash_pixels(const Stream& stream, const uint32_t* pixels, int64_t n,
                          uint32_t* hashes) {
    for (int64_t i = 0; i < n; ++i) hashes[i] = stream(pixels[i]);
  }

  // target |= source
  static void unite(const uint8_t* source, int64_t n, uint8_t* target) {
    for (int64_t i = 0; i < n; ++i) target[i] |= source[i];
  }

  static void write_seeds(const uint8_t* claims, int64_t n, int64_t* seeds) {
    for (int64_t i = 0; i < n; ++i) seeds[i] = seed_of(claims[i]);
  }

  // Pixels of the region whose hash is at most `limit`, as hash << 32 | pixel; their number.
  static int64_t collect_hashes(const uint8_t* region, int64_t n, const Stream& stream,
                                uint32_t limit, uint64_t* keys) {
    return collect(region, n, stream, keys, [&](const uint32_t* hash, int64_t, uint8_t* hit) {
      for (int j = 0; j < kBlock; ++j) hit[j] = hash[j] <= limit;
    });
  }

  // Pixels of the region whose hash is at most `factor` times their value, a little more at most.
  static int64_t collect_clocks(const uint8_t* region, int64_t n, const Stream& stream,
                                const uint32_t* bits, float factor, uint64_t* keys) {
    const float limit = factor / 256;
    return collect(region, n, stream, keys, [&](const uint32_t* hash, int64_t i, uint8_t* hit) {
      for (int j = 0; j < kBlock; ++j) {
        hit[j] = static_cast<float>(static_cast<int32_t>(hash[j] >> 8)) <=
                 limit * bits_float(bits[i + j]);
      }
    });
  }

 private:
  // The tables take turns: equal neighbours do not wait for each other.
  static void count_allowed(const uint8_t* levels, const uint8_t* allowed, int64_t n,
                            uint32_t* histogram) {
    uint32_t tables[4][kLevels] = {};
    for (int64_t i = 0; i < n; ++i) tables[i % 4][levels[i]] += allowed[i];
    for (const auto& table : tables) {
      for (int level = 0; level < kLevels; ++level) histogram[level] += table[level];
    }
  }

  // test(hashes, first, hit) says which pixels of a block are wanted.
  template <class Test>
  static int64_t collect(const uint8_t* region, int64_t n, const Stream& stream, uint64_t* keys,
                         const Test& test) {
    int64_t found = 0;
    uint32_t hash[kBlock];
    uint8_t hit[kBlock];
    for (int64_t i = 0; i < n; i += kBlock) {
      if (!any(region + i)) continue;
      for (int j = 0; j < kBlock; ++j) hash[j] = stream(static_cast<uint32_t>(i + j));
      test(hash, i, hit);
      for (int j = 0; j < kBlock; ++j) hit[j] &= region[i + j];
      for (int first = 0; first < kBlock; first += kWord) {
        if (word_at(hit + first) == 0) continue;
        for (int j = first; j < first + kWord; ++j) {
          keys[found] = order_of(hash[j], static_cast<uint32_t>(i + j));
          found += hit[j];
        }
      }
    }
    return found;
  }

  static uint64_t word_at(const uint8_t* bytes) {
    uint64_t word;
    std::memcpy(&word, bytes, sizeof(word));
    return word;
  }

  static bool any(const uint8_t* block) {
    uint64_t together = 0;
    for (int j = 0; j < kBlock; j += kWord) together |= word_at(block + j);
    return together != 0;
  }
};

}  // namespace wsfast::seeds::WS_SIMD
