// The gradient of a sum of layers on the CPU. The reduced maps are computed again; each layer then
// gathers its share of their gradient, so that nothing depends on the order of threads.
#pragma once

#include <memory>

#include "fusion_forward.h"

namespace wsfast::fusion {

constexpr int64_t kGatheredRows = 128;  // of the output that one task of a layer reads, about

// The transpose of bilinear resizing along one axis: the outputs that each source position feeds and
// its share in them, `taps` rows of `size`. Positions that feed fewer repeat one with share 0.
template <class A>
struct Adjoint {
  int64_t size, taps = 1;
  std::vector<int32_t> at;
  std::vector<A> share;

  Adjoint(int64_t in_size, int64_t out_size) : size(in_size) {
    std::vector<std::vector<std::pair<int32_t, A>>> fed(in_size);
    for (int64_t x = 0; x < out_size; ++x) {
      const Tap<A> tap = bilinear_tap<A>(x, in_size, out_size);
      const bool alone = tap.first == tap.second;
      fed[tap.first].emplace_back(x, alone ? A(1) : A(1) - tap.weight);
      if (!alone) fed[tap.second].emplace_back(x, tap.weight);
    }
    for (const auto& outputs : fed) taps = std::max<int64_t>(taps, outputs.size());
    at.resize(taps * size);
    share.resize(taps * size);
    for (int64_t i = 0; i < size; ++i) {
      for (size_t k = 0; k < fed[i].size(); ++k) {
        at[k * size + i] = fed[i][k].first;
        share[k * size + i] = fed[i][k].second;
      }
    }
  }
};

// Gradients of the layers and of their weights, from `grad` of the normalised sum.
template <class Rows, class T>
class FusionBackward {
 public:
  using A = acc_t<T>;

  FusionBackward(const FuseArgs& args, const A* weights, const T* grad)
      : args_(args),
        fusion_(args, weights),
        grad_(grad),
        finite_(new bool[args.images]),
        reduced_(new A[args.images * args.height * args.width]) {
    for (const Layer<T>& layer : fusion_.layers()) {
      rows_.emplace_back(layer.height, args.height);
      columns_.emplace_back(layer.width, args.width);
      add_blocks(rows_.size() - 1, layer.height);
    }
  }

  void run(const std::vector<T*>& grad_cams, A* grad_weights) {
    fusion_.measure(finite_.get());
    undo_normalization();
    std::vector<std::unique_ptr<A[]>> own(grad_cams.size());
    std::vector<A*> gathered(grad_cams.size());
    for (size_t l = 0; l < grad_cams.size(); ++l) {
      if constexpr (std::is_same_v<T, A>) {
        gathered[l] = grad_cams[l];
      } else {
        own[l].reset(new A[args_.images * fusion_.layers()[l].pixels()]);
        gathered[l] = own[l].get();
      }
      if (has_output_size(l)) gathered[l] = reduced_.get();
    }
    undo_layers(gather(gathered), gathered, grad_cams, grad_weights);
  }

 private:
  // Some rows of one layer of one image: a task.
  struct Block {
    size_t layer;
    int64_t image, begin, end;
  };

  void add_blocks(size_t l, int64_t height) {
    const int64_t step = std::max<int64_t>(1, kGatheredRows / rows_[l].taps);
    for (int64_t n = 0; n < args_.images; ++n) {
      for (int64_t y = 0; y < height; y += step) {
        blocks_.push_back({l, n, y, std::min(y + step, height)});
      }
    }
  }

  bool has_output_size(size_t l) const {
    const Layer<T>& layer = fusion_.layers()[l];
    return layer.height == args_.height && layer.width == args_.width;
  }

  // visit(number, block, row) of all blocks, in parallel; `row` is for the thread to use.
  template <class Visit>
  void for_blocks(const Visit& visit) const {
    share_tasks(static_cast<int64_t>(blocks_.size()), 1, [&](Tasks tasks) {
      std::vector<A> row(args_.width);
      for (int64_t b; tasks.take(b);) visit(b, blocks_[b], row);
    });
  }

  // Turns `grad` into the gradient of the reduced maps; zero where an image is not finite.
  void undo_normalization() {
    A* const reduced = reduced_.get();
    std::vector<NormGradient<A>> gradient_of;
    if (args_.norm != Norm::none) gradient_of = norm_gradients(fusion_.reduce(finite_.get(), reduced));
    for_row_blocks(args_.images, args_.height, [&](int64_t, int64_t n, int64_t y, int64_t end) {
      const int64_t at = (n * args_.height + y) * args_.width, count = (end - y) * args_.width;
      if (!finite_[n]) {
        std::fill(reduced + at, reduced + at + count, A(0));
      } else if (args_.norm == Norm::none) {
        Rows::normalize(grad_ + at, Affine<A>{A(0), A(1)}, count, reduced + at);
      } else {
        Rows::apply_gradient(reduced + at, grad_ + at, gradient_of[n], count, reduced + at);
      }
    });
  }

