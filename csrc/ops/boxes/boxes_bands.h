// Components of one large image by bands of rows. Threads label a band each, as if it were an image;
// components that reach their band's first or last row are pieces, and pieces that touch across a
// seam become one. The bands depend on the image's size alone, never on the number of threads, so
// neither do results: not even the rounding of sums.
//
// Within a band components are numbered in raster order of first pixels. Bands follow each other in
// that order too, so the first of the pieces that are one component has its first pixel.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "boxes_components.h"
#include "boxes_union.h"

namespace wsfast::boxes {

// How an image is cut: into whole strips of two rows, whatever the connectivity.
class Bands {
 public:
  Bands(int32_t height, int32_t width) : height_(height), rows_(height) {
    const int64_t pixels = int64_t{height} * width;
    if (pixels < kSmallestImage) return;
    const int64_t bands = std::min(pixels / kBandPixels, kMostBands);
    const int64_t rows = (height + 2 * bands - 1) / (2 * bands) * 2;
    rows_ = static_cast<int32_t>(std::max(rows, kFewestRows));
  }

  int32_t count() const { return (height_ - 1) / rows_ + 1; }
  int32_t rows() const { return rows_; }  // of every band but the last
  int32_t begin(int32_t band) const { return band * rows_; }
  int32_t rows(int32_t band) const { return std::min(rows_, height_ - begin(band)); }

 private:
  // An image of less takes about as long as threads take to wake and seams to join.
  static constexpr int64_t kSmallestImage = int64_t{1} << 18;
  static constexpr int64_t kBandPixels = int64_t{1} << 17;
  static constexpr int64_t kMostBands = 64;
  static constexpr int64_t kFewestRows = 16;  // else most components would be pieces

  int32_t height_, rows_;
};

// Labels a band whose rows fill_bits(y, words) gives; number of its components. The last band is
// shorter: its labeler gets empty rows.
template <class Labeler, class FillBits>
int32_t label_band(Labeler& labeler, int32_t rows, const FillBits& fill_bits) {
  return labeler.label([&](int32_t y, uint64_t* words) {
    if (y < rows) {
      fill_bits(y, words);
    } else {
      std::fill_n(words, labeler.words(), uint64_t{0});
    }
  });
}

// Pixels [begin, end) of a band's first or last row, and the band's piece they belong to.
struct Stretch {
  int32_t begin, end, piece;
};

struct Edges {
  std::vector<int32_t> pieces;            // components of the band, by number
  std::vector<Stretch> first_row, last_row;  // from left to right
};

// What of a labelled band reaches its edges, those of the image among them.
template <class Labeler>
Edges find_edges(const Labeler& labeler, int32_t rows, int32_t components) {
  Edges edges;
  std::vector<int32_t> piece_of(components, -1);
  const auto collect = [&](int32_t y, std::vector<Stretch>& row) {
    labeler.for_row(y, [&](int32_t component, int32_t begin, int32_t end) {
      row.push_back({begin, end, component});
      piece_of[component] = 0;
    });
  };
  collect(0, edges.first_row);
  collect(rows - 1, edges.last_row);
  for (int32_t c = 0; c < components; ++c) {
    if (piece_of[c] < 0) continue;
    piece_of[c] = static_cast<int32_t>(edges.pieces.size());
    edges.pieces.push_back(c);
  }
  for (Stretch& stretch : edges.first_row) stretch.piece = piece_of[stretch.piece];
  for (Stretch& stretch : edges.last_row) stretch.piece = piece_of[stretch.piece];
  return edges;
}

// The pieces of all bands, numbered from the top, and which of them are one component.
class Seams {
 public:
  // edges_of(band) for all bands of the image.
  template <class EdgesOf>
  Seams(int32_t bands, int connectivity, const EdgesOf& edges_of) : start_(bands + 1, 0) {
    for (int32_t b = 0; b < bands; ++b) {
      start_[b + 1] = start_[b] + static_cast<int32_t>(edges_of(b).pieces.size());
    }
    first_.resize(start_[bands]);
    std::iota(first_.begin(), first_.end(), 0);
    for (int32_t b = 0; b + 1 < bands; ++b) {
      join(edges_of(b).last_row, start_[b], edges_of(b + 1).first_row, start_[b + 1],
           connectivity == 8 ? 1 : 0);
    }
    for (int32_t& piece : first_) piece = first_[piece];  // those before are done
  }

  int32_t pieces() const { return start_.back(); }
  // The first piece of a band; a piece of it by its number in the band.
  int32_t start(int32_t band) const { return start_[band]; }
  // The first piece of the component that a piece is part of.
  int32_t first(int32_t piece) const { return first_[piece]; }

 private:
  // Both rows from left to right: stretches touch where they are at most `reach` columns apart.
  void join(const std::vector<Stretch>& above, int32_t above_start,
            const std::vector<Stretch>& below, int32_t below_start, int32_t reach) {
    size_t a = 0;
    for (const Stretch& stretch : below) {
      while (a < above.size() && above[a].end + reach <= stretch.begin) ++a;
      for (size_t k = a; k < above.size() && above[k].begin < stretch.end + reach; ++k) {
        unite(first_.data(), above_start + above[k].piece, below_start + stretch.piece);
      }
    }
  }

