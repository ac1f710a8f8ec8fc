// The seeds of one image after the other on one CPU thread. No torch.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "seeds_math.h"
#include "seeds_select.h"

namespace wsfast::seeds {

// Where foreground may be in one image: a mask, else a box (x0, y0, x1, y1), else anywhere.
struct Roi {
  const uint8_t* mask;
  const int32_t* box;
};

template <class Loops>
class Sampler {
 public:
  Sampler(int64_t height, int64_t width, const Options& options)
      : height_(height),
        width_(width),
        pixels_(height * width),
        options_(options),
        bits_(padded(pixels_)),
        levels_(padded(pixels_)),
        roi_(padded(pixels_)),
        region_(padded(pixels_)),
        spare_(padded(pixels_)),
        claims_(pixels_),
        line_(padded(width)),
        used_rows_(height),
        indices_(new uint32_t[pixels_ + 1]),  // left unset: most pixels need none of these
        tied_(new uint32_t[pixels_ + 1]),
        words_(new uint32_t[pixels_ + 1]),
        keys_(new uint64_t[padded(pixels_) + 1]) {}

  // Writes the image's seeds. False if the map holds NaN.
  bool sample(const float* map, uint64_t key, const Roi& roi, bool background_only,
              int64_t* seeds) {
    const bool numbers = Loops::clean(map, pixels_, bits_.data(), levels_.data());
    mark_roi(roi);
    int64_t histogram[kLevels];
    count_levels(nullptr, histogram);
    const bool varies = histogram[levels_[0]] < pixels_;
    std::fill(claims_.begin(), claims_.end(), 0);
    std::fill(used_rows_.begin(), used_rows_.end(), 0);
    if (varies && !background_only) {
      mark_foreground(key, histogram);
      claim(draw(options_.foreground, options_.weighted, Stream(key, Purpose::draw_foreground)),
            kForegroundClaim);
    }
    if (background_only) {
      std::fill_n(region_.begin(), pixels_, 1);
    } else if (varies) {
      mark_background(key, histogram);
    }
    if (varies || background_only) {
      claim(draw(options_.background, false, Stream(key, Purpose::draw_background)),
            kBackgroundClaim);
    }
    write(seeds);
    return numbers;
  }

 private:
  static size_t padded(int64_t n) {
    return static_cast<size_t>(ceil_div(n, Loops::kBlock) * Loops::kBlock);
  }

  // ---- regions ----------------------------------------------------------------------------------

  void mark_roi(const Roi& roi) {
    has_roi_ = roi.mask != nullptr || roi.box != nullptr;
    if (roi.mask != nullptr) std::copy_n(roi.mask, pixels_, roi_.begin());
    if (roi.mask != nullptr || roi.box == nullptr) return;
    std::fill_n(roi_.begin(), pixels_, 0);
    const int64_t x0 = std::clamp<int64_t>(roi.box[0], 0, width_);
    const int64_t x1 = std::clamp<int64_t>(roi.box[2], x0, width_);
    const int64_t y0 = std::max(roi.box[1], 0);
    for (int64_t y = y0; y < std::min<int64_t>(roi.box[3], height_); ++y) {
      std::fill_n(roi_.begin() + y * width_ + x0, x1 - x0, 1);
    }
  }

  // Pixels of each level, inside `allowed` (null: everywhere).
  void count_levels(const uint8_t* allowed, int64_t* histogram) const {
    uint32_t counts[kLevels] = {};
    Loops::count_levels(levels_.data(), allowed, pixels_, counts);
    std::copy_n(counts, kLevels, histogram);
  }

  void mark_foreground(uint64_t key, const int64_t* histogram) {
    const uint8_t* const allowed = has_roi_ ? roi_.data() : nullptr;
    if (options_.top) {
      mark_share<true>(allowed, options_.foreground_share, histogram,
                       Stream(key, Purpose::ties_foreground));
    } else {
      const int level = region_level(boxes::otsu_level(histogram, 0));
      Loops::mark_above(levels_.data(), level, allowed, pixels_, region_.data());
    }
    if (options_.erode_radius > 0) erode();
  }

  void mark_background(uint64_t key, const int64_t* histogram) {
    const uint8_t* allowed = nullptr;
    if (options_.outside_roi) {
      Loops::invert(roi_.data(), pixels_, spare_.data());
      allowed = spare_.data();
    }
    mark_share<false>(allowed, options_.background_share, histogram,
                      Stream(key, Purpose::ties_background));
  }

