// One chunk of an image's points: their simplices, and the vertices of these.
#pragma once

#include <algorithm>

#include "crf_features.h"
#include "crf_math.h"
#include "crf_tables.h"

namespace wsfast::crf {

inline constexpr int64_t kChunk = 32768;       // points of a chunk, roughly
inline constexpr int64_t kLargestLanes = 16;
inline int64_t chunks_of(int64_t points) {
  return std::max<int64_t>(1, (points + kChunk / 2) / kChunk);
}
static_assert(kChunk * 3 / 2 + kLargestLanes <= 1 << 16, "NarrowSimplex numbers a chunk's simplices");
inline constexpr int64_t kBatch = 64;   // look-ups whose first probes go without branches
inline constexpr int64_t kTrial = 2048;  // points after which a chunk judges whether simplices recur

// What one thread needs while it builds chunks, one after the other.
template <class A, class Key>
struct ChunkScratch {
  SlotTable<NarrowSimplex> narrow_simplices;
  SlotTable<WideSimplex> wide_simplices;
  SlotTable<VertexSlot> vertices;
  Buffer<A> tile;
  Buffer<Key> keys;        // of the first vertex of a tile's points, then of its new simplices
  Buffer<uint32_t> codes;  // of the same
  Buffer<uint32_t> hashes;  // of a tile's points
  Buffer<Key> corners;     // of its new simplices, corner by corner
  int64_t last_simplices = 0, last_vertices = 0;  // of the chunk before: this one's will be alike

  template <int D>
  auto& simplices() {
    if constexpr (sizeof(Key) == 4 && D <= 5) {
      return narrow_simplices;
    } else {
      return wide_simplices;
    }
  }

  void release() {
    narrow_simplices.release();
    wide_simplices.release();
    vertices.release();
  }
};

template <class A, class Key>
struct Chunk {
  int64_t begin, end;
  int64_t simplices = 0, vertices = 0;
  int64_t first_vertex;        // of this chunk among the vertices of all chunks
  Buffer<A> weights;           // of every point: d + 1
  Buffer<int32_t> simplex;     // of every point
  Buffer<int32_t> corners;     // of every simplex: d + 1 vertices of this chunk
  Buffer<Key> keys;            // of every vertex
  Buffer<A> simplex_values;    // rows of its simplices' corners
};

template <class Key>
bool holds(const VertexSlot& slot, const Key* known, Key key) {
  const bool same = !slot.empty() & (slot.low_key == static_cast<uint32_t>(key));
  return sizeof(Key) == 4 ? same : same && known[slot.number()] == key;
}

template <class Key>
VertexSlot* find_vertex(SlotTable<VertexSlot>& table, const Key* known, Key key) {
  return table.find(hash_key(key), [=](const VertexSlot& held) { return holds(held, known, key); });
}

// The numbers of up to kBatch vertices whose first probe finds them, without a branch that depends on
// the image; the others' places go to `missed`.
template <class Key>
int64_t probe_vertices(const SlotTable<VertexSlot>& table, const Key* known, const Key* keys,
                       int64_t count, int32_t* numbers, int32_t* missed) {
  int64_t misses = 0;
  for (int64_t i = 0; i < count; ++i) {
    const VertexSlot slot = table.first(hash_key(keys[i]));
    numbers[i] = slot.number();
    missed[misses] = static_cast<int32_t>(i);
    misses += !holds(slot, known, keys[i]);
  }
  return misses;
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
    chunk.weights.resize((count + kLargestLanes) * (D + 1) + kLargestLanes);
    chunk.simplex.resize(count);
    chunk.simplices = chunk.vertices = 0;
    auto& simplices = scratch.template simplices<D>();
    simplices.clear(std::min(count, std::max(kChunk / 16, scratch.last_simplices)));
    scratch.vertices.clear(std::min(count, std::max(kChunk / 32, scratch.last_vertices)));
    scratch.tile.resize(D * kTileRow);
    Key* first_keys = scratch.keys.resize(kTileRow);
    uint32_t* codes = scratch.codes.resize(kTileRow);
    uint32_t* hashes = scratch.hashes.resize(kTileRow);
    scratch.corners.resize(kTileRow * (D + 1));
    A coefficient[D];
    const A* features[D];
    for (int i = 0; i < D; ++i) coefficient[i] = static_cast<A>(source.coefficient[i]);
    for (int64_t first = 0; first < count; first += kTile) {
      const int64_t n = std::min(kTile, count - first);
      source.read_tile(chunk.begin + first, n, scratch.tile.data(), features);
      Loops::template embed<A, Key, D>(features, coefficient, keys,
                                       ceil_div(n, kLanes) * kLanes,
                                       chunk.weights.data() + first * (D + 1), first_keys, codes,
                                       hashes);
      const bool recurring = first < kTrial || 8 * chunk.simplices < 7 * first;
      int32_t* simplex = chunk.simplex.data() + first;
      const int64_t before = chunk.simplices;
      if (recurring) {
        find_simplices(simplices, n, simplex);
        add_corners<D>(before);
      } else {
        number_simplices(n, simplex);
        add_corners<D>(before);
      }
    }
    scratch.last_simplices = chunk.simplices;
    scratch.last_vertices = chunk.vertices;
  }

