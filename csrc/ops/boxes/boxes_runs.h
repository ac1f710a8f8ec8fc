// Connected components of one mask by runs, one copy per instruction set (boxes_simd.h includes it):
// rows are bits, runs begin and end where bits change, and runs are united where bits of two rows
// touch. Labels are written only by who asks for them. No recursion, so no shape can overflow the
// stack. No include guard.

namespace wsfast::boxes::WS_SIMD {

// Labels masks of one size, one after the other, in memory that is kept between them.
class RunLabeler {
 public:
  RunLabeler(int32_t height, int32_t width, int connectivity)
      : height_(height),
        width_(width),
        words_((width + 63) / 64),
        diagonal_(connectivity == 8 ? ~uint64_t{0} : 0),
        row_start_(height + 1),
        rows_(2 * (words_ + 2)) {}

  // fill_bits(y, words) writes row y: bit x % 64 of words[x / 64] says that pixel x is inside.
  // Returns the number of components, which are numbered from 0 in raster order of first pixels.
  template <class FillBits>
  int32_t label(const FillBits& fill_bits) {
    std::fill(rows_.begin(), rows_.end(), Word{});
    bits_.resize(words_);
    int32_t count = 0;
    for (int32_t y = 0; y < height_; ++y) {
      Word* const row = rows_.data() + (y % 2) * (words_ + 2) + 1;  // empty words at both ends
      const Word* const above = rows_.data() + (1 - y % 2) * (words_ + 2) + 1;
      fill_bits(y, bits_.data());
      row_start_[y] = count;
      count = append_runs(row, count);
      join_row(row, above, count);
    }
    row_start_[height_] = count;
    return number_components(count);
  }

  // Calls visit(y, begin, end, component) for the runs of columns [begin, end) in raster order.
  template <class Visit>
  void for_runs(const Visit& visit) const {
    for (int32_t y = 0; y < height_; ++y) {
      for (int32_t r = row_start_[y]; r < row_start_[y + 1]; ++r) {
        visit(y, begin_[r], end_[r], parent_[r]);
      }
    }
  }

 private:
  // 64 pixels of a row: which are inside, which of them begin a run, and how many runs of the mask
  // begin before.
  struct Word {
    uint64_t bits, starts;
    int32_t runs_before;

    // The run that pixel `bit` belongs to or, if outside, the last one that begins before it.
    int32_t run_at(int bit) const {
      return runs_before + std::popcount(starts & (~uint64_t{0} >> (63 - bit))) - 1;
    }
  };

  static constexpr int kUnroll = 4;  // so many positions are written past the last one

  // Writes base + the positions of the set bits.
  static void write_positions(uint64_t bits, int32_t base, int32_t* out) {
    const int32_t* const end = out + std::popcount(bits);
    while (out < end) {
      for (int i = 0; i < kUnroll; ++i, bits &= bits - 1) *out++ = base + std::countr_zero(bits);
    }
  }

  void reserve(int64_t runs) {
    const auto needed = static_cast<size_t>(runs);
    if (needed <= parent_.size()) return;
    const size_t size = std::max(needed, 2 * parent_.size());
    begin_.resize(size);
    end_.resize(size);
    parent_.resize(size);
  }

  // Adds the runs of the row in bits_, which become the row's words; the number of runs so far.
  int32_t append_runs(Word* row, int32_t count) {
    reserve(int64_t{count} + width_ / 2 + 1 + kUnroll);
    int32_t ended = count;
    const int32_t first = count;
    uint64_t before = 0;
    for (int32_t w = 0; w < words_; ++w) {
      const uint64_t bits = bits_[w], shifted = bits << 1 | before;
      const uint64_t starts = bits & ~shifted, ends = ~bits & shifted;
      row[w] = {bits, starts, count};
      write_positions(starts, w * 64, begin_.data() + count);
      write_positions(ends, w * 64, end_.data() + ended);
      count += std::popcount(starts);
      ended += std::popcount(ends);
      before = bits >> 63;
    }
    if (ended < count) end_[ended] = width_;
    for (int32_t r = first; r < count; ++r) parent_[r] = r;
    return count;
  }

