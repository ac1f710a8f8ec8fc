// The lattice of one image on the CPU. Points are taken in chunks whose number depends on the image
// alone, so results are the same for any number of threads: each chunk finds its own simplices and
// vertices, the vertices of all chunks are sorted by key and joined, and every chunk adds its values
// to them in turn.
#pragma once

#include <cstring>
#include <vector>

#include "../../core/torch_api.h"
#include "crf_chunk.h"

namespace wsfast::crf {

inline constexpr int64_t kVertexGrain = 4096;

// body(first, last) over images, on several threads where there are enough images; else each image
// may use all threads.
template <class Body>
void for_images(int64_t images, const Body& body) {
  if (images >= thread_count()) {
    parallel_for(0, images, 1, body);
  } else {
    body(0, images);
  }
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
    if (2 * vertices_ > points_) release_scratch();
  }

  int d() const { return keys_.d; }
  int64_t points() const { return points_; }
  int64_t vertices() const { return vertices_; }
  // (d + 1, 2, vertices); -1 where there is none
  const int32_t* neighbours() const { return neighbours_.data(); }

  // Row by row (points, d + 1).
  void export_points(int32_t* vertices, A* weights) const {
    const int64_t corners = d() + 1;
    for (int64_t c = 0; c < chunk_count(); ++c) {
      const Chunk<A, Key>& chunk = chunks_[c];
      for (int64_t i = 0; i < chunk.end - chunk.begin; ++i) {
        const int32_t* local = chunk.corners.data() + chunk.simplex[i] * corners;
        for (int64_t k = 0; k < corners; ++k, ++vertices, ++weights) {
          *vertices = chunk.joined[local[k]];
          *weights = chunk.weights[i * corners + k];
        }
      }
    }
  }

  // Up to W channel planes: energy[c] = s' A s, and A s into `filtered` unless that is null.
  template <int W, class T>
  void apply(const T* values, int channels, const A* roi, Direction direction, double* energy,
             T* filtered) {
    A* v = rows<W>(on_vertices_);
    A* a = rows<W>(blurred_);
    A* b = rows<W>(spare_);
    splat<W>(values, channels, roi, v);
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
    slice<W>(result, channels, roi, static_cast<A>(share * scale), filtered);
  }

 private:
  using PointChunk = Chunk<A, Key>;

  int64_t chunk_count() const { return chunk_count_; }

  void split(int64_t points) {
    chunk_count_ = std::max<int64_t>(1, (points + kChunk / 2) / kChunk);
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
    int64_t total = 0;
    for (int64_t c = 0; c < chunk_count_; ++c) total += chunks_[c].vertices;
    auto* items = sorted_.resize(2 * total);
    int64_t at = 0;
    for (int64_t c = 0; c < chunk_count_; ++c) {
      chunks_[c].joined.resize(chunks_[c].vertices);
      for (int64_t i = 0; i < chunks_[c].vertices; ++i, ++at) {
        items[at] = {chunks_[c].keys[i], static_cast<int32_t>(at)};
      }
    }
    items = radix_sort(items, items + total, total, keys_.bits);
    int32_t* number = numbers_.resize(total);
    Key* keys = vertex_keys_.resize(total);
    vertices_ = 0;
    for (int64_t i = 0; i < total; ++i) {
      if (i == 0 || items[i].key != items[i - 1].key) keys[vertices_++] = items[i].key;
      number[items[i].source] = static_cast<int32_t>(vertices_ - 1);
    }
    for (int64_t c = 0; c < chunk_count_; ++c) {
      std::copy(number, number + chunks_[c].vertices, chunks_[c].joined.data());
      number += chunks_[c].vertices;
    }
  }

  void find_neighbours() {
    const int64_t n = vertices_;
    const Key* keys = vertex_keys_.data();
    SlotTable<VertexSlot>& table = scratch_[0].vertices;
    table.clear(n);
    using Unsigned = std::make_unsigned_t<Key>;
    const Unsigned colours = static_cast<Unsigned>(d() + 1);
    Key* moved = moved_keys_.resize(n);  // keys one step along an axis, but for its own stride
    for (int64_t i = 0; i < n; ++i) {
      *table.find(hash_key(keys[i]), [](const VertexSlot&) { return false; }) = {
          static_cast<uint32_t>(i + 1), static_cast<uint32_t>(keys[i])};
      const bool wraps = static_cast<Unsigned>(keys[i]) % colours == 0;
      moved[i] = keys[i] + (wraps ? static_cast<Key>(keys_.wrapping_step()) : Key(-1));
    }
    int32_t* all = neighbours_.resize(2 * (d() + 1) * n);
    parallel_for(0, d() + 1, 1, [&](int64_t begin, int64_t end) {
      for (int64_t axis = begin; axis < end; ++axis) {
        int32_t* one = all + 2 * axis * n;
        find_along(static_cast<Key>(keys_.stride[axis]), one, one + n);
      }
    });
  }