  // The highest or lowest share of the allowed pixels; a cut through equal values goes by hash.
  template <bool Highest>
  void mark_share(const uint8_t* allowed, double share, const int64_t* whole, const Stream& ties) {
    int64_t counted[kLevels];
    const int64_t* histogram = whole;
    int64_t available = pixels_;
    if (allowed != nullptr) {
      count_levels(allowed, counted);
      histogram = counted;
      available = Loops::count(allowed, pixels_);
    }
    int64_t rest = share_of(available, share);
    if (rest == 0) {
      std::fill_n(region_.begin(), pixels_, 0);
      return;
    }
    int level = Highest ? kLevels - 1 : 0;
    for (; rest > histogram[level]; level += Highest ? -1 : 1) rest -= histogram[level];
    if constexpr (Highest) {
      Loops::mark_above(levels_.data(), level, allowed, pixels_, region_.data());
    } else {
      Loops::mark_below(levels_.data(), level, allowed, pixels_, region_.data());
    }
    add_from_level<Highest>(level, allowed, rest, ties);
  }

  static uint32_t place(bool highest, uint32_t bits) { return highest ? kOne - bits : bits; }

  // Adds the first `rest` of the level's allowed pixels to the region.
  template <bool Highest>
  void add_from_level(int level, const uint8_t* allowed, int64_t rest, const Stream& ties) {
    int64_t found = 0;
    for (int64_t i = 0; i < pixels_; ++i) {
      indices_[found] = static_cast<uint32_t>(i);
      found += (levels_[i] == level) & (allowed == nullptr ? 1 : allowed[i]);
    }
    if (rest < found) found = keep_first<Highest>(found, rest, ties);
    for (int64_t i = 0; i < found; ++i) region_[indices_[i]] = 1;
  }

  // Leaves the first `rest` of the pixels in indices_; their number.
  template <bool Highest>
  int64_t keep_first(int64_t found, int64_t rest, const Stream& ties) {
    for (int64_t i = 0; i < found; ++i) words_[i] = place(Highest, bits_[indices_[i]]);
    const uint32_t cut = kth_smallest<Loops>(words_.get(), found, rest - 1);
    int64_t before = 0, tied = 0;
    for (int64_t i = 0; i < found; ++i) {
      const uint32_t pixel = indices_[i], word = place(Highest, bits_[pixel]);
      indices_[before] = pixel;
      tied_[tied] = pixel;
      before += word < cut;
      tied += word == cut;
    }
    uint32_t last = ~0u;
    if (before + tied > rest) {
      Loops::hash_pixels(ties, tied_.get(), tied, words_.get());
      last = kth_smallest<Loops>(words_.get(), tied, rest - before - 1);
    }
    Loops::hash_pixels(ties, tied_.get(), tied, words_.get());
    for (int64_t i = 0; i < tied; ++i) {
      indices_[before] = tied_[i];
      before += words_[i] <= last;
    }
    return before;
  }

  // Shrinks the region by the square: pixels within reach of the complement go, unless all would.
  void erode() {
    const int64_t radius = options_.erode_radius;
    Loops::invert(region_.data(), pixels_, spare_.data());
    rows_.assign(spare_.begin(), spare_.end());
    for (int64_t y = 0; y < height_; ++y) {
      const uint8_t* const from = spare_.data() + y * width_;
      uint8_t* const to = rows_.data() + y * width_;
      for (int64_t d = 1; d <= std::min(radius, width_ - 1); ++d) {
        Loops::unite(from + d, width_ - d, to);
        Loops::unite(from, width_ - d, to + d);
      }
    }
    spare_.assign(rows_.begin(), rows_.end());
    for (int64_t d = 1; d <= std::min(radius, height_ - 1); ++d) {
      Loops::unite(rows_.data() + d * width_, pixels_ - d * width_, spare_.data());
      Loops::unite(rows_.data(), pixels_ - d * width_, spare_.data() + d * width_);
    }
    if (Loops::count(spare_.data(), pixels_) == pixels_) return;
    Loops::invert(spare_.data(), pixels_, region_.data());
  }

  // ---- draws ------------------------------------------------------------------------------------

  // Draws from the region without replacement; the drawn pixels are the low words of keys_.
  int64_t draw(int64_t wanted, bool weighted, const Stream& stream) {
    if (weighted) Loops::drop_zeros(bits_.data(), pixels_, region_.data());
    const int64_t size = Loops::count(region_.data(), pixels_);
    wanted = std::min(wanted, size);
    if (wanted == 0) return 0;
    if (wanted == size) {
      return Loops::collect_hashes(region_.data(), pixels_, stream, ~0u, keys_.get());
    }
    const int64_t found =
        weighted ? race_clocks(wanted, size, stream) : race_hashes(wanted, size, stream);
    std::nth_element(keys_.get(), keys_.get() + wanted - 1, keys_.get() + found);
    return wanted;
  }