  std::vector<NormGradient<A>> norm_gradients(const std::vector<Stats<A>>& stats) const {
    const int64_t blocks = ceil_div(args_.height, kRowBlock);
    std::vector<GradientSums<double>> parts(args_.images * blocks);
    for_row_blocks(args_.images, args_.height, [&](int64_t task, int64_t n, int64_t y, int64_t end) {
      const int64_t at = (n * args_.height + y) * args_.width;
      parts[task] = Rows::gradient_sums(reduced_.get() + at, grad_ + at, stats[n], affine_of(stats[n]),
                                        (end - y) * args_.width);
    });
    std::vector<NormGradient<A>> found;
    for (int64_t n = 0; n < args_.images; ++n) {
      GradientSums<double> sums{};
      for (int64_t b = 0; b < blocks; ++b) sums = merge(sums, parts[n * blocks + b]);
      found.push_back(
          normalization_gradient(stats[n], affine_of(stats[n]), args_.norm, A(1), sums));
    }
    return found;
  }

  Affine<A> affine_of(const Stats<A>& stats) const {
    return normalization(stats, args_.norm, args_.eps);
  }

  // The gradients of the normalised layers without their weights, and the sums over each block.
  std::vector<GradientSums<double>> gather(const std::vector<A*>& gathered) const {
    std::vector<GradientSums<double>> sums(blocks_.size());
    for_blocks([&](int64_t b, const Block& block, std::vector<A>& row) {
      const auto& [l, n, begin, end] = block;
      const Layer<T>& layer = fusion_.layers()[l];
      A* const out = gathered[l] + (n * layer.height + begin) * layer.width;
      if (!has_output_size(l)) gather_rows(block, row.data(), out);
      if (!finite_[n]) return;
      sums[b] = Rows::gradient_sums(layer.row(n, begin), out, layer.stats[n], layer.affine[n],
                                    (end - begin) * layer.width);
    });
    return sums;
  }

  void gather_rows(const Block& block, A* row, A* out) const {
    const Adjoint<A>&rows = rows_[block.layer], &columns = columns_[block.layer];
    const A* const image = reduced_.get() + block.image * args_.height * args_.width;
    for (int64_t y = block.begin; y < block.end; ++y, out += columns.size) {
      A* const sum = columns.size == args_.width ? out : row;
      std::fill(sum, sum + args_.width, A(0));
      for (int64_t k = y; k < rows.taps * rows.size; k += rows.size) {
        if (rows.share[k] == A(0)) continue;
        Rows::add_row(image + rows.at[k] * args_.width, rows.share[k], args_.width, sum);
      }
      if (sum == out) continue;
      Rows::gather_row(row, columns.at.data(), columns.share.data(), columns.taps, columns.size, out);
    }
  }

  // From the gathered gradients those of the maps themselves.
  void undo_layers(const std::vector<GradientSums<double>>& parts, const std::vector<A*>& gathered,
                   const std::vector<T*>& grad_cams, A* grad_weights) const {
    std::vector<GradientSums<double>> sums(gathered.size() * args_.images);
    for (size_t b = 0; b < blocks_.size(); ++b) {
      GradientSums<double>& sum = sums[blocks_[b].layer * args_.images + blocks_[b].image];
      sum = merge(sum, parts[b]);
    }
    for (size_t l = 0; l < gathered.size(); ++l) {
      double weight = 0;
      for (int64_t n = 0; n < args_.images; ++n) weight += sums[l * args_.images + n].product;
      grad_weights[l] = static_cast<A>(weight);
    }
    for_blocks([&](int64_t, const Block& block, std::vector<A>&) {
      const auto& [l, n, begin, end] = block;
      const Layer<T>& layer = fusion_.layers()[l];
      const int64_t at = (n * layer.height + begin) * layer.width;
      const int64_t count = (end - begin) * layer.width;
      if (!finite_[n]) {
        std::fill(grad_cams[l] + at, grad_cams[l] + at + count, T{});
        return;
      }
      const NormGradient<A> gradient_of =
          normalization_gradient(layer.stats[n], layer.affine[n], args_.layer_norm, layer.weight,
                                 sums[l * args_.images + n]);
      Rows::apply_gradient(layer.maps + at, gathered[l] + at, gradient_of, count,
                           grad_cams[l] + at);
    });
  }

  const FuseArgs& args_;
  Fusion<Rows, T> fusion_;
  const T* grad_;
  std::unique_ptr<bool[]> finite_;
  std::unique_ptr<A[]> reduced_;
  std::vector<Adjoint<A>> rows_, columns_;
  std::vector<Block> blocks_;
};

}  // namespace wsfast::fusion
