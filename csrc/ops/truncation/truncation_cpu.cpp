// Schemas and CPU kernels of the truncation room.
#include <numeric>

#include "../../core/memory.h"
#include "../../core/torch_api.h"
#include "truncation_args.h"
#include "truncation_rows.h"

#define WS_SIMD_BODY "../ops/truncation/truncation_simd.h"
#include "../../core/foreach_simd.h"

namespace wsfast::truncation {
namespace {

constexpr int64_t kPixelBlock = 4096;             // a CAM block of this many sums stays in L1
constexpr int64_t kStreamBytes = int64_t{16} << 20;  // larger outputs bypass the caches
constexpr int64_t kGroupBytes = int64_t{8} << 20;    // samples whose gradients share the cache

// Few long rows are split across threads, many rows are shared out whole.
bool split_rows(int64_t rows, int64_t n) { return n >= 2 * kChunk && rows < 8 * thread_count(); }

// Calls rows(begin, end, workspace, parallel_inside) for runs of the rows [first, last) of length n.
template <class A, class Rows>
void for_row_runs(int64_t first, int64_t last, int64_t n, const Rows& rows) {
  const bool split = split_rows(last - first, n);
  const auto run = [&](int64_t begin, int64_t end) {
    auto work = workspace_for<A>(n);
    rows(begin, end, work, split);
  };
  if (split) {
    run(first, last);
  } else {
    parallel_for(first, last, std::max<int64_t>(1, 8192 / std::max<int64_t>(n, 1)), run);
  }
}

// Calls row(index, workspace, parallel_inside) for each of them.
template <class A, class Row>
void for_rows(int64_t first, int64_t last, int64_t n, const Row& row) {
  for_row_runs<A>(first, last, n, [&](int64_t begin, int64_t end, Workspace<A>& work, bool split) {
    for (int64_t r = begin; r < end; ++r) row(r, work, split);
  });
}

struct Shape {
  int64_t samples, channels, pixels;
  bool per_sample;

