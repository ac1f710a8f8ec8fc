// One chunk of an image's points: their simplices, and the vertices of these.
#pragma once

#include <algorithm>

#include "crf_features.h"
#include "crf_math.h"
#include "crf_tables.h"

namespace wsfast::crf {

inline constexpr int64_t kChunk = 32768;       // points of a chunk, roughly
inline constexpr int64_t kLargestLanes = 16;
inline constexpr int64_t kBatch = 64;   // look-ups whose first probes go without branches
inline constexpr int64_t kTrial = 2048;  // points after which a chunk judges whether simplices recur

// What one thread needs while it builds chunks, one after the other.
template <class A, class Key>
struct ChunkScratch {
  SlotTable<SimplexSlot> simplices;
  SlotTable<VertexSlot> vertices;
  Buffer<A> tile;
  Buffer<Key> keys;        // of the first vertex of a tile's points, then of its new simplices
  Buffer<uint32_t> codes;  // of the same
  Buffer<Key> corners;     // of its new simplices
  int64_t last_simplices = 0, last_vertices = 0;  // of the chunk before: this one's will be alike

  void release() {
    simplices.release();
    vertices.release();
  }
};

template <class A, class Key>
struct Chunk {
  int64_t begin, end;
  int64_t simplices = 0, vertices = 0;
  Buffer<A> weights;           // per block of lanes: d + 1 vectors
  Buffer<int32_t> simplex;     // of every point
  Buffer<int32_t> corners;     // of every simplex: d + 1 vertices of this chunk
  Buffer<Key> keys;            // of every vertex
  Buffer<int32_t> joined;      // this chunk's vertices as the image's
  Buffer<A> values;            // rows of this chunk's vertices
};

template <class Key>
bool holds(const VertexSlot& slot, const Key* keys, Key key, uint64_t hash) {
  const bool same = !slot.empty() & (slot.tag == static_cast<uint32_t>(hash));
  return sizeof(Key) == 4 ? same : same && keys[slot.number()] == key;
}

template <class Key>
VertexSlot* find_vertex(SlotTable<VertexSlot>& table, const Key* keys, Key key, uint64_t hash) {
  return table.find(hash, [=](const VertexSlot& held) { return holds(held, keys, key, hash); });
}

template <class Loops, class A, class Key>
struct ChunkBuilder {
  const PointSource<A>& source;
  const KeySpace& keys;
  Chunk<A, Key>& chunk;
  ChunkScratch<A, Key>& scratch;

  void run() {
    switch (keys.d) {
      case 1: return run<1>();
      case 2: return run<2>();
      case 3: return run<3>();
      case 4: return run<4>();
      case 5: return run<5>();
      case 6: return run<6>();
      case 7: return run<7>();
      default: return run<8>();
    }
  }

 private:
  static constexpr int kLanes = Loops::template lanes<A>;

  template <int D>
  void run() {
    const int64_t count = chunk.end - chunk.begin;
    chunk.weights.resize((count + kLargestLanes) * (D + 1));
    chunk.simplex.resize(count);
    chunk.simplices = chunk.vertices = 0;
    scratch.simplices.clear(std::min(count, std::max(kChunk / 16, scratch.last_simplices)));
    scratch.vertices.clear(std::min(count, std::max(kChunk / 32, scratch.last_vertices)));
    A* tile = scratch.tile.resize(D * kTileRow);
    Key* first_keys = scratch.keys.resize(kTileRow);
    uint32_t* codes = scratch.codes.resize(kTileRow);
    scratch.corners.resize(kTile * (D + 1));
    A coefficient[D];
    const A* features[D];
    for (int i = 0; i < D; ++i) {
      coefficient[i] = static_cast<A>(source.coefficient[i]);
      features[i] = tile + i * kTileRow;
    }
    for (int64_t first = 0; first < count; first += kTile) {
      const int64_t n = std::min(kTile, count - first);
      source.read_tile(chunk.begin + first, n, tile);
      Loops::template embed<A, Key, D>(features, coefficient, keys,
                                       ceil_div(n, kLanes) * kLanes,
                                       chunk.weights.data() + first * (D + 1), first_keys, codes);
      const bool recurring = first < kTrial || 8 * chunk.simplices < 7 * first;
      int32_t* simplex = chunk.simplex.data() + first;
      const int64_t before = chunk.simplices;
      if (recurring) {
        find_simplices(n, simplex);
        add_corners<D, false>(before);
      } else {
        number_simplices(n, simplex);
        add_corners<D, true>(before);
      }
    }
    scratch.last_simplices = chunk.simplices;
    scratch.last_vertices = chunk.vertices;
  }

