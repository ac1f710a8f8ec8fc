// Schema and CPU kernel of the fusion room: one pass over the output. Per layer only two stretched
// source rows are held at a time; no layer is ever resized to full size in memory.
#include <algorithm>
#include <memory>

#include "../../core/torch_api.h"
#include "fusion_args.h"

#define WS_SIMD_BODY "../ops/fusion/fusion_simd.h"
#include "../../core/foreach_simd.h"

namespace wsfast::fusion {
namespace {

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
  std::vector<Affine<A>> affine;  // per image
  std::vector<int32_t> first, second;
  std::vector<A> position;

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

template <class Rows, class T>
class Fusion {
 public:
  using A = acc_t<T>;

  Fusion(const FuseArgs& args, const Tensor& weights, T* out, bool* finite)
      : args_(args), out_(out), finite_(finite), blocks_(ceil_div(args.height, kRowBlock)) {
    const A* weight = read_ptr<A>(weights);
    for (size_t l = 0; l < args.cams.size(); ++l) {
      const Tensor& cams = args.cams[l];
      Layer<T> layer{read_ptr<T>(cams), cams.size(1), cams.size(2), weight[l],
                     std::vector<Affine<A>>(args.images), {}, {}, {}};
      if (layer.width != args.width) {
        find_columns(layer.width, args.width, layer.first, layer.second, layer.position);
      }
      layers_.push_back(std::move(layer));
    }
  }

  void run() {
    measure_layers();
    if constexpr (std::is_same_v<T, A>) {
      reduce_and_normalize(out_);
    } else {
      const std::unique_ptr<A[]> reduced(new A[args_.images * args_.height * args_.width]);
      reduce_and_normalize(reduced.get());
    }
  }

 private:
  void measure_layers() {
    std::fill(finite_, finite_ + args_.images, true);
    parallel_for(0, args_.images, 1, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        for (Layer<T>& layer : layers_) {
          const Stats<A> stats = measure(layer.row(n, 0), layer.height * layer.width);
          layer.affine[n] = normalization(stats, args_.layer_norm, args_.eps);
          finite_[n] = finite_[n] && stats.finite;
        }
      }
    });
  }

  void reduce_and_normalize(A* reduced) {
    std::vector<Stats<A>> stats(args_.images * blocks_);
    parallel_for(0, args_.images * blocks_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t n = task / blocks_, y = task % blocks_ * kRowBlock;
        const int64_t rows = std::min(kRowBlock, args_.height - y);
        A* block = reduced + (n * args_.height + y) * args_.width;
        if (finite_[n]) {
          reduce_block(n, y, rows, block);
        } else {
          std::fill(block, block + rows * args_.width, A(0));
        }
        stats[task] = Rows::stats(block, rows * args_.width);
      }
    });
    if (args_.norm == Norm::none && std::is_same_v<T, A>) return;
    parallel_for(0, args_.images * blocks_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t n = task / blocks_, y = task % blocks_ * kRowBlock;
        const int64_t at = (n * args_.height + y) * args_.width;
        const int64_t count = std::min(kRowBlock, args_.height - y) * args_.width;
        const Affine<A> affine = normalization(merge_blocks(stats.data() + n * blocks_, blocks_),
                                               args_.norm, args_.eps);
        Rows::normalize(reduced + at, affine, count, out_ + at);
      }
    });
  }

  // Of a whole map, which threads share where it is large and its batch leaves them free.
  static Stats<A> measure(const T* map, int64_t size) {
    const int64_t blocks = std::max<int64_t>(1, size / kStatsBlock);
    std::vector<Stats<A>> parts(blocks);
    parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
      for (int64_t b = first; b < last; ++b) {
        const int64_t begin = b * kStatsBlock, end = b + 1 < blocks ? begin + kStatsBlock : size;
        parts[b] = Rows::stats(map + begin, end - begin);
      }
    });
    return merge_blocks(parts.data(), blocks);
  }

  static Stats<A> merge_blocks(const Stats<A>* blocks, int64_t count) {
    Stats<A> all = blocks[0];
    for (int64_t b = 1; b < count; ++b) all = merge(all, blocks[b]);
    return all;
  }

  void reduce_block(int64_t image, int64_t y0, int64_t rows, A* out) {
    std::vector<RowPair<Rows, T>> held;
    held.reserve(layers_.size());
    for (const Layer<T>& layer : layers_) held.emplace_back(layer, image, args_.width);
    for (int64_t y = y0; y < y0 + rows; ++y, out += args_.width) {
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
  T* out_;
  bool* finite_;
  int64_t blocks_;
  std::vector<Layer<T>> layers_;
};

WS_DEFINE_DISPATCH_SIMD(Rows)

std::tuple<Tensor, Tensor> fuse_cams_cpu(const std::vector<Tensor>& cams, const Tensor& weights,
                                         int64_t height, int64_t width, std::string layer_norm,
                                         std::string reduce, std::string norm, double eps) {
  const FuseArgs args = fuse_args(cams, weights, height, width, layer_norm, reduce, norm, eps);
  const ScalarType dtype = cams[0].scalar_type();
  Tensor out = new_tensor(cams[0], {args.images, height, width}, dtype);
  Tensor finite = new_tensor(cams[0], {args.images}, ScalarType::Bool);
  const Tensor w = as_contiguous(weights);
  dispatch_floating(dtype, "fuse_cams", [&]<class T>() {
    dispatch_simd([&]<class Rows>() {
      Fusion<Rows, T>(args, w, write_ptr<T>(out), write_ptr<bool>(finite)).run();
    });
  });
  return {out, finite};
}

}  // namespace
}  // namespace wsfast::fusion

STABLE_TORCH_LIBRARY_FRAGMENT(wsfast, m) {
  m.def(
      "fuse_cams(Tensor[] cams, Tensor weights, SymInt height, SymInt width, str layer_norm,"
      " str reduce, str norm, float eps) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(wsfast, CPU, m) {
  m.impl("fuse_cams", TORCH_BOX(&wsfast::fusion::fuse_cams_cpu));
}
