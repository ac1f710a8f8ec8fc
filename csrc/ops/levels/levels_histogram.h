// Scores counted between explicit edges, as NumPy's histogram counts them: [e_i, e_i+1), the last
// bin closed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace wsfast::levels {

// Finds the bin of a score. Cells of equal width narrow the search to the few edges in the score's
// own cell; rounding cannot hurt, since cell_of never decreases.
class BinSearch {
 public:
  BinSearch(const double* edges, int64_t count) : edges_(edges), bins_(count - 1) {
    cells_ = std::max<int64_t>(1, 4 * bins_);
    scale_ = static_cast<double>(cells_) / (edges[bins_] - edges[0]);
    first_edge_.assign(cells_ + 1, bins_);
    for (int64_t edge = bins_ - 1; edge >= 0; --edge) first_edge_[cell_of(edges[edge])] = edge;
    for (int64_t cell = cells_ - 1; cell >= 0; --cell) {
      first_edge_[cell] = std::min(first_edge_[cell], first_edge_[cell + 1]);
    }
  }

  int64_t bins() const { return bins_; }

  // The number of bins for a score outside all of them.
  int64_t operator()(double score) const {
    if (!(score >= edges_[0] && score <= edges_[bins_])) return bins_;
    const int64_t cell = cell_of(score);
    int64_t edge = first_edge_[cell];  // the edges before lie below the score
    const int64_t end = first_edge_[cell + 1];
    if (end - edge > 8) {
      edge = std::upper_bound(edges_ + edge, edges_ + end, score) - edges_;
    } else {
      while (edge < end && edges_[edge] <= score) ++edge;
    }
    return edge - 1;
  }

 private:
  // NaN, where all edges are equal or far apart, is cell 0.
  int64_t cell_of(double value) const {
    const double cell = (value - edges_[0]) * scale_;
    if (!(cell > 0.0)) return 0;
    return cell < static_cast<double>(cells_) ? static_cast<int64_t>(cell) : cells_ - 1;
  }

  const double* edges_;
  int64_t bins_, cells_;
  double scale_;
  std::vector<int64_t> first_edge_;  // per cell, the first of edges_[0..bins_) in it or after it
};

}  // namespace wsfast::levels
