// Where an output row of the CPU's fusion comes from: per layer two source rows, which are normalised
// and stretched to the output's width when they are first needed. No layer is resized as a whole.
#pragma once

#include <cstdint>
#include <vector>

#include "fusion_args.h"

namespace wsfast::fusion {

constexpr int64_t kRowPadding = 16;  // a vector load of a row may run past its end

// One layer's maps and how its rows and columns reach the output's size.
template <class T>
struct Layer {
  using A = acc_t<T>;
  const T* maps;
  int64_t height, width;
  A weight;
  std::vector<Stats<A>> stats;    // per image
  std::vector<Affine<A>> affine;  // per image
  std::vector<Tap<A>> rows;       // per output row
  std::vector<int32_t> first, second;
  std::vector<A> position;

  int64_t pixels() const { return height * width; }
  // Source rows of an output row.
  int taps() const { return height == static_cast<int64_t>(rows.size()) ? 1 : 2; }
  const T* row(int64_t image, int64_t y) const { return maps + (image * height + y) * width; }
};

template <class A>
std::vector<Tap<A>> find_rows(int64_t in_height, int64_t out_height) {
  std::vector<Tap<A>> rows(out_height);
  for (int64_t y = 0; y < out_height; ++y) rows[y] = bilinear_tap<A>(y, in_height, out_height);
  return rows;
}

template <class A>
void find_columns(int64_t in_width, int64_t out_width, std::vector<int32_t>& first,
                  std::vector<int32_t>& second, std::vector<A>& position) {
  first.resize(out_width);
  second.resize(out_width);
  position.resize(out_width);
  for (int64_t x = 0; x < out_width; ++x) {
    const Tap<A> tap = bilinear_tap<A>(x, in_width, out_width);
    first[x] = static_cast<int32_t>(tap.first);
    second[x] = static_cast<int32_t>(tap.second);
    position[x] = tap.weight;
  }
}

// A row and its factor in a sum of rows.
template <class A>
struct Term {
  const A* row;
  A factor;
};

// What an output row is the sum of. The first rows are raw: they are normalised on the way.
template <class A>
struct RowSum {
  std::vector<Term<A>> terms;
  std::vector<Affine<A>> raw;
};

// The rows of one layer of an image between which the current output row lies. Normalised and
// stretched ones are held as long as they are needed.
template <class Rows, class T>
class LayerRows {
 public:
  using A = acc_t<T>;

  // `raw` rows stay where they lie.
  LayerRows(const Layer<T>& layer, int64_t image, int64_t width, bool raw)
      : layer_(layer),
        image_(image),
        width_(width),
        stride_(ceil_div(width, kLine) * kLine),
        raw_(raw),
        buffer_(raw ? 0 : 2 * stride_ + kLine),
        source_(layer.width + kRowPadding) {}

  int taps() const { return layer_.taps(); }

  // Brings the layer's terms to output row y.
  void move_to(int64_t y, Term<A>* terms) {
    const Tap<A>& tap = layer_.rows[y];
    if (tap.first != first_) {
      first_ = tap.first;
      terms[0].row = get(tap.first, tap.second);
      if (taps() == 2) terms[1].row = get(tap.second, tap.first);
    }
    terms[0].factor = layer_.weight * (A(1) - tap.weight);
    if (taps() == 2) terms[1].factor = layer_.weight * tap.weight;
  }

 private:
  static constexpr int64_t kLine = 64 / sizeof(A);

  // Row y; the other one that is needed stays.
  const A* get(int64_t y, int64_t other) {
    if constexpr (std::is_same_v<T, A>) {
      if (raw_) return layer_.row(image_, y);
    }
    for (int slot = 0; slot < 2; ++slot) {
      if (held_[slot] == y) return at(slot);
    }
    const int slot = held_[0] == other ? 1 : 0;
    held_[slot] = y;
    const Affine<A>& affine = layer_.affine[image_];
    if (layer_.width == width_) {
      Rows::normalize(layer_.row(image_, y), affine, width_, at(slot));
    } else {
      Rows::normalize(layer_.row(image_, y), affine, layer_.width, source_.data());
      Rows::stretch(source_.data(), layer_.first.data(), layer_.second.data(),
                    layer_.position.data(), width_, at(slot));
    }
    return at(slot);
  }

  // Whole cache lines: vectors that straddle two are read at half the speed.
  A* at(int slot) {
    const auto begin = reinterpret_cast<uintptr_t>(buffer_.data());
    return buffer_.data() + (-begin & 63) / sizeof(A) + slot * stride_;
  }

  const Layer<T>& layer_;
  int64_t image_, width_, stride_;
  bool raw_;
  std::vector<A> buffer_, source_;
  int64_t held_[2] = {-1, -1}, first_ = -1;
};

// The current rows of all layers of an image.
template <class Rows, class T>
class CurrentRows {
 public:
  using A = acc_t<T>;

  // `raw`: layers of the output's width are not copied, and come first.
  CurrentRows(const std::vector<Layer<T>>& layers, int64_t image, int64_t width, bool raw) {
    rows_.reserve(layers.size());
    for (const bool now_raw : {true, false}) {
      for (const Layer<T>& layer : layers) {
        const bool is_raw = raw && std::is_same_v<T, A> && layer.width == width;
        if (is_raw != now_raw) continue;
        rows_.emplace_back(layer, image, width, is_raw);
        sum_.terms.resize(sum_.terms.size() + layer.taps());
        if (is_raw) sum_.raw.resize(sum_.terms.size(), layer.affine[image]);
      }
    }
  }

  // What output row y is made of.
  const RowSum<A>& at(int64_t y) {
    Term<A>* terms = sum_.terms.data();
    for (LayerRows<Rows, T>& rows : rows_) {
      rows.move_to(y, terms);
      terms += rows.taps();
    }
    return sum_;
  }

 private:
  std::vector<LayerRows<Rows, T>> rows_;
  RowSum<A> sum_;
};

}  // namespace wsfast::fusion