  int64_t rows() const { return per_sample ? samples : samples * channels; }
  int64_t row_length() const { return per_sample ? channels * pixels : pixels; }
};

Shape shape_of(const char* op, const Tensor& grads, double percentile, bool per_sample) {
  check_rank(op, "grads", grads, 4);
  check_percentile(op, percentile);
  return {grads.size(0), grads.size(1), grads.size(2) * grads.size(3), per_sample};
}

Tensor new_row_tensor(const Tensor& like, const Shape& shape, ScalarType dtype) {
  if (shape.per_sample) return new_tensor(like, {shape.samples}, dtype);
  return new_tensor(like, {shape.samples, shape.channels}, dtype);
}

template <class Passes, class T>
void percentile_rows(const T* grads, const Shape& shape, double percentile, T* out) {
  const int64_t n = shape.row_length();
  for_rows<acc_t<T>>(0, shape.rows(), n, [&](int64_t r, Workspace<acc_t<T>>& work, bool split) {
    out[r] = row_percentile<Passes>(grads + r * n, n, percentile, work, split);
  });
}

template <class T>
struct TruncateArgs {
  const T* grads;
  int64_t n;
  double percentile;
  T *out, *thresholds;
  bool stream;
};

// Rows that do not fit a cache, each by chunks, on all threads when `parallel`.
template <class Passes, class T, class A = acc_t<T>>
void truncate_long_rows(const TruncateArgs<T>& in, int64_t begin, int64_t end, Workspace<A>& work,
                        bool parallel) {
  for (int64_t r = begin; r < end; ++r) {
    const T* row = in.grads + r * in.n;
    const A threshold = row_threshold<Passes>(row, in.n, in.percentile, work, parallel);
    in.thresholds[r] = from_acc<T>(threshold);
    for_chunks(in.n, parallel, [&](int64_t, int64_t first, int64_t last) {
      Passes::keep_at_least(row + first, last - first, threshold, in.out + r * in.n + first,
                            in.stream);
      if (in.stream) Passes::end_stream();
    });
  }
}

// Rows one after the other on one thread; while one is written, the next is counted and the sample
// of the one after it fetched.
template <class Passes, class T, class A = acc_t<T>>
void truncate_rows(const TruncateArgs<T>& in, int64_t begin, int64_t end, Workspace<A>& work) {
  const int64_t n = in.n, stride = sample_plan(n).stride;
  const T* row = in.grads + begin * n;
  Bracket<A> bracket = first_bracket<Passes>(row, n, in.percentile, work);
  Collected c = collect_row<Passes>(row, n, bracket, work, false);
  for (int64_t r = begin; r < end; ++r, row += n) {
    const A threshold = threshold_from<Passes>(bracket, c, row, n, in.percentile, work, false);
    in.thresholds[r] = from_acc<T>(threshold);
    if (r + 1 == end) return Passes::keep_at_least(row, n, threshold, in.out + r * n, in.stream);
    bracket = first_bracket<Passes>(row + n, n, in.percentile, work);
    c = Passes::keep_and_collect(row, n, threshold, in.out + r * n, in.stream, row + n,
                                 stride, bracket.lower, bracket.upper, work.inside.data(),
                                 work.capacity);
  }
}

template <class Passes, class T>
void truncate_all(const T* grads, const Shape& shape, double percentile, T* out, T* thresholds) {
  const int64_t n = shape.row_length();
  const int64_t bytes = shape.rows() * n * static_cast<int64_t>(sizeof(T));
  const TruncateArgs<T> in{grads, n, percentile, out, thresholds, bytes >= kStreamBytes};
  if (in.stream) prefer_huge_pages(out, bytes);
  for_row_runs<acc_t<T>>(0, shape.rows(), n, [&](int64_t begin, int64_t end,
                                                 Workspace<acc_t<T>>& work, bool split) {
    if (n > kChunk) {
      truncate_long_rows<Passes>(in, begin, end, work, split);
    } else if (begin < end) {
      truncate_rows<Passes>(in, begin, end, work);
      if (in.stream) Passes::end_stream();
    }
  });
}

// One CAM: samples [first, last), block by block of pixels, channels in order.
template <class T, class Out, class AddChannel>
void sum_channels(const Shape& shape, int64_t first, int64_t last, Out* out,
                  const AddChannel& add_channel) {
  using A = acc_t<T>;
  const int64_t blocks = (shape.pixels + kPixelBlock - 1) / kPixelBlock;
  parallel_for(first * blocks, last * blocks, 1, [&](int64_t begin, int64_t end) {
    A sum[kPixelBlock];
    for (int64_t task = begin; task < end; ++task) {
      const int64_t sample = task / blocks, start = task % blocks * kPixelBlock;
      const int64_t count = std::min(kPixelBlock, shape.pixels - start);
      std::fill(sum, sum + count, A(0));
      for (int64_t c = 0; c < shape.channels; ++c) {
        const int64_t map = sample * shape.channels + c;
        add_channel(map, map * shape.pixels + start, count, sum);
      }
      Out* to = out + sample * shape.pixels + start;
      for (int64_t i = 0; i < count; ++i) to[i] = from_acc<Out>(sum[i] < A(0) ? A(0) : sum[i]);
    }
  });
}

// Calls group(first, last) over runs of samples whose gradients stay in the last-level cache
// between the selection and the sum.
template <class T, class Group>
void for_sample_groups(const Shape& shape, const Group& group) {
  const int64_t bytes = shape.channels * shape.pixels * static_cast<int64_t>(sizeof(T));
  const int64_t step = std::max<int64_t>(1, kGroupBytes / std::max<int64_t>(bytes, 1));
  for (int64_t first = 0; first < shape.samples; first += step) {
    group(first, std::min(shape.samples, first + step));
  }
}

template <class Passes, class T>
void find_thresholds(const T* grads, const Shape& shape, double percentile, int64_t first,
                     int64_t last, T* thresholds) {
  const int64_t n = shape.row_length();
  for_rows<acc_t<T>>(first, last, n, [&](int64_t r, Workspace<acc_t<T>>& work, bool split) {
    thresholds[r] =
        from_acc<T>(row_threshold<Passes>(grads + r * n, n, percentile, work, split));
  });
}

// w_k = (1/Z) sum of the kept gradients (LTGrad-CAM eq. 9)
template <class Passes, class T>
acc_t<T> map_weight(const T* row, const Shape& shape, T threshold, bool parallel) {
  std::vector<double> sums((shape.pixels + kChunk - 1) / kChunk);
  for_chunks(shape.pixels, parallel, [&](int64_t k, int64_t begin, int64_t end) {
    sums[k] = Passes::sum_at_least(row + begin, end - begin, to_acc(threshold));
  });
  const double sum = std::accumulate(sums.begin(), sums.end(), 0.0);
  return static_cast<acc_t<T>>(sum / static_cast<double>(shape.pixels));
}

template <class T>
struct CamArgs {
  const T* activations;
  const T* grads;
  Shape shape;
  double percentile;
  T* thresholds;
};

template <class Passes, class T, class Out>
void gradcam_maps(const CamArgs<T>& in, acc_t<T>* weights, Out* out) {
  const Shape& s = in.shape;
  for_sample_groups<T>(s, [&](int64_t first, int64_t last) {
    if (s.per_sample) {
      find_thresholds<Passes>(in.grads, s, in.percentile, first, last, in.thresholds);
    }
    for_rows<acc_t<T>>(first * s.channels, last * s.channels, s.pixels,
                       [&](int64_t map, Workspace<acc_t<T>>& work, bool split) {
      const T* row = in.grads + map * s.pixels;
      if (!s.per_sample) {
        in.thresholds[map] = from_acc<T>(
            row_threshold<Passes>(row, s.pixels, in.percentile, work, split));
      }
      const T threshold = in.thresholds[s.per_sample ? map / s.channels : map];
      weights[map] = map_weight<Passes>(row, s, threshold, split);
    });
    sum_channels<T>(s, first, last, out, [&](int64_t map, int64_t at, int64_t n, acc_t<T>* sum) {
      if (weights[map] != acc_t<T>(0)) {
        Passes::add_scaled(in.activations + at, n, weights[map], sum);
      }
    });
  });
}

template <class Passes, class T, class Out>
void layercam_maps(const CamArgs<T>& in, Out* out) {
  const Shape& s = in.shape;
  const int64_t rows_per_sample = s.per_sample ? 1 : s.channels;
  for_sample_groups<T>(s, [&](int64_t first, int64_t last) {
    find_thresholds<Passes>(in.grads, s, in.percentile, first * rows_per_sample,
                            last * rows_per_sample, in.thresholds);
    sum_channels<T>(s, first, last, out, [&](int64_t map, int64_t at, int64_t n, acc_t<T>* sum) {
      const T threshold = in.thresholds[s.per_sample ? map / s.channels : map];
      Passes::add_kept_product(in.activations + at, in.grads + at, n, to_acc(threshold), sum);
    });
  });
}

WS_DEFINE_DISPATCH_SIMD(Passes)

Tensor positive_percentile_cpu(const Tensor& grads, double percentile, bool per_sample) {
  const Shape shape = shape_of("positive_percentile", grads, percentile, per_sample);
  const Tensor g = as_contiguous(grads);
  Tensor out = new_row_tensor(g, shape, g.scalar_type());
  dispatch_floating(g.scalar_type(), "positive_percentile", [&]<class T>() {
    dispatch_simd([&]<class Passes>() {
      percentile_rows<Passes>(read_ptr<T>(g), shape, percentile, write_ptr<T>(out));
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> truncate_gradients_cpu(const Tensor& grads, double percentile,
                                                  bool per_sample) {
  const Shape shape = shape_of("truncate_gradients", grads, percentile, per_sample);
  const Tensor g = as_contiguous(grads);
  Tensor out = new_tensor(g, sizes_of(g), g.scalar_type());
  Tensor thresholds = new_row_tensor(g, shape, g.scalar_type());
  dispatch_floating(g.scalar_type(), "truncate_gradients", [&]<class T>() {
    dispatch_simd([&]<class Passes>() {
      truncate_all<Passes>(read_ptr<T>(g), shape, percentile, write_ptr<T>(out),
                           write_ptr<T>(thresholds));
    });
  });
  return {out, thresholds};
}

// Runs maps.operator()<Passes, T, Out>(args, out) for the dtypes of a CAM op.
template <class Maps>
std::tuple<Tensor, Tensor> run_cam(const char* op, const Tensor& activations, const Tensor& grads,
                                   double percentile, bool per_sample, bool accumulate_output,
                                   const Maps& maps) {
  const Shape shape = shape_of(op, grads, percentile, per_sample);
  check_same_kind(op, activations, grads);
  WS_CHECK(sizes_of(activations) == sizes_of(grads), "wsfast::", op,
           ": activations and grads must have one shape");
  const Tensor a = as_contiguous(activations), g = as_contiguous(grads);
  const ScalarType dtype = g.scalar_type();
  const ScalarType out_dtype = accumulate_output ? accumulate_dtype(dtype) : dtype;
  Tensor out = new_tensor(g, {shape.samples, grads.size(2), grads.size(3)}, out_dtype);
  Tensor thresholds = new_row_tensor(g, shape, dtype);
  dispatch_floating(dtype, op, [&]<class T>() {
    const CamArgs<T> args{read_ptr<T>(a), read_ptr<T>(g), shape, percentile,
                          write_ptr<T>(thresholds)};
    dispatch_simd([&]<class Passes>() {
      if (accumulate_output) {
        maps.template operator()<Passes>(args, write_ptr<acc_t<T>>(out));
      } else {
        maps.template operator()<Passes>(args, write_ptr<T>(out));
      }
    });
  });
  return {out, thresholds};
}

std::tuple<Tensor, Tensor, Tensor> truncated_gradcam_cpu(const Tensor& activations,
                                                         const Tensor& grads, double percentile,
                                                         bool per_sample, bool accumulate_output) {
  check_rank("truncated_gradcam", "grads", grads, 4);
  Tensor weights = new_tensor(grads, {grads.size(0), grads.size(1)},
                              accumulate_dtype(grads.scalar_type()));
  auto [out, thresholds] = run_cam(
      "truncated_gradcam", activations, grads, percentile, per_sample, accumulate_output,
      [&]<class Passes, class T, class Out>(const CamArgs<T>& args, Out* cams) {
        gradcam_maps<Passes>(args, write_ptr<acc_t<T>>(weights), cams);
      });
  return {out, weights, thresholds};
}

std::tuple<Tensor, Tensor> truncated_layercam_cpu(const Tensor& activations, const Tensor& grads,
                                                  double percentile, bool per_sample,
                                                  bool accumulate_output) {
  return run_cam("truncated_layercam", activations, grads, percentile, per_sample,
                 accumulate_output,
                 []<class Passes, class T, class Out>(const CamArgs<T>& args, Out* cams) {
                   layercam_maps<Passes>(args, cams);
                 });
}

}  // namespace
}  // namespace wsfast::truncation

STABLE_TORCH_LIBRARY_FRAGMENT(wsfast, m) {
  m.def("positive_percentile(Tensor grads, float percentile, bool per_sample) -> Tensor");
  m.def(
      "truncate_gradients(Tensor grads, float percentile, bool per_sample)"
      " -> (Tensor, Tensor)");
  m.def(
      "truncated_gradcam(Tensor activations, Tensor grads, float percentile, bool per_sample,"
      " bool accumulate_output) -> (Tensor, Tensor, Tensor)");
  m.def(
      "truncated_layercam(Tensor activations, Tensor grads, float percentile, bool per_sample,"
      " bool accumulate_output) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(wsfast, CPU, m) {
  m.impl("positive_percentile", TORCH_BOX(&wsfast::truncation::positive_percentile_cpu));
  m.impl("truncate_gradients", TORCH_BOX(&wsfast::truncation::truncate_gradients_cpu));
  m.impl("truncated_gradcam", TORCH_BOX(&wsfast::truncation::truncated_gradcam_cpu));
  m.impl("truncated_layercam", TORCH_BOX(&wsfast::truncation::truncated_layercam_cpu));
}