  // Equal simplices get one number; keys and codes of new ones move to the front.
  template <class Slot>
  void find_simplices(SlotTable<Slot>& table, int64_t n, int32_t* simplex) {
    Key* const first_keys = scratch.keys.data();
    uint32_t* codes = scratch.codes.data();
    const uint32_t* hashes = scratch.hashes.data();
    const auto slot_of = [=](int64_t i, int32_t number) {
      return Slot::of(static_cast<uint64_t>(first_keys[i]), codes[i], number);
    };
    int64_t found = 0, count = chunk.simplices;
    int32_t missed[kBatch];
    for (int64_t begin = 0; begin < n; begin += kBatch) {
      const int64_t end = std::min(begin + kBatch, n);
      int64_t misses = 0;
      for (int64_t i = begin; i < end; ++i) {  // no branch that depends on the image
        const Slot slot = table.first(hashes[i]);
        simplex[i] = slot.number();
        missed[misses] = static_cast<int32_t>(i);
        misses += !slot.same(slot_of(i, 0));
      }
      for (int64_t j = 0; j < misses; ++j) {
        const int64_t i = missed[j];
        const Slot wanted = slot_of(i, static_cast<int32_t>(count));
        Slot* slot = table.find(hashes[i], [=](const Slot& held) { return held.same(wanted); });
        if (!slot->empty()) {
          simplex[i] = slot->number();
          continue;
        }
        *slot = wanted;
        simplex[i] = static_cast<int32_t>(count++);
        first_keys[found] = first_keys[i];
        codes[found++] = codes[i];
        table.make_room(count, [](const Slot& held) {
          using Word = std::make_unsigned_t<Key>;
          return static_cast<uint32_t>(
              hash_simplex<Word, Word>(static_cast<Word>(held.key()), held.code()));
        });
      }
    }
    chunk.simplices = count;
  }

  // Where hardly any simplex recurs, each point gets its own.
  void number_simplices(int64_t n, int32_t* simplex) {
    for (int64_t i = 0; i < n; ++i) simplex[i] = static_cast<int32_t>(chunk.simplices++);
  }

  // The vertices of the simplices from `before` on, corner by corner.
  template <int D>
  void add_corners(int64_t before) {
    const int64_t fresh = chunk.simplices - before, count = fresh * (D + 1);
    Loops::template list_corners<Key, D>(scratch.keys.data(), scratch.codes.data(), keys, fresh,
                                         scratch.corners.data());
    const int64_t largest = (chunk.end - chunk.begin) * (D + 1);
    chunk.corners.grow(chunk.simplices * (D + 1), before * (D + 1), largest);
    chunk.keys.grow(chunk.vertices + count, chunk.vertices, largest);
    for (int corner = 0; corner <= D; ++corner) {
      int32_t* vertex = chunk.corners.data() + before * (D + 1) + corner;
      for (int64_t begin = 0; begin < fresh; begin += kBatch) {
        number_vertices<D + 1>(scratch.corners.data() + corner * kTileRow + begin,
                               std::min(kBatch, fresh - begin), vertex + begin * (D + 1));
      }
    }
  }

  // Numbers of up to kBatch keys, every `Stride`.
  template <int Stride>
  void number_vertices(const Key* corner, int64_t count, int32_t* vertex) {
    SlotTable<VertexSlot>& table = scratch.vertices;
    Key* known = chunk.keys.data();
    int32_t numbers[kBatch], missed[kBatch];
    if (table.large()) {
      for (int64_t i = 0; i < count; ++i) table.prefetch(hash_key(corner[i]));
    }
    const int64_t misses = probe_vertices(table, known, corner, count, numbers, missed);
    for (int64_t j = 0; j < misses; ++j) {
      const Key key = corner[missed[j]];
      VertexSlot* slot = find_vertex(table, known, key);
      int32_t& number = numbers[missed[j]];
      number = slot->number();
      if (!slot->empty()) continue;
      number = static_cast<int32_t>(chunk.vertices);
      known[chunk.vertices++] = key;
      *slot = {static_cast<uint32_t>(chunk.vertices), static_cast<uint32_t>(key)};
      table.make_room(chunk.vertices,
                      [=](const VertexSlot& held) { return hash_key(known[held.number()]); });
    }
    for (int64_t i = 0; i < count; ++i) vertex[i * Stride] = numbers[i];
  }
};

}  // namespace wsfast::crf
