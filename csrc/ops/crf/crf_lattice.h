// The lattice of one image on the CPU. Points are taken in chunks whose number depends on the image
// alone, so results are the same for any number of threads: each chunk finds its own simplices and
// vertices, the vertices of all chunks are sorted by key and joined, and every chunk adds its values
// to them in turn.
#pragma once

#include <limits>
#include <vector>

#include "../../core/torch_api.h"
#include "crf_chunk.h"

namespace wsfast::crf {

inline constexpr int64_t kVertexGrain = 4096;
inline constexpr int kLookAhead = 4;

// body(first, last) over images of so many parts, on several threads; where few are left over, each of
// these may use all threads.
template <class Body>
void for_images(int64_t images, int64_t parts, const Body& body) {
  const int64_t shared = images - images_alone(images, parts);
  parallel_for(0, shared, 1, body);
  if (shared < images) body(shared, images);
}

// Both neighbours of every vertex along one axis; -1 where there is none.
struct NeighbourPair {
  const int32_t* one;
  const int32_t* other;
};

// All axes in turn from `in`, back and forth between `a` and `b`, which may be `in`; returns the last.
template <class Loops, class A, int W, class Pair>
A* blur_axes(const A* in, A* a, A* b, int axes, int64_t vertices, bool transpose, const Pair& pair) {
  for (int step = 0; step < axes; ++step) {
    const NeighbourPair near = pair(transpose ? axes - 1 - step : step);
    A* to = step % 2 == 0 ? a : b;
    parallel_for(0, vertices, kVertexGrain, [&](int64_t begin, int64_t end) {
      Loops::template blur<A, W>(in, near.one, near.other, begin, end, to);
    });
    in = to;
  }
  return axes % 2 == 0 ? b : a;
}

// The points of a chunk as splat and slice read them.
template <class A>
struct ChunkPoints {
  const A* weights;
  const int32_t* simplex;
  const int32_t* simplex_vertices;
  int corners;

  const int32_t* vertices_at(int64_t i, int n) const { return simplex_vertices + int64_t{simplex[i]} * n; }
};

template <class Loops, class A, class Key>
class ImageLattice {
 public:
  // `once`: for one image only; gives back what it no longer needs.
  explicit ImageLattice(bool once) : once_(once) {}

  // `keys` must fit Key.
  void build(const PointSource<A>& source, const KeySpace& keys) {
    keys_ = keys;
    points_ = source.points;
    split(source.points);
    parallel_for(0, chunk_count(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        ChunkBuilder<Loops, A, Key>{source, keys_, chunks_[c], scratch_[begin]}.run();
      }
    });
    join_vertices();
    find_neighbours();
    if (frugal_) vertex_keys_.release();
  }

  int d() const { return keys_.d; }
  int64_t points() const { return points_; }
  int64_t vertices() const { return vertices_; }
  NeighbourPair neighbours(int64_t axis) {
    if (frugal_) reverse_steps(axis);
    return {steps(axis), steps_back(axis)};
  }

  // Row by row (points, d + 1).
  void export_points(int32_t* vertices, A* weights) const {
    const int64_t corners = d() + 1;
    for (int64_t c = 0; c < chunk_count(); ++c) {
      const Chunk<A, Key>& chunk = chunks_[c];
      for (int64_t i = 0; i < chunk.end - chunk.begin; ++i) {
        const int32_t* local = chunk.corners.data() + chunk.simplex[i] * corners;
        for (int64_t k = 0; k < corners; ++k, ++vertices, ++weights) {
          *vertices = joined_[chunk.first_vertex + local[k]];
          *weights = chunk.weights[i * corners + k];
        }
      }
    }
  }

  // Up to W channel planes: energy[c] = s' A s, and A s into `filtered` unless that is null.
  template <int W, class T>
  void apply(const T* values, int channels, const A* roi, Direction direction, double* energy,
             T* filtered) {
    const int64_t size = (vertices_ + 1) * W;  // row -1 is 0
    A* v = rows_.resize(std::max(3 * size, size + chunk_vertices_ * W)) + W;
    A* own = v + vertices_ * W;  // rows of the chunks' vertices, before and after the blurs
    A* a = v + size;
    A* b = a + size;
    splat<W>(values, channels, roi, own, v);
    for (A* row : {v, a, b}) std::fill(row - W, row, A(0));
    A* forward = blur<W>(v, a, b, false);
    double sums[W] = {};
    Loops::template dot<A, W>(v, forward, vertices_, sums);
    const double scale = blur_scale(d());
    for (int c = 0; c < channels; ++c) energy[c] = scale * sums[c];
    if (filtered == nullptr) return;
    A* result = forward;
    if (direction != Direction::forward) {
      A* free = forward == a ? b : a;
      result = blur<W>(v, free, v, true);
    }
    if (direction == Direction::symmetric) Loops::add(forward, vertices_ * W, result);
    const double share = direction == Direction::symmetric ? 0.5 : 1.0;
    if (result != v) std::copy(result, result + vertices_ * W, v);
    slice<W>(v, channels, roi, static_cast<A>(share * scale), own, filtered);
  }

