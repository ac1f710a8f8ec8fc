// Connected components of one mask by runs, one copy per instruction set (boxes_simd.h includes it).
// Rows are bits. With 8 neighbours two rows make a strip: pixels of neighbouring columns of a strip
// always touch, so a run of columns with a pixel in either row is connected, and there are less than
// half as many runs to join. With 4 neighbours a strip is one row. Labels are written only by who
// asks for them. No recursion, so no shape can overflow the stack. No include guard.

#include "boxes_union.h"

namespace wsfast::boxes::WS_SIMD {

// Labels masks of one size, one after the other, in memory that is kept between them.
class RunLabeler {
 public:
  // Columns [begin, end) of the strip that begins at row y, and its pixels in either row.
  struct Run {
    int32_t y, begin, end, component, upper, lower;
  };

  RunLabeler(int32_t height, int32_t width, int connectivity)
      : height_(height),
        width_(width),
        words_((width + 63) / 64),
        strip_rows_(connectivity == 8 ? 2 : 1),
        strip_start_((height + strip_rows_ - 1) / strip_rows_ + 1),
        strips_(2 * (words_ + 2)),
        bits_((int64_t{height} + 1) * words_) {}

  // fill_bits(y, words) writes row y: bit x % 64 of words[x / 64] says that pixel x is inside.
  // Returns the number of components, which are numbered from 0 in raster order of first pixels.
  template <class FillBits>
  int32_t label(const FillBits& fill_bits) {
    std::fill(strips_.begin(), strips_.end(), Word{});
    int32_t runs = 0;
    for (int32_t s = 0; s < strips(); ++s) {
      for (int32_t y = s * strip_rows_; y < std::min(height_, (s + 1) * strip_rows_); ++y) {
        fill_bits(y, row_bits(y));
      }
      Word* const strip = strips_.data() + (s % 2) * (words_ + 2) + 1;  // empty words at both ends
      const Word* const above = strips_.data() + (1 - s % 2) * (words_ + 2) + 1;
      strip_start_[s] = runs;
      runs = append_runs(s, strip, runs);
      join_strip(strip, above, runs);
    }
    strip_start_[strips()] = runs;
    return number_components(runs);
  }

  // Of a row's bits.
  int32_t words() const { return words_; }

  // Calls visit(run) for the runs of all strips from the top, from left to right.
  template <class Visit>
  void for_runs(const Visit& visit) const {
    for (int32_t s = 0; s < strips(); ++s) for_strip(s, visit);
  }

  // Calls visit(component, begin, end) for the stretches of pixels of one row, from left to right.
  template <class Visit>
  void for_row(int32_t y, const Visit& visit) const {
    for_strip(y / strip_rows_, [&](const Run& run) {
      for_stretches(y, run, y == run.y ? run.upper : run.lower,
                    [&](int32_t, int32_t begin, int32_t end) { visit(run.component, begin, end); });
    });
  }

  // Writes `value` to a run's pixels of an image.
  void paint(const Run& run, int32_t value, int32_t* image) const {
    if (run.upper > 0) paint_row(run.y, run, value, image);
    if (run.lower > 0) paint_row(run.y + 1, run, value, image);
  }

  // Calls visit(y, begin, end) for the stretches of pixels of a run's rows.
  template <class Visit>
  void for_stretches(const Run& run, const Visit& visit) const {
    for_stretches(run.y, run, run.upper, visit);
    for_stretches(run.y + 1, run, run.lower, visit);
  }

 private:
  // Pixels in the first and second row of a strip.
  struct Filled {
    int32_t upper, lower;
  };

  // 64 columns of a strip: pixels of its first and last row, columns with any pixel, which of them
  // begin a run, and how many runs of the mask begin before.
  struct Word {
    uint64_t first, last, any, starts;
    int32_t runs_before;

    // The run that column `bit` belongs to or, if outside, the last one that begins before it.
    int32_t run_at(int bit) const {
      return runs_before + std::popcount(starts & (~uint64_t{0} >> (63 - bit))) - 1;
    }
  };

  static constexpr int kUnroll = 4;  // so many positions are written past the last one

  template <class Visit>
  void for_strip(int32_t s, const Visit& visit) const {
    for (int32_t r = strip_start_[s]; r < strip_start_[s + 1]; ++r) {
      const Filled& filled = filled_[r];
      visit(Run{s * strip_rows_, begin_[r], end_[r], parent_[r], filled.upper, filled.lower});
    }
  }

  int32_t strips() const { return static_cast<int32_t>(strip_start_.size()) - 1; }
  uint64_t* row_bits(int32_t y) { return bits_.data() + int64_t{y} * words_; }

  void reserve(int64_t runs) {
    const auto needed = static_cast<size_t>(runs);
    if (needed <= parent_.size()) return;
    const size_t size = std::max(needed, 2 * parent_.size());
    begin_.resize(size);
    end_.resize(size);
    parent_.resize(size);
    filled_.resize(size);
  }

