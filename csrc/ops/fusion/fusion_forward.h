// The forward pass on the CPU: one pass over the output, row by row.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "fusion_rows.h"

namespace wsfast::fusion {

constexpr int64_t kRowBlock = 32;  // output rows of one task; fixed, so results do not depend on threads

constexpr int64_t kMeasuredRows = 16;  // that stay in the nearest cache until they are measured

constexpr int64_t kStatsBlock = int64_t{1} << 17;  // values of a layer that are worth a thread

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
                     find_rows<A>(cams.size(1), args.height),
                     {}, {}, {}};
      if (layer.width != args.width) {
        find_columns(layer.width, args.width, layer.first, layer.second, layer.position);
      }
      layers_.push_back(std::move(layer));
    }
  }

  const std::vector<Layer<T>>& layers() const { return layers_; }

  // Fills `out`, and tells which images are finite.
  void fuse(bool* finite, T* out) {
    const int64_t pixels = args_.height * args_.width, threads = thread_count();
    const bool keeps_threads_busy = args_.images % threads == 0 || args_.images >= 4 * threads;
    if (!keeps_threads_busy) {  // an image each would not: they share them
      std::unique_ptr<A[]> wide;
      A* const reduced = sums_before(out, args_.images * pixels, wide);
      measure(finite);
      normalize(reduced, reduce(finite, reduced), out);
      return;
    }
    share_tasks(args_.images, 1, [&](Tasks tasks) {  // an image stays in its thread's cache
      std::unique_ptr<A[]> wide;
      for (int64_t n; tasks.take(n);) {
        T* const map = out + n * pixels;
        A* const reduced = sums_before(map, pixels, wide);
        finite[n] = measure_image(n);
        const Stats<A> stats = reduce_rows(finite[n], n, 0, args_.height, reduced);
        normalize_rows(reduced, stats, pixels, map);
      }
    });
  }

  // Statistics of every layer's maps, and whether those of an image are finite.
  void measure(bool* finite) {
    parallel_for(0, args_.images, 1, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) finite[n] = measure_image(n);
    });
  }

  // The resized and reduced layers, before the last normalisation; returns their statistics.
  std::vector<Stats<A>> reduce(const bool* finite, A* reduced) const {
    const int64_t blocks = ceil_div(args_.height, kRowBlock);
    std::vector<Stats<A>> parts(args_.images * blocks), stats(args_.images);
    for_row_blocks(args_.images, args_.height, [&](int64_t task, int64_t n, int64_t y, int64_t end) {
      A* block = reduced + (n * args_.height + y) * args_.width;
      parts[task] = reduce_rows(finite[n], n, y, end, block);
    });
    for (int64_t n = 0; n < args_.images; ++n) stats[n] = merged(&parts[n * blocks], blocks);
    return stats;
  }

  // `out` may be `reduced`.
  void normalize(const A* reduced, const std::vector<Stats<A>>& stats, T* out) const {
    for_row_blocks(args_.images, args_.height, [&](int64_t, int64_t n, int64_t y, int64_t end) {
      const int64_t at = (n * args_.height + y) * args_.width;
      normalize_rows(reduced + at, stats[n], (end - y) * args_.width, out + at);
    });
  }

 private:
  // Where sums are kept until they are normalised: in the output itself if it has their type.
  static A* sums_before(T* out, int64_t size, std::unique_ptr<A[]>& wide) {
    if constexpr (std::is_same_v<T, A>) return out;
    if (wide == nullptr) wide.reset(new A[size]);
    return wide.get();
  }

  bool measure_image(int64_t n) {
    bool finite = true;
    for (Layer<T>& layer : layers_) {
      layer.stats[n] = measured(layer.row(n, 0), layer.pixels());
      layer.affine[n] = normalization(layer.stats[n], args_.layer_norm, args_.eps);
      finite = finite && layer.stats[n].finite;
    }
    return finite;
  }

  void normalize_rows(const A* reduced, const Stats<A>& stats, int64_t count, T* out) const {
    if (args_.norm == Norm::none && std::is_same_v<T, A>) return;
    Rows::normalize(reduced, normalization(stats, args_.norm, args_.eps), count, out);
  }

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

  // Some rows of an image, and their statistics.
  Stats<A> reduce_rows(bool finite, int64_t image, int64_t begin, int64_t end, A* out) const {
    const bool adds = args_.reduce == Reduce::sum;
    CurrentRows<Rows, T> rows(layers_, image, args_.width, adds);
    Stats<A> stats{};
    for (int64_t y = begin; y < end; y += kMeasuredRows) {
      const int64_t next = std::min(y + kMeasuredRows, end), count = (next - y) * args_.width;
      if (!finite) {
        std::fill(out, out + count, A(0));
      } else if (adds) {
        add_rows(rows, y, next, out);
      } else {
        combine_rows(rows, y, next, out);
      }
      const Stats<A> some = Rows::stats(out, count);
      stats = y == begin ? some : merge(stats, some);
      out += count;
    }
    return stats;
  }

  void add_rows(CurrentRows<Rows, T>& rows, int64_t begin, int64_t end, A* out) const {
    for (int64_t y = begin; y < end; ++y, out += args_.width) Rows::add(rows.at(y), args_.width, out);
  }

  void combine_rows(CurrentRows<Rows, T>& rows, int64_t begin, int64_t end, A* out) const {
    for (int64_t y = begin; y < end; ++y, out += args_.width) {
      const Term<A>* terms = rows.at(y).terms.data();
      for (size_t l = 0; l < layers_.size(); terms += layers_[l++].taps()) {
        const Term<A> bottom = layers_[l].taps() == 2 ? terms[1] : Term<A>{terms[0].row, A(0)};
        Rows::combine(terms[0], bottom, args_.reduce, l == 0, args_.width, out);
      }
    }
  }

  const FuseArgs& args_;
  std::vector<Layer<T>> layers_;
};

}  // namespace wsfast::fusion