  // Equal simplices get one number; keys and codes of new ones move to the front.
  void find_simplices(int64_t n, int32_t* simplex) {
    Key* const first_keys = scratch.keys.data();
    uint32_t* codes = scratch.codes.data();
    int64_t found = 0, count = chunk.simplices;
    int32_t missed[kBatch];
    for (int64_t begin = 0; begin < n; begin += kBatch) {
      const int64_t end = std::min(begin + kBatch, n);
      int64_t misses = 0;
      for (int64_t i = begin; i < end; ++i) {  // no branch that depends on the image
        const uint64_t key = static_cast<uint64_t>(first_keys[i]);
        const SimplexSlot& slot = scratch.simplices.first(SimplexSlot::hash(key, codes[i]));
        simplex[i] = slot.number;
        missed[misses] = static_cast<int32_t>(i);
        misses += !slot.holds(key, codes[i]);
      }
      for (int64_t j = 0; j < misses; ++j) {
        const int64_t i = missed[j];
        const uint64_t key = static_cast<uint64_t>(first_keys[i]);
        const uint32_t code = codes[i];
        SimplexSlot* slot = scratch.simplices.find(
            SimplexSlot::hash(key, code),
            [=](const SimplexSlot& held) { return held.holds(key, code); });
        if (!slot->empty()) {
          simplex[i] = slot->number;
          continue;
        }
        *slot = {key, code, static_cast<int32_t>(count)};
        simplex[i] = static_cast<int32_t>(count++);
        first_keys[found] = static_cast<Key>(key);
        codes[found++] = code;
        scratch.simplices.make_room(count, [](const SimplexSlot& held) {
          return SimplexSlot::hash(held.key, held.code);
        });
      }
    }
    chunk.simplices = count;
  }

  // Where hardly any simplex recurs, each point gets its own.
  void number_simplices(int64_t n, int32_t* simplex) {
    for (int64_t i = 0; i < n; ++i) simplex[i] = static_cast<int32_t>(chunk.simplices++);
  }

  // The vertices of the simplices from `before` on. Prefetch: of tables beyond the caches.
  template <int D, bool Prefetch>
  void add_corners(int64_t before) {
    constexpr int64_t corners = D + 1;
    const int64_t count = (chunk.simplices - before) * corners;
    Key* const corner = scratch.corners.data();
    for (int64_t i = 0; i < chunk.simplices - before; ++i) {
      list_corners<D>(scratch.keys[i], scratch.codes[i], corner + i * corners);
    }
    const int64_t largest = (chunk.end - chunk.begin) * corners;
    chunk.corners.grow(chunk.simplices * corners, before * corners, largest);
    chunk.keys.grow(chunk.vertices + count, chunk.vertices, largest);
    int32_t* vertex = chunk.corners.data() + before * corners;
    Key* known = chunk.keys.data();
    int64_t vertices = chunk.vertices;
    int32_t missed[kBatch];
    for (int64_t begin = 0; begin < count; begin += kBatch) {
      const int64_t end = std::min(begin + kBatch, count);
      int64_t misses = 0;
      if (Prefetch) {
        for (int64_t i = end; i < std::min(end + kBatch, count); ++i) {
          scratch.vertices.prefetch(hash_key(static_cast<uint64_t>(corner[i])));
        }
      }
      for (int64_t i = begin; i < end; ++i) {  // no branch that depends on the image
        const uint64_t hash = hash_key(static_cast<uint64_t>(corner[i]));
        const VertexSlot& slot = scratch.vertices.first(hash);
        vertex[i] = slot.number();
        missed[misses] = static_cast<int32_t>(i);
        misses += !holds(slot, known, corner[i], hash);
      }
      for (int64_t j = 0; j < misses; ++j) {
        const int64_t i = missed[j];
        const uint64_t hash = hash_key(static_cast<uint64_t>(corner[i]));
        VertexSlot* slot = find_vertex(scratch.vertices, known, corner[i], hash);
        if (!slot->empty()) {
          vertex[i] = slot->number();
          continue;
        }
        vertex[i] = static_cast<int32_t>(vertices);
        known[vertices++] = corner[i];
        *slot = {static_cast<uint32_t>(vertices), static_cast<uint32_t>(hash)};
        scratch.vertices.make_room(vertices, [=](const VertexSlot& held) {
          return hash_key(static_cast<uint64_t>(known[held.number()]));
        });
      }
    }
    chunk.vertices = vertices;
  }

  template <int D>
  void list_corners(Key key, uint32_t code, Key* corner) const {
    Key step[D + 1] = {};  // by rank; the last axis has stride 0
    for (int i = 0; i < D; ++i) step[code >> (4 * i) & 15u] = static_cast<Key>(keys.stride[i]);
    corner[0] = key;
    for (int k = 1; k <= D; ++k) corner[k] = corner[k - 1] + 1 - step[D + 1 - k];
  }
};

}  // namespace wsfast::crf