  // Adds the runs of a strip, which become its words; the number of runs so far.
  int32_t append_runs(int32_t strip, Word* words, int32_t runs) {
    reserve(int64_t{runs} + width_ / 2 + 1 + kUnroll);
    const uint64_t* const upper = row_bits(strip * strip_rows_);
    const uint64_t* const lower = upper + words_;  // the row after the last one stays empty
    const bool two_rows = strip_rows_ == 2;
    const int32_t first = runs;
    int32_t ended = runs;
    Filled open{};  // pixels of the run that goes on
    uint64_t carried = 0;
    for (int32_t w = 0; w < words_; ++w) {
      const uint64_t second = two_rows ? lower[w] : 0, any = upper[w] | second;
      const uint64_t shifted = any << 1 | carried, starts = any & ~shifted, ends = ~any & shifted;
      words[w] = {upper[w], two_rows ? second : upper[w], any, starts, runs};
      open = append_word(upper[w], second, starts, ends, w * 64, open, runs, ended);
      runs += std::popcount(starts);
      ended += std::popcount(ends);
      carried = any >> 63;
    }
    if (ended < runs) {
      end_[ended] = width_;
      filled_[ended] = open;
    }
    for (int32_t r = first; r < runs; ++r) parent_[r] = r;
    return runs;
  }

  // Writes where runs begin in a word, from `run` on, and where they end and their pixels, from
  // `ended` on. `open` are the pixels in earlier words of the run that goes on; the return value is
  // the same for the next word.
  Filled append_word(uint64_t upper, uint64_t lower, uint64_t starts, uint64_t ends, int32_t base,
                     Filled open, int32_t run, int32_t ended) {
    const uint64_t rest = ends == 0 ? ~uint64_t{0} : ~uint64_t{0} << (63 - std::countl_zero(ends));
    const Filled left{std::popcount(upper & rest), std::popcount(lower & rest)};
    const int32_t count = std::max(std::popcount(starts), std::popcount(ends));
    const bool closes = ends != 0;
    for (int32_t i = 0; i < count; i += kUnroll) {
      for (int k = i; k < i + kUnroll; ++k) {
        const uint64_t below = (ends & -ends) - 1;
        begin_[run + k] = base + std::countr_zero(starts);
        end_[ended + k] = base + std::countr_zero(ends);
        filled_[ended + k] = {std::popcount(upper & below), std::popcount(lower & below)};
        upper &= ~below;
        lower &= ~below;
        starts &= starts - 1;
        ends &= ends - 1;
      }
    }
    if (!closes) return {open.upper + left.upper, open.lower + left.lower};
    filled_[ended].upper += open.upper;
    filled_[ended].lower += open.lower;
    return left;
  }

  // Joins a strip's runs with those of the strip above; `runs` is the number of runs so far.
  void join_strip(const Word* strip, const Word* above, int32_t runs) {
    const int32_t first = strip[0].runs_before;
    if (runs == first || first == above[0].runs_before) return;  // one of them is empty
    uint64_t met = 0;
    for (int32_t w = 0; w < words_; ++w) met = join_word(strip + w, above + w, met);
  }

  // The marked bits and all after them, to the end of their stretch of set bits: an addition
  // carries from a stretch's first mark to its end.
  static uint64_t to_end(uint64_t stretches, uint64_t marks) {
    return (((stretches + marks) ^ stretches) | marks) & stretches;
  }

  // Joins the runs of a word with those of the strip above that they touch. A run that meets its
  // first contact just takes over that run's parent: no search, no branch to mispredict. `met` is 1
  // if the last word's last run goes on and has met one; the return value is the same of this word.
  uint64_t join_word(const Word* strip, const Word* above, uint64_t met) {
    const Word lower = *strip, upper = *above;
    const uint64_t diagonal = strip_rows_ == 2 ? ~uint64_t{0} : 0;
    const uint64_t here = lower.first, up = upper.last;
    const uint64_t here_left = here << 1 | strip[-1].first >> 63;
    const uint64_t here_right = here >> 1 | strip[1].first << 63;
    const uint64_t up_left = (up << 1 | above[-1].last >> 63) & diagonal;
    const uint64_t up_right = (up >> 1 | above[1].last << 63) & diagonal;
    // A pixel below a run's column touches that run alone. Two runs are joined once per stretch of
    // columns of both.
    const uint64_t below = here & upper.any & (up | up_left | up_right);
    const uint64_t joined = to_end(lower.any & upper.any, below) << 1;
    // A pixel below a gap touches the runs at either side; where its stretch of pixels goes on to
    // that side, the next pixel has joined them.
    const uint64_t gap = here & ~upper.any;
    const uint64_t contacts = (below & ~joined) | (gap & up_left & ~here_left);
    const uint64_t right_contacts = gap & up_right & ~here_right;
    if ((contacts | right_contacts) == 0) return lower.any == ~uint64_t{0} ? met : 0;

    const uint64_t after = to_end(lower.any, contacts | right_contacts | (met & lower.any));
    const uint64_t later = after << 1 | met;  // than the first contact of their run
    for_bits((contacts | right_contacts) & ~later, [&](int bit) {
      const bool left = contacts >> bit & 1;
      adopt(upper.run_at(bit) + !left, lower.run_at(bit));
    });
    const uint64_t left_joins = contacts & later;  // few loops: the end of each is hard to predict
    for_bits(left_joins | (right_contacts & (later | contacts)), [&](int bit) {
      const int32_t above_run = upper.run_at(bit), run = lower.run_at(bit);
      if (left_joins >> bit & 1) unite(parent_.data(), above_run, run);
      if (right_contacts >> bit & 1) unite(parent_.data(), above_run + 1, run);
    });
    return after >> 63;
  }