  // The vertices one step along an axis and, of these, the ones they are a step behind.
  void find_along(Key stride, int32_t* one, int32_t* other) {
    SlotTable<VertexSlot>& table = scratch_[0].vertices;
    const Key* known = vertex_keys_.data();
    Key keys[kBatch];
    int32_t missed[kBatch];
    std::fill(other, other + vertices_, -1);
    for (int64_t first = 0; first < vertices_; first += kBatch) {
      const int64_t count = std::min(kBatch, vertices_ - first);
      for (int64_t i = 0; i < count; ++i) keys[i] = moved_keys_[first + i] + stride;
      if (table.large()) {
        for (int64_t i = 0; i < count; ++i) table.prefetch(hash_key(keys[i]));
      }
      int32_t* numbers = one + first;
      const int64_t misses = probe_vertices<true>(table, known, keys, count, numbers, missed);
      for (int64_t j = 0; j < misses; ++j) {
        numbers[missed[j]] = find_vertex(table, known, keys[missed[j]])->number();
      }
      for (int64_t i = 0; i < count; ++i) {
        int32_t nowhere;
        *(numbers[i] < 0 ? &nowhere : other + numbers[i]) = static_cast<int32_t>(first + i);
      }
    }
  }

  // Of images with many vertices, where it would take more memory than the lattice.
  void release_scratch() {
    for (auto& scratch : scratch_) scratch.release();
    for (auto& chunk : chunks_) chunk.keys.release();
    sorted_.release();
    numbers_.release();
    vertex_keys_.release();
    moved_keys_.release();
  }

  // Room for a row per vertex; row -1 is 0.
  template <int W>
  A* rows(Buffer<A>& buffer) {
    A* all = buffer.resize((vertices_ + 1) * W);
    std::fill(all, all + W, A(0));
    return all + W;
  }

  template <int W, class T>
  void splat(const T* values, int channels, const A* roi, A* vertices) {
    parallel_for(0, chunk_count_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        PointChunk& chunk = chunks_[c];
        A* sums = chunk.values.resize(chunk.vertices * W);
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
    for (int64_t c = 0; c < chunk_count_; ++c) {
      const PointChunk& chunk = chunks_[c];
      for (int64_t i = 0; i < chunk.vertices; ++i) {
        Loops::add(chunk.values.data() + i * W, W, vertices + chunk.joined[i] * int64_t{W});
      }
    }
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
    const int32_t* vertex = chunk.corners.data();
    for (int64_t i = 0; i < chunk.simplices; ++i, vertex += Corners) {
      for (int k = 0; k < Corners; ++k) {
        Loops::add(rows + i * R::size + k * W, W, sums + int64_t{vertex[k]} * W);
      }
    }
  }

  template <int W, int Corners, class T>
  void slice_by_simplex(const A* own, int channels, const A* roi, A scale, PointChunk& chunk,
                        T* planes) {
    using R = typename Loops::template SimplexRow<A, W, Corners>;
    A* rows = chunk.simplex_values.resize(chunk.simplices * R::size);
    const int32_t* vertex = chunk.corners.data();
    for (int64_t i = 0; i < chunk.simplices; ++i, vertex += Corners) {
      A* row = rows + i * R::size;
      for (int k = 0; k < Corners; ++k) std::copy_n(own + int64_t{vertex[k]} * W, W, row + k * W);
      std::fill(row + Corners * W, row + R::size, A(0));
    }
    Loops::template slice_simplices<A, W, Corners>(planes, points_, channels, roi, chunk.begin,
                                                   chunk.end, points_of(chunk), rows, scale);
  }

  template <int W, class T>
  void slice(const A* vertices, int channels, const A* roi, A scale, T* planes) {
    parallel_for(0, chunk_count_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        PointChunk& chunk = chunks_[c];
        A* own = chunk.values.resize(chunk.vertices * W);
        for (int64_t i = 0; i < chunk.vertices; ++i) {
          const A* row = vertices + chunk.joined[i] * int64_t{W};
          std::copy(row, row + W, own + i * W);
        }
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
  A* blur(const A* in, A* a, A* b, bool transpose) const {
    const auto pair = [&](int axis) {
      const int32_t* one = neighbours_.data() + 2 * axis * vertices_;
      return NeighbourPair{one, one + vertices_};
    };
    return blur_axes<Loops, A, W>(in, a, b, d() + 1, vertices_, transpose, pair);
  }

  KeySpace keys_{};
  int64_t points_ = 0, chunk_count_ = 0, vertices_ = 0;
  std::vector<PointChunk> chunks_;
  std::vector<ChunkScratch<A, Key>> scratch_;
  Buffer<KeyAndSource<Key>> sorted_;
  Buffer<int32_t> numbers_, neighbours_;
  Buffer<Key> vertex_keys_, moved_keys_;
  Buffer<A> on_vertices_, blurred_, spare_;
};

}  // namespace wsfast::crf