 private:
  using PointChunk = Chunk<A, Key>;

  int64_t chunk_count() const { return chunk_count_; }

  void split(int64_t points) {
    chunk_count_ = chunks_of(points);
    if (static_cast<int64_t>(chunks_.size()) < chunk_count_) {
      chunks_.resize(chunk_count_);
      scratch_.resize(chunk_count_);
    }
    const int64_t length = ceil_div(ceil_div(points, chunk_count_), kLargestLanes) * kLargestLanes;
    for (int64_t c = 0; c < chunk_count_; ++c) {
      chunks_[c].begin = std::min(points, c * length);
      chunks_[c].end = std::min(points, (c + 1) * length);
    }
  }

  void join_vertices() {
    chunk_vertices_ = 0;
    for (int64_t c = 0; c < chunk_count_; ++c) {
      chunks_[c].first_vertex = chunk_vertices_;
      chunk_vertices_ += chunks_[c].vertices;
    }
    frugal_ = once_ && 2 * chunk_vertices_ > points_;
    if (frugal_) {
      for (auto& scratch : scratch_) scratch.release();
    }
    const int64_t total = chunk_vertices_;
    auto* items = sorted_.resize(2 * total);
    for (int64_t c = 0; c < chunk_count_; ++c) {
      PointChunk& chunk = chunks_[c];
      for (int64_t i = 0, at = chunk.first_vertex; i < chunk.vertices; ++i, ++at) {
        items[at] = {chunk.keys[i], static_cast<int32_t>(at)};
      }
      if (frugal_) chunk.keys.release();
    }
    items = radix_sort(items, items + total, total, keys_.bits);
    int32_t* number = joined_.resize(total);
    Key* keys = vertex_keys_.resize(total + kLookAhead);
    vertices_ = 0;
    for (int64_t i = 0; i < total; ++i) {
      if (i == 0 || items[i].key != items[i - 1].key) keys[vertices_++] = items[i].key;
      number[items[i].source] = static_cast<int32_t>(vertices_ - 1);
    }
    std::fill_n(keys + vertices_, kLookAhead, std::numeric_limits<Key>::max());
    if (frugal_) sorted_.release();
  }

  void find_neighbours() {
    neighbours_.resize((frugal_ ? d() + 2 : 2 * (d() + 1)) * (vertices_ + 1));
    parallel_for(0, vertices_, kVertexGrain, [&](int64_t begin, int64_t end) {
      for (int colour = 0; begin < end; ++colour) {
        const int64_t first = begin;
        begin = std::clamp(place_of(static_cast<Key>((colour + 1) * keys_.colour)), begin, end);
        if (first < begin) find_steps(first, begin, colour == 0);
      }
    });
    if (frugal_) return;  // reversed when they are needed
    parallel_for(0, d() + 1, 1, [&](int64_t begin, int64_t end) {
      for (int64_t axis = begin; axis < end; ++axis) reverse_steps(axis);
    });
  }

  // The vertices one step along an axis and, of these, the ones they are a step behind; -1 where there
  // are none. Entry -1 takes what belongs to no vertex.
  int32_t* steps(int64_t axis) { return neighbours_.data() + axis * (vertices_ + 1) + 1; }
  int32_t* steps_back(int64_t axis) { return steps(frugal_ ? d() + 1 : d() + 1 + axis); }

  void reverse_steps(int64_t axis) {
    const int32_t* one = steps(axis);
    int32_t* other = steps_back(axis);
    std::fill_n(other, vertices_, -1);
    for (int64_t i = 0; i < vertices_; ++i) other[one[i]] = static_cast<int32_t>(i);
  }

  int64_t place_of(Key key) const {
    const Key* known = vertex_keys_.data();
    return std::lower_bound(known, known + vertices_, key) - known;
  }

  // The vertices one step along each axis from those of one colour, [begin, end). Both are sorted by
  // key and a step adds a constant, so places in one and the other move on together.
  void find_steps(int64_t begin, int64_t end, bool from_colour_0) {
    const Key* const known = vertex_keys_.data();
    const int64_t turn = from_colour_0 ? keys_.wrapping_step() : -keys_.colour;
    const int axes = d() + 1;
    Key step[kLargestDimension + 1];
    const Key* place[kLargestDimension + 1];
    for (int axis = 0; axis < axes; ++axis) {
      step[axis] = static_cast<Key>(keys_.stride[axis] + turn);
      place[axis] = known + place_of(known[begin] + step[axis]);
    }
    for (int64_t i = begin; i < end; ++i) {
      int32_t* one = steps(0) + i;
      for (int axis = 0; axis < axes; ++axis, one += vertices_ + 1) {
        const Key wanted = known[i] + step[axis];
        const Key* at = place[axis];
        int ahead = 0;  // mostly one or two, so counted without a branch that depends on the image
        for (int k = 0; k < kLookAhead; ++k) ahead += at[k] < wanted;
        at += ahead;
        while (*at < wanted) ++at;
        place[axis] = at;
        *one = static_cast<int32_t>(at - known) | -static_cast<int32_t>(*at != wanted);
      }
    }
  }