  template <class Visit>
  static void for_bits(uint64_t bits, const Visit& visit) {
    for (; bits != 0; bits &= bits - 1) visit(std::countr_zero(bits));
  }

  void adopt(int32_t above, int32_t run) { parent_[run] = parent_[parent_[above]]; }

  // Turns parents, which never come after their run, into component numbers.
  int32_t number_components(int32_t runs) {
    number_.resize(parent_.size());
    for (int32_t r = 0; r < runs; ++r) parent_[r] = parent_[parent_[r]];
    int32_t components = 0;
    for (int32_t s = 0; s < strips(); ++s) components = number_strip(s, components);
    for (int32_t r = 0; r < runs; ++r) parent_[r] = number_[parent_[r]];
    return components;
  }

  // Numbers the components that begin in a strip, those with a pixel in its first row before those
  // without; the number of components so far.
  int32_t number_strip(int32_t strip, int32_t components) {
    const int32_t begin = strip_start_[strip], end = strip_start_[strip + 1];
    int32_t upper_roots = 0, roots = 0, rises = 0;
    for (int32_t r = begin; r < end; ++r) {
      const int32_t root = parent_[r];
      const int32_t is_root = root == r, has_upper = filled_[r].upper > 0;
      roots += is_root;
      upper_roots += is_root & has_upper;
      rises |= has_upper & (root >= begin) & (filled_[root].upper == 0);
    }
    if (rises) return number_rising_strip(begin, end, components);
    int32_t next[2] = {components + upper_roots, components};  // without and with an upper pixel
    for (int32_t r = begin; r < end; ++r) {
      const int32_t has_upper = filled_[r].upper > 0;
      number_[r] = next[has_upper];
      next[has_upper] += parent_[r] == r;
    }
    return components + roots;
  }

  // The same where a component's first run has no pixel in the first row but a later one has.
  int32_t number_rising_strip(int32_t begin, int32_t end, int32_t components) {
    for (int32_t r = begin; r < end; ++r) number_[r] = -1;
    for (int32_t r = begin; r < end; ++r) {
      const int32_t root = parent_[r];
      if (root >= begin && number_[root] < 0 && filled_[r].upper > 0) number_[root] = components++;
    }
    for (int32_t r = begin; r < end; ++r) {
      if (parent_[r] == r && number_[r] < 0) number_[r] = components++;
    }
    return components;
  }

  void paint_row(int32_t y, const Run& run, int32_t value, int32_t* image) const {
    const uint64_t* const row = bits_.data() + int64_t{y} * words_;
    for (int32_t x = run.begin; x < run.end;) {
      const int32_t columns = std::min(64 - x % 64, run.end - x);
      const uint64_t bits = row[x / 64] >> (x % 64) & (~uint64_t{0} >> (64 - columns));
      simd::WS_SIMD::store_where(bits, value, image + int64_t{y} * width_ + x);
      x += columns;
    }
  }

  template <class Visit>
  void for_stretches(int32_t y, const Run& run, int32_t pixels, const Visit& visit) const {
    if (pixels == 0) return;
    if (pixels == run.end - run.begin) return visit(y, run.begin, run.end);
    const uint64_t* const row = bits_.data() + int64_t{y} * words_;
    int32_t end = run.begin;
    while (pixels > 0) {
      const int32_t begin = next_pixel(row, 0, end);
      end = next_pixel(row, ~uint64_t{0}, begin);
      visit(y, begin, end);
      pixels -= end - begin;
    }
  }

  // The first column from x on that is inside or, with all bits inverted, outside.
  int32_t next_pixel(const uint64_t* row, uint64_t inverted, int32_t x) const {
    int32_t w = x / 64;
    uint64_t bits = (row[w] ^ inverted) & (~uint64_t{0} << (x % 64));
    while (bits == 0 && ++w < words_) bits = row[w] ^ inverted;
    return std::min(w * 64 + (bits == 0 ? 0 : std::countr_zero(bits)), width_);
  }

  int32_t height_, width_, words_, strip_rows_;
  std::vector<int32_t> strip_start_;
  std::vector<Word> strips_;  // this one and the one above
  std::vector<uint64_t> bits_;  // of all rows, and an empty one
  std::vector<int32_t> begin_, end_, parent_, number_;
  std::vector<Filled> filled_;
};

}  // namespace wsfast::boxes::WS_SIMD
