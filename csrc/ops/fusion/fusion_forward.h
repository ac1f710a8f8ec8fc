// The forward pass on the CPU: one pass over the output. Per layer only two stretched source rows
// are held at a time; no layer is ever resized to full size in memory.
#pragma once

#include <algorithm>
#include <vector>

#include "fusion_args.h"

namespace wsfast::fusion {

constexpr int64_t kRowBlock = 32;  // output rows of one task; fixed, so results do not depend on threads

constexpr int64_t kStatsBlock = int64_t{1} << 17;  // values of a layer that are worth a thread

constexpr int64_t kRowPadding = 16;  // a vector load of a row may run past its end

// One layer's maps and how its columns reach the output's width.
template <class T>
struct Layer {
  using A = acc_t<T>;
  const T* maps;
  int64_t height, width;
  A weight;
  std::vector<Stats<A>> stats;    // per image
  std::vector<Affine<A>> affine;  // per image
  std::vector<int32_t> first, second;
  std::vector<A> position;

  int64_t pixels() const { return height * width; }
  const T* row(int64_t image, int64_t y) const { return maps + (image * height + y) * width; }
};

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

// The stretched rows of one layer that the current output row needs; a row stays as long as it is
// one of the two.
template <class Rows, class T>
class RowPair {
 public:
  using A = acc_t<T>;

  RowPair(const Layer<T>& layer, int64_t image, int64_t width)
      : layer_(layer), image_(image), width_(width), buffer_(2 * width), source_(layer.width + kRowPadding) {}

  const A* get(int64_t y, int64_t other) {
    for (int slot = 0; slot < 2; ++slot) {
      if (held_[slot] == y) return buffer_.data() + slot * width_;
    }
    const int slot = held_[0] == other ? 1 : 0;
    held_[slot] = y;
    A* out = buffer_.data() + slot * width_;
    const T* row = layer_.row(image_, y);
    const Affine<A>& affine = layer_.affine[image_];
    if (layer_.width == width_) {
      Rows::normalize(row, affine, width_, out);
    } else {
      Rows::normalize(row, affine, layer_.width, source_.data());
      Rows::stretch(source_.data(), layer_.first.data(), layer_.second.data(),
                    layer_.position.data(), width_, out);
    }
    return out;
  }

 private:
  const Layer<T>& layer_;
  int64_t image_, width_;
  std::vector<A> buffer_, source_;
  int64_t held_[2] = {-1, -1};
};

// visit(image, begin, end) of the rows of every task, in parallel; `task` counts them.
template <class Visit>
void for_row_blocks(int64_t images, int64_t height, const Visit& visit) {
  const int64_t blocks = ceil_div(height, kRowBlock);
  parallel_for(0, images * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t y = task % blocks * kRowBlock;
      visit(task, task / blocks, y, std::min(y + kRowBlock, height));
    }
  });
}

// The layers of a batch: measured, reduced to the output's size, normalised.
template <class Rows, class T>
class Fusion {
 public:
  using A = acc_t<T>;

  Fusion(const FuseArgs& args, const A* weights) : args_(args) {
    for (size_t l = 0; l < args.cams.size(); ++l) {
      const Tensor& cams = args.cams[l];
      Layer<T> layer{read_ptr<T>(cams),
                     cams.size(1),
                     cams.size(2),
                     weights[l],
                     std::vector<Stats<A>>(args.images),
                     std::vector<Affine<A>>(args.images),
                     {}, {}, {}};
      if (layer.width != args.width) {
        find_columns(layer.width, args.width, layer.first, layer.second, layer.position);
      }
      layers_.push_back(std::move(layer));
    }
  }

  const std::vector<Layer<T>>& layers() const { return layers_; }

  // Statistics of every layer's maps, and whether those of an image are finite.
  void measure(bool* finite) {
    parallel_for(0, args_.images, 1, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        finite[n] = true;
        for (Layer<T>& layer : layers_) {
          layer.stats[n] = measured(layer.row(n, 0), layer.pixels());
          layer.affine[n] = normalization(layer.stats[n], args_.layer_norm, args_.eps);
          finite[n] = finite[n] && layer.stats[n].finite;
        }
      }
    });
  }

  // The resized and reduced layers, before the last normalisation; returns their statistics.
  std::vector<Stats<A>> reduce(const bool* finite, A* reduced) const {
    const int64_t blocks = ceil_div(args_.height, kRowBlock);
    std::vector<Stats<A>> parts(args_.images * blocks), stats(args_.images);
    for_row_blocks(args_.images, args_.height, [&](int64_t task, int64_t n, int64_t y, int64_t end) {
      A* block = reduced + (n * args_.height + y) * args_.width;
      if (finite[n]) {
        reduce_block(n, y, end, block);
      } else {
        std::fill(block, block + (end - y) * args_.width, A(0));
      }
      parts[task] = Rows::stats(block, (end - y) * args_.width);
    });
    for (int64_t n = 0; n < args_.images; ++n) stats[n] = merged(&parts[n * blocks], blocks);
    return stats;
  }

  // `out` may be `reduced`.
  void normalize(const A* reduced, const std::vector<Stats<A>>& stats, T* out) const {
    if (args_.norm == Norm::none && std::is_same_v<T, A>) return;
    for_row_blocks(args_.images, args_.height, [&](int64_t, int64_t n, int64_t y, int64_t end) {
      const int64_t at = (n * args_.height + y) * args_.width;
      const Affine<A> affine = normalization(stats[n], args_.norm, args_.eps);
      Rows::normalize(reduced + at, affine, (end - y) * args_.width, out + at);
    });
  }

 private:
  // Of a whole map, which threads share where it is large and its batch leaves them free.
  static Stats<A> measured(const T* map, int64_t size) {
    const int64_t blocks = std::max<int64_t>(1, size / kStatsBlock);
    std::vector<Stats<A>> parts(blocks);
    parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
      for (int64_t b = first; b < last; ++b) {
        const int64_t begin = b * kStatsBlock, end = b + 1 < blocks ? begin + kStatsBlock : size;
        parts[b] = Rows::stats(map + begin, end - begin);
      }
    });
    return merged(parts.data(), blocks);
  }

  static Stats<A> merged(const Stats<A>* parts, int64_t count) {
    Stats<A> all = parts[0];
    for (int64_t b = 1; b < count; ++b) all = merge(all, parts[b]);
    return all;
  }

  void reduce_block(int64_t image, int64_t begin, int64_t end, A* out) const {
    std::vector<RowPair<Rows, T>> held;
    held.reserve(layers_.size());
    for (const Layer<T>& layer : layers_) held.emplace_back(layer, image, args_.width);
    for (int64_t y = begin; y < end; ++y, out += args_.width) {
      for (size_t l = 0; l < layers_.size(); ++l) {
        const Tap<A> tap = bilinear_tap<A>(y, layers_[l].height, args_.height);
        const A* top = held[l].get(tap.first, tap.second);
        const A* bottom = tap.weight == A(0) ? top : held[l].get(tap.second, tap.first);
        const A weight = layers_[l].weight;
        Rows::blend(top, bottom, weight * (A(1) - tap.weight), weight * tap.weight, args_.reduce,
                    l == 0, args_.width, out);
      }
    }
  }

  const FuseArgs& args_;
  std::vector<Layer<T>> layers_;
};

}  // namespace wsfast::fusion