  // `own` takes a row per vertex of every chunk.
  template <int W, class T>
  void splat(const T* values, int channels, const A* roi, A* own, A* vertices) {
    parallel_for(0, chunk_count_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        PointChunk& chunk = chunks_[c];
        A* sums = own + chunk.first_vertex * W;
        std::fill(sums, sums + chunk.vertices * W, A(0));
        if constexpr (W == 2) {
          if (by_simplex(chunk)) {
            splat_by_simplex<W, 6>(values, channels, roi, chunk, sums);
            continue;
          }
        }
        const auto run = [&]<int Corners>() {
          Loops::template splat<A, W, Corners>(values, points_, channels, roi, chunk.begin,
                                               chunk.end, points_of(chunk), sums);
        };
        d() == 5 ? run.template operator()<6>() : run.template operator()<0>();
      }
    });
    std::fill(vertices, vertices + vertices_ * W, A(0));
    Loops::template add_rows<A, W>(own, joined_.data(), chunk_vertices_, vertices);
  }

  // For the losses' case, two classes on a colour image, where points share simplices.
  bool by_simplex(const PointChunk& chunk) const {
    return d() == 5 && 4 * chunk.simplices <= chunk.end - chunk.begin;
  }

  template <int W, int Corners, class T>
  void splat_by_simplex(const T* values, int channels, const A* roi, PointChunk& chunk, A* sums) {
    using R = typename Loops::template SimplexRow<A, W, Corners>;
    A* rows = chunk.simplex_values.resize(chunk.simplices * R::size);
    std::fill(rows, rows + chunk.simplices * R::size, A(0));
    Loops::template splat_simplices<A, W, Corners>(values, points_, channels, roi, chunk.begin,
                                                   chunk.end, points_of(chunk), rows);
    Loops::template add_simplices<A, W, Corners>(rows, chunk.corners.data(), chunk.simplices, sums);
  }

  template <int W, int Corners, class T>
  void slice_by_simplex(const A* own, int channels, const A* roi, A scale, PointChunk& chunk,
                        T* planes) {
    using R = typename Loops::template SimplexRow<A, W, Corners>;
    A* rows = chunk.simplex_values.resize(chunk.simplices * R::size);
    Loops::template take_simplices<A, W, Corners>(own, chunk.corners.data(), chunk.simplices, rows);
    Loops::template slice_simplices<A, W, Corners>(planes, points_, channels, roi, chunk.begin,
                                                   chunk.end, points_of(chunk), rows, scale);
  }

  template <int W, class T>
  void slice(const A* vertices, int channels, const A* roi, A scale, A* rows, T* planes) {
    parallel_for(0, chunk_count_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        PointChunk& chunk = chunks_[c];
        A* own = rows + chunk.first_vertex * W;
        Loops::template take_rows<A, W>(vertices, joined_.data() + chunk.first_vertex, chunk.vertices,
                                        own);
        if constexpr (W == 2) {
          if (by_simplex(chunk)) {
            slice_by_simplex<W, 6>(own, channels, roi, scale, chunk, planes);
            continue;
          }
        }
        const auto run = [&]<int Corners>() {
          Loops::template slice<A, W, Corners>(planes, points_, channels, roi, chunk.begin,
                                               chunk.end, points_of(chunk), own, scale);
        };
        d() == 5 ? run.template operator()<6>() : run.template operator()<0>();
      }
    });
  }

  ChunkPoints<A> points_of(const PointChunk& chunk) const {
    return {chunk.weights.data(), chunk.simplex.data(), chunk.corners.data(), d() + 1};
  }

  template <int W>
  A* blur(const A* in, A* a, A* b, bool transpose) {
    const auto pair = [&](int axis) { return neighbours(axis); };
    return blur_axes<Loops, A, W>(in, a, b, d() + 1, vertices_, transpose, pair);
  }

  KeySpace keys_{};
  int64_t points_ = 0, chunk_count_ = 0, vertices_ = 0;
  int64_t chunk_vertices_ = 0;  // of all chunks: those on the seams count more than once
  bool once_;
  bool frugal_ = false;  // has many vertices, and memory counts
  std::vector<PointChunk> chunks_;
  std::vector<ChunkScratch<A, Key>> scratch_;
  Buffer<KeyAndSource<Key>> sorted_;
  Buffer<int32_t> joined_;  // the chunks' vertices as the image's
  Buffer<int32_t> neighbours_;
  Buffer<Key> vertex_keys_;
  Buffer<A> rows_;
};

}  // namespace wsfast::crf