  // So many pixels that hardly ever fewer than `wanted` are among them.
  static double ample(int64_t wanted) {
    const auto n = static_cast<double>(wanted);
    return n + 6 * std::sqrt(n) + 16;
  }

  // Keys of the pixels of smallest hash, `wanted` or more.
  int64_t race_hashes(int64_t wanted, int64_t size, const Stream& stream) {
    const double part = ample(wanted) / static_cast<double>(size);
    if (part < 0.5) {
      const auto limit = static_cast<uint32_t>(part * 0x1p32);
      const int64_t found =
          Loops::collect_hashes(region_.data(), pixels_, stream, limit, keys_.get());
      if (found >= wanted) return found;
    }
    return Loops::collect_hashes(region_.data(), pixels_, stream, ~0u, keys_.get());
  }

  // Keys of the pixels whose clocks ring first, `wanted` or more. No clock rings before
  // hash / 2^32 / value, so few logarithms are needed.
  int64_t race_clocks(int64_t wanted, int64_t size, const Stream& stream) {
    const double part = 1.1 * ample(wanted) / static_cast<double>(size);
    if (part < 0.7) {  // that part of the clocks rings by `time`, if the values are alike
      const auto levels =
          static_cast<double>(Loops::sum_levels(levels_.data(), region_.data(), pixels_));
      const double mean = (levels / static_cast<double>(size) + 0.5) / 255;
      const double time = -std::log1p(-part) / mean;
      const int64_t found =
          Loops::collect_clocks(region_.data(), pixels_, stream, bits_.data(),
                                static_cast<float>(time * 0x1p32 * (1 + 1e-5)), keys_.get());
      if (read_clocks(found, static_cast<float>(time)) >= wanted) return found;
    }
    const int64_t found = Loops::collect_hashes(region_.data(), pixels_, stream, ~0u, keys_.get());
    read_clocks(found, 0);
    return found;
  }

  // Turns hashes into clocks; how many ring by `time`.
  int64_t read_clocks(int64_t found, float time) {
    int64_t early = 0;
    for (int64_t i = 0; i < found; ++i) {
      const auto pixel = static_cast<uint32_t>(keys_[i]);
      const float clock = clock_of(static_cast<uint32_t>(keys_[i] >> 32), bits_[pixel]);
      early += clock <= time;
      keys_[i] = order_of(float_bits(clock), pixel);
    }
    return early;
  }

  // ---- seeds ------------------------------------------------------------------------------------

  // Claims the rows of the squares around the drawn pixels; columns follow in write().
  void claim(int64_t drawn, uint8_t who) {
    const int64_t radius = options_.dilate_radius;
    for (int64_t i = 0; i < drawn; ++i) {
      const auto pixel = static_cast<uint32_t>(keys_[i]), width = static_cast<uint32_t>(width_);
      const int64_t y = pixel / width, x = pixel % width;
      used_rows_[y] = 1;
      const int64_t end = std::min(x + radius + 1, width_);
      for (int64_t at = std::max<int64_t>(x - radius, 0); at < end; ++at) {
        claims_[y * width_ + at] |= who;
      }
    }
  }

  void write(int64_t* seeds) {
    const int64_t radius = options_.dilate_radius;
    for (int64_t y = 0; y < height_; ++y) {
      bool any = false;
      const int64_t end = std::min(y + radius + 1, height_);
      for (int64_t row = std::max<int64_t>(y - radius, 0); row < end; ++row) {
        if (!used_rows_[row]) continue;
        if (!any) std::fill(line_.begin(), line_.end(), 0);
        any = true;
        Loops::unite(claims_.data() + row * width_, width_, line_.data());
      }
      if (any) {
        Loops::write_seeds(line_.data(), width_, seeds + y * width_);
      } else {
        std::fill_n(seeds + y * width_, width_, seed_of(0));
      }
    }
  }

  int64_t height_, width_, pixels_;
  const Options& options_;
  bool has_roi_ = false;
  std::vector<uint32_t> bits_;
  std::vector<uint8_t> levels_, roi_, region_, spare_, rows_, claims_, line_, used_rows_;
  std::unique_ptr<uint32_t[]> indices_, tied_, words_;
  std::unique_ptr<uint64_t[]> keys_;
};

}  // namespace wsfast::seeds
