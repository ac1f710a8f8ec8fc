// Scratch memory, hash tables and the sort of the CPU lattice.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>

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
  // Keeps the first `used` values.
  T* grow(int64_t size, int64_t used) {
    if (size > capacity_) {
      const int64_t capacity = std::max(size, 2 * capacity_);
      std::unique_ptr<T[]> larger(new T[capacity]);
      std::copy(data_.get(), data_.get() + used, larger.get());
      data_ = std::move(larger);
      capacity_ = capacity;
    }
    return data_.get();
  }
  void release() {
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

// Open addressing over the entries 0, 1, ... of arrays that the caller keeps. A slot holds an entry
// and 32 bits of its hash; 0 is empty.
class SlotTable {
 public:
  void clear(int64_t at_least) {
    int64_t capacity = 64;
    while (capacity < at_least) capacity *= 2;
    reset(capacity);
  }

  // Room for one more entry at a load of at most 1/2; hash_of(entry) gives old hashes again.
  template <class HashOf>
  void reserve_one(int64_t used, const HashOf& hash_of) {
    if (2 * static_cast<uint64_t>(used) <= mask_) return;
    reset(4 * (mask_ + 1));
    for (int64_t i = 0; i < used; ++i) {
      const uint64_t hash = hash_of(i);
      uint64_t at = hash >> shift_;
      while (slots_[at] != 0) at = (at + 1) & mask_;
      slots_[at] = slot(hash, i);
    }
  }

  // The entry of that hash which same(entry) accepts, or -1; `at` is where it belongs.
  template <class Same>
  int64_t find(uint64_t hash, const Same& same, uint64_t& at) const {
    for (at = hash >> shift_;; at = (at + 1) & mask_) {
      const uint64_t held = slots_[at];
      if (held == 0) return -1;
      const int64_t entry = static_cast<int64_t>(held & 0xffffffffu) - 1;
      if ((held ^ (hash << 32)) >> 32 == 0 && same(entry)) return entry;
    }
  }

  void put(uint64_t at, uint64_t hash, int64_t entry) { slots_[at] = slot(hash, entry); }
  void prefetch(uint64_t hash) const { __builtin_prefetch(slots_.data() + (hash >> shift_)); }
  void release() { slots_.release(); }

 private:
  static uint64_t slot(uint64_t hash, int64_t entry) {
    return hash << 32 | static_cast<uint64_t>(entry + 1);
  }
  void reset(int64_t capacity) {
    slots_.resize(capacity);
    std::memset(slots_.data(), 0, static_cast<size_t>(capacity) * sizeof(uint64_t));
    mask_ = static_cast<uint64_t>(capacity - 1);
    shift_ = 64 - __builtin_ctzll(static_cast<uint64_t>(capacity));
  }

  Buffer<uint64_t> slots_;
  uint64_t mask_ = 0;
  int shift_ = 0;
};

// Top bits choose the slot; the low 32 are a bijection of the low 32 bits of the key.
inline uint64_t hash_key(uint64_t key) { return key * 0x9e3779b97f4a7c15u; }

inline uint64_t hash_pair(uint64_t key, uint32_t other) {
  const uint64_t mixed = key * 0x9e3779b97f4a7c15u + other * 0xc2b2ae3d27d4eb4fu;
  return mixed ^ mixed >> 32;
}

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