  // Joins a row's runs with those of the row above; `count` is the number of runs so far.
  void join_row(const Word* row, const Word* above, int32_t count) {
    const int32_t first = row[0].runs_before;
    if (count == first || first == above[0].runs_before) return;  // one of them is empty
    uint64_t met = 0;
    for (int32_t w = 0; w < words_; ++w) met = join_word(row + w, above + w, met);
  }

  // Joins the runs of a word with those of the row above that they touch, once per stretch of
  // contact; a diagonal contact counts only where no straight one joins the same runs. A run that
  // meets its first contact just takes over that run's parent: no search, no branch to mispredict.
  // `met` is 1 if the last word's last run goes on and has met one; the return value is the same of
  // this word.
  uint64_t join_word(const Word* row, const Word* above, uint64_t met) {
    const Word lower = *row, upper = *above;
    const uint64_t here = lower.bits, up = upper.bits;
    const uint64_t here_left = here << 1 | row[-1].bits >> 63;
    const uint64_t here_right = here >> 1 | row[1].bits << 63;
    const uint64_t up_left = up << 1 | above[-1].bits >> 63;
    const uint64_t up_right = up >> 1 | above[1].bits << 63;
    const uint64_t open = here & ~up & diagonal_;
    const uint64_t contacts =
        (here & up & ~(here_left & up_left)) | (open & up_left & ~here_left);
    const uint64_t right_contacts = open & up_right & ~here_right;  // at the end of a run
    if ((contacts | right_contacts) == 0) return here == ~uint64_t{0} ? met : 0;
    const uint64_t first = contacts | (met & here);
    // An addition carries from a run's first contact to the run's end.
    const uint64_t after = (((here + first) ^ here) | first) & here;
    const uint64_t later = contacts & (after << 1 | met);
    for_bits(contacts & ~later, [&](int bit) { adopt(upper.run_at(bit), lower.run_at(bit)); });
    for_bits(right_contacts & ~after,
             [&](int bit) { adopt(upper.run_at(bit) + 1, lower.run_at(bit)); });
    for_bits(later, [&](int bit) { unite(upper.run_at(bit), lower.run_at(bit)); });
    for_bits(right_contacts & after,
             [&](int bit) { unite(upper.run_at(bit) + 1, lower.run_at(bit)); });
    return after >> 63;
  }

  template <class Visit>
  static void for_bits(uint64_t bits, const Visit& visit) {
    for (; bits != 0; bits &= bits - 1) visit(std::countr_zero(bits));
  }

  void adopt(int32_t above, int32_t run) { parent_[run] = parent_[parent_[above]]; }

  int32_t find(int32_t run) {
    while (parent_[run] != run) {
      parent_[run] = parent_[parent_[run]];
      run = parent_[run];
    }
    return run;
  }

  // The smaller run, first in raster order, becomes the root.
  void unite(int32_t a, int32_t b) {
    a = find(a);
    b = find(b);
    parent_[std::max(a, b)] = std::min(a, b);
  }

  // Turns parents, which never come after their run, into component numbers.
  int32_t number_components(int32_t runs) {
    int32_t components = 0;
    for (int32_t r = 0; r < runs; ++r) {
      parent_[r] = parent_[r] == r ? components++ : parent_[parent_[r]];
    }
    return components;
  }

  int32_t height_, width_, words_;
  uint64_t diagonal_;
  std::vector<int32_t> row_start_;
  std::vector<Word> rows_;  // this row and the one above
  std::vector<uint64_t> bits_;
  std::vector<int32_t> begin_, end_, parent_;
};

}  // namespace wsfast::boxes::WS_SIMD
