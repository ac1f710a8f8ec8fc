// Scratch memory, hash tables and the sort of the CPU lattice.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>

#include "../../core/memory.h"

namespace wsfast::crf {

// Memory that keeps its size between images and is not cleared.
template <class T>
class Buffer {
 public:
  T* resize(int64_t size) {
    if (size > capacity_) {
      data_.reset(new T[size]);
      capacity_ = size;
    }
    return data_.get();
  }
  // Keeps the first `used` values; at most `largest` will ever be asked for.
  T* grow(int64_t size, int64_t used, int64_t largest) {
    if (size > capacity_) {
      const int64_t capacity = std::max(size, std::min(2 * capacity_, largest));
      std::unique_ptr<T[]> larger(new T[capacity]);
      std::copy(data_.get(), data_.get() + used, larger.get());
      release();
      data_ = std::move(larger);
      capacity_ = capacity;
    }
    return data_.get();
  }
  void release() {
    give_back_pages(data_.get(), capacity_ * static_cast<int64_t>(sizeof(T)));
    data_.reset();
    capacity_ = 0;
  }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }

 private:
  std::unique_ptr<T[]> data_;
  int64_t capacity_ = 0;
};

// Multiplicative hashes, whose highest bits choose a slot.
inline uint32_t hash_key(int32_t key) { return static_cast<uint32_t>(key) * 0x9e3779b1u; }
inline uint32_t hash_key(int64_t key) {
  return static_cast<uint32_t>(static_cast<uint64_t>(key) * 0x9e3779b97f4a7c15u >> 32);
}

// Of a simplex, for single values or vectors of `Word`, the unsigned type of the keys.
template <class Word, class Words>
Words hash_simplex(Words key, Words code) {
  if constexpr (sizeof(Word) == 4) {
    return (key + code * 0x85ebca6bu) * 0x9e3779b1u;
  } else {
    return (key + code * 0xc2b2ae3d27d4eb4fu) * 0x9e3779b97f4a7c15u >> 32;
  }
}

// A power of two of slots, probed one after the other; at most a quarter of them in use, of large
// tables five eighths.
template <class Slot>
class SlotTable {
 public:
  // Empty, with room for so many entries.
  void clear(int64_t entries) {
    int64_t capacity = 64;
    while (room_of(capacity) < entries) capacity *= 2;
    reset(capacity);
  }

  // The slot that holds what `same` accepts, or the empty one where it belongs.
  template <class Same>
  Slot* find(uint32_t hash, const Same& same) {
    Slot* const slots = slots_.data();
    const uint64_t mask = mask_;
    for (uint64_t at = hash >> shift_;; at = (at + 1) & mask) {
      if (slots[at].empty() || same(slots[at])) return slots + at;
    }
  }

  // Where the search of `find` begins: most entries lie there.
  const Slot& first(uint32_t hash) const { return slots_[hash >> shift_]; }

  void prefetch(uint32_t hash) const { __builtin_prefetch(slots_.data() + (hash >> shift_)); }

  // Whether looking ahead pays: the table is larger than a cache near the core.
  bool large() const { return mask_ >= kLarge; }

  // To be called before `used` entries become one more.
  template <class HashOf>
  void make_room(int64_t used, const HashOf& hash_of) {
    const int64_t capacity = static_cast<int64_t>(mask_ + 1);
    if (used < room_of(capacity)) return;
    Buffer<Slot> old;
    std::swap(old, slots_);
    reset(capacity >= kLarge ? 2 * capacity : 4 * capacity);
    for (int64_t i = 0; i < capacity; ++i) {
      if (!old[i].empty()) *find(hash_of(old[i]), [](const Slot&) { return false; }) = old[i];
    }
    old.release();
  }

  void release() { slots_.release(); }

 private:
  static constexpr int64_t kLarge = 1 << 15;

  static int64_t room_of(int64_t capacity) {
    return capacity >= kLarge ? capacity / 8 * 5 : capacity / 4;
  }

  void reset(int64_t capacity) {
    std::memset(static_cast<void*>(slots_.resize(capacity)), 0, capacity * sizeof(Slot));
    mask_ = static_cast<uint64_t>(capacity - 1);
    shift_ = __builtin_clz(static_cast<uint32_t>(mask_));
  }

  Buffer<Slot> slots_;
  uint64_t mask_ = 0;
  int shift_ = 0;
};

// A vertex: its number, and the low half of its key.
struct VertexSlot {
  uint32_t number_and_1, low_key;

  bool empty() const { return number_and_1 == 0; }
  int32_t number() const { return static_cast<int32_t>(number_and_1 - 1); }
};

// Bits of an axis' rank, 0..D, in the code of a simplex.
template <int D>
inline constexpr int rank_bits = D < 8 ? 3 : 4;

// A simplex by its first vertex, whose key is not 0, and the code of its ranks.
struct WideSimplex {
  uint64_t first_key;
  uint32_t ranks;
  int32_t index;

  static WideSimplex of(uint64_t key, uint32_t code, int32_t number) { return {key, code, number}; }
  uint64_t key() const { return first_key; }
  uint32_t code() const { return ranks; }
  int32_t number() const { return index; }
  bool empty() const { return first_key == 0; }
  bool same(const WideSimplex& other) const {
    return ((first_key ^ other.first_key) | (ranks ^ other.ranks)) == 0;
  }
};

// The same in one word: keys of 31 bits, ranks of up to five axes, numbers within a chunk.
struct NarrowSimplex {
  uint64_t word;

  static NarrowSimplex of(uint64_t key, uint32_t code, int32_t number) {
    return {key << 31 | uint64_t{code} << 16 | static_cast<uint32_t>(number)};
  }
  uint64_t key() const { return word >> 31; }
  uint32_t code() const { return static_cast<uint32_t>(word >> 16) & 0x7fff; }
  int32_t number() const { return static_cast<int32_t>(word & 0xffff); }
  bool empty() const { return word == 0; }
  bool same(const NarrowSimplex& other) const { return (word ^ other.word) < 0x10000; }
};

template <class Key>
struct KeyAndSource {
  Key key;
  int32_t source;
};

// Stable, by the lowest `bits` of the keys; the result lies in the buffer that is returned.
template <class Key>
KeyAndSource<Key>* radix_sort(KeyAndSource<Key>* items, KeyAndSource<Key>* spare, int64_t count,
                              int bits) {
  constexpr int digit_bits = 11;
  constexpr uint64_t digits = uint64_t{1} << digit_bits;
  for (int low = 0; low < bits; low += digit_bits) {
    int64_t place[digits + 1] = {};
    for (int64_t i = 0; i < count; ++i) {
      ++place[(static_cast<uint64_t>(items[i].key) >> low & (digits - 1)) + 1];
    }
    for (uint64_t digit = 0; digit < digits; ++digit) place[digit + 1] += place[digit];
    for (int64_t i = 0; i < count; ++i) {
      spare[place[static_cast<uint64_t>(items[i].key) >> low & (digits - 1)]++] = items[i];
    }
    std::swap(items, spare);
  }
  return items;
}

}  // namespace wsfast::crf