  std::vector<int32_t> start_, first_;
};

// ---- labels -------------------------------------------------------------------------------------

// Numbers of the components of the whole image, in raster order of first pixels.
class BandNumbers {
 public:
  // edges_of(band) and components_of(band) for all bands.
  template <class EdgesOf, class ComponentsOf>
  BandNumbers(int32_t bands, const Seams& seams, const EdgesOf& edges_of,
              const ComponentsOf& components_of)
      : seams_(seams), number_(seams.pieces()), before_(bands + 1, 0) {
    for (int32_t b = 0; b < bands; ++b) {
      int32_t absorbed = 0;  // pieces that are part of an earlier component
      for (int32_t piece = seams.start(b); piece < seams.start(b + 1); ++piece) {
        const int32_t first = seams.first(piece);
        const int32_t own = before_[b] + edges_of(b).pieces[piece - seams.start(b)] - absorbed;
        number_[piece] = first == piece ? own : number_[first];
        absorbed += first != piece;
      }
      before_[b + 1] = before_[b] + components_of(b) - absorbed;
    }
  }

  int32_t count() const { return before_.back(); }

  // Of every component of a band.
  std::vector<int32_t> of_band(int32_t band, const Edges& edges, int32_t components) const {
    std::vector<int32_t> numbers(components);
    int32_t next = before_[band], c = 0;
    for (size_t k = 0; k < edges.pieces.size(); ++k) {
      while (c < edges.pieces[k]) numbers[c++] = next++;
      const int32_t piece = seams_.start(band) + static_cast<int32_t>(k);
      numbers[c++] = number_[piece];
      next += seams_.first(piece) == piece;
    }
    while (c < components) numbers[c++] = next++;
    return numbers;
  }

 private:
  const Seams& seams_;
  std::vector<int32_t> number_;  // by piece
  std::vector<int32_t> before_;  // components that begin in earlier bands
};

// ---- boxes --------------------------------------------------------------------------------------

// What one band adds to the boxes of its image.
struct BandBoxes {
  Edges edges;
  std::vector<Component> pieces;
  std::vector<uint64_t> keys;  // of the other components, those that may be among the largest
  std::vector<Component> largest;  // in the order of their keys
  int32_t components = 0;
  int64_t counted = 0;  // of the other components, those of at least min_area pixels
};

inline Component moved_down(Component c, int32_t rows) {
  c.y0 += rows;
  c.y1 += rows;
  return c;
}

// `components` are the band's, measured; its edges are known. `first_row` is where it begins.
inline void keep_largest(std::vector<Component>& components, int32_t first_row, int64_t min_area,
                         int64_t most, BandBoxes& band) {
  for (const int32_t c : band.edges.pieces) {
    band.pieces.push_back(moved_down(components[c], first_row));
    components[c].area = 0;  // not to be counted here
  }
  std::vector<uint64_t>& keys = band.keys;
  find_keys(components, min_area, keys);
  band.counted = static_cast<int64_t>(keys.size());
  if (band.counted > most) {
    std::nth_element(keys.begin(), keys.begin() + most, keys.end());
    keys.resize(most);
  }
  for (const uint64_t key : keys) {
    band.largest.push_back(moved_down(components[component_of(key)], first_row));
  }
}

// The largest components of an image from what its bands have found.
class MergedBoxes {
 public:
  MergedBoxes(const std::vector<BandBoxes>& bands, int connectivity, int64_t min_area, int64_t most)
      : seams_(static_cast<int32_t>(bands.size()), connectivity,
               [&](int32_t b) -> const Edges& { return bands[b].edges; }),
        merged_(seams_.pieces()) {
    int32_t before = 0;  // components of earlier bands
    for (size_t b = 0; b < bands.size(); ++b) {
      add_pieces(bands[b], seams_.start(static_cast<int32_t>(b)), before);
      for (size_t k = 0; k < bands[b].keys.size(); ++k) {
        ranked_.push_back({bands[b].keys[k] + static_cast<uint32_t>(before), &bands[b].largest[k]});
      }
      count_ += bands[b].counted;
      before += bands[b].components;
    }
    for (const Merged& merged : merged_) {
      const Component& component = merged.component;
      if (component.area < min_area) continue;
      ranked_.push_back({size_key(component.area, merged.number), &component});
      ++count_;
    }
    sort_largest(ranked_, most);
  }

  // Of at least min_area pixels.
  int64_t count() const { return count_; }
  // The k-th largest, k < most.
  const Component& component(int64_t k) const { return *ranked_[k].component; }

 private:
  // The component that begins with a piece, and a number in raster order; area 0 for other pieces.
  struct Merged {
    uint32_t number = 0;
    Component component{};
  };

  struct Ranked {
    uint64_t key;
    const Component* component;

    bool operator<(const Ranked& other) const { return key < other.key; }
  };

  void add_pieces(const BandBoxes& band, int32_t start, int32_t before) {
    for (size_t k = 0; k < band.pieces.size(); ++k) {
      const int32_t piece = start + static_cast<int32_t>(k), first = seams_.first(piece);
      if (first == piece) {
        merged_[piece] = {static_cast<uint32_t>(before + band.edges.pieces[k]), band.pieces[k]};
      } else {
        absorb(band.pieces[k], merged_[first].component);
      }
    }
  }

  static void absorb(const Component& piece, Component& into) {
    into.x0 = std::min(into.x0, piece.x0);
    into.y0 = std::min(into.y0, piece.y0);
    into.x1 = std::max(into.x1, piece.x1);
    into.y1 = std::max(into.y1, piece.y1);
    into.area += piece.area;
    into.sum += piece.sum;
  }

  Seams seams_;
  std::vector<Merged> merged_;  // by piece
  std::vector<Ranked> ranked_;
  int64_t count_ = 0;
};

}  // namespace wsfast::boxes
