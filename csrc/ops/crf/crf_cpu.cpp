// Schemas and CPU kernels of the crf room.
#include <algorithm>
#include <cmath>

#include "crf_args.h"
#include "crf_filter.h"
#include "crf_lattice.h"
#include "crf_math.h"

#define WS_SIMD_BODY "../ops/crf/crf_simd.h"
#include "../../core/foreach_simd.h"

namespace wsfast::crf {
namespace {

WS_DEFINE_DISPATCH_SIMD(Loops)

// ---- points -------------------------------------------------------------------------------------

template <class A>
void choose_reader(PointSource<A>& source, ScalarType dtype, const char* op) {
  source.bytes = dtype == ScalarType::Byte;
  if (source.bytes) {
    source.read = read_plane<uint8_t, A>;
    source.plane_bytes = source.points;
    return;
  }
  dispatch_floating(dtype, op, [&]<class T>() {
    source.read = read_plane<T, A>;
    source.plane_bytes = source.points * static_cast<int64_t>(sizeof(T));
  });
}

// Contiguous (B, d, P) features, or images (B, C, H, W) with `sigmas` per channel and of position.
template <class A>
class Points {
 public:
  Points(const char* op, const Tensor& planes, const std::vector<double>& sigma_rgb,
         double sigma_xy, bool image)
      : data_(static_cast<const char*>(planes.data_ptr())) {
    source_.planes = static_cast<int>(planes.size(1));
    source_.d = source_.planes + (image ? 2 : 0);
    source_.width = image ? planes.size(3) : 0;
    source_.points = planes.size(2) * (image ? planes.size(3) : 1);
    check_points(op, source_.points, source_.d);
    choose_reader(source_, planes.scalar_type(), op);
    for (int i = 0; i < source_.d; ++i) {
      const double sigma = !image ? 1.0 : i < 2 ? sigma_xy : sigma_rgb[i - 2];
      source_.coefficient[i] = elevation_scale(source_.d, i) * (1.0 / sigma);
    }
  }

  PointSource<A> of_image(int64_t n) const {
    PointSource<A> source = source_;
    source.data = data_ + n * source.planes * source.plane_bytes;
    return source;
  }
  int64_t points() const { return source_.points; }
  int d() const { return source_.d; }

 private:
  PointSource<A> source_{};
  const char* data_;
};

// The lattices of one thread: keys of 32 bits where they suffice.
template <class Loops, class A>
class Workspace {
 public:
  explicit Workspace(bool once) : narrow_(once), wide_(once) {}

  // body(lattice) after building it; false where the keys do not fit or a feature is not finite.
  template <class Body>
  bool with_lattice(const PointSource<A>& source, const Body& body) {
    const KeySpace keys = source.template keys<Loops>();
    if (keys.bits == 0) return false;
    if (sizeof(A) == 4 && keys.bits <= 31) {
      narrow_.build(source, keys);
      body(narrow_);
    } else {
      wide_.build(source, keys);
      body(wide_);
    }
    return true;
  }

 private:
  using Narrow = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;
  ImageLattice<Loops, A, Narrow> narrow_;
  ImageLattice<Loops, A, int64_t> wide_;
};

// ---- dense_crf_energy ---------------------------------------------------------------------------

template <class Loops, class T>
struct Energy {
  using A = acc_t<T>;
  const Points<A>& points;
  const T* values;
  const A* roi;  // or null
  int64_t images, channels;
  Direction direction;
  A* energy;
  T* filtered;  // or null

  void run() const {
    for_images(images, chunks_of(points.points()), [&](int64_t begin, int64_t end) {
      Workspace<Loops, A> workspace(end - begin == 1);
      for (int64_t n = begin; n < end; ++n) {
        const auto apply = [&](auto& lattice) { apply_groups(lattice, n); };
        if (!workspace.with_lattice(points.of_image(n), apply)) fill_nan(n);
      }
    });
  }

 private:
  // Eight channels at a time, four or two where no more are left.
  template <class Lattice>
  void apply_groups(Lattice& lattice, int64_t n) const {
    for (int64_t c = 0; c < channels;) {
      const int64_t left = channels - c;
      const int group = static_cast<int>(std::min<int64_t>(left, 8));
      if (left <= 2) {
        apply<2>(lattice, n, c, group);
      } else {
        left <= 4 ? apply<4>(lattice, n, c, group) : apply<8>(lattice, n, c, group);
      }
      c += group;
    }
  }

  template <int W, class Lattice>
  void apply(Lattice& lattice, int64_t n, int64_t c, int group) const {
    const int64_t plane = n * channels + c;
    double sums[W];
    lattice.template apply<W>(values + plane * points.points(), group,
                              roi == nullptr ? nullptr : roi + n * points.points(), direction, sums,
                              filtered == nullptr ? nullptr : filtered + plane * points.points());
    for (int i = 0; i < group; ++i) energy[plane + i] = static_cast<A>(sums[i]);
  }

  void fill_nan(int64_t n) const {
    std::fill(energy + n * channels, energy + (n + 1) * channels, A(NAN));
    if (filtered == nullptr) return;
    const int64_t size = channels * points.points();
    std::fill(filtered + n * size, filtered + (n + 1) * size, from_acc<T>(A(NAN)));
  }
};

std::tuple<Tensor, Tensor> dense_crf_energy_cpu(const Tensor& image, const Tensor& values,
                                                std::optional<Tensor> roi,
                                                std::vector<double> sigma_rgb, double sigma_xy,
                                                std::string direction, bool with_filtered) {
  const char* op = "dense_crf_energy";
  const EnergyArgs args = energy_args(op, image, values, roi, sigma_rgb, sigma_xy);
  auto [energy, filtered] = new_energies(values, with_filtered);
  if (args.images == 0) return {energy, filtered};
  const Direction way = direction_named(op, direction);
  dispatch_floating(values.scalar_type(), op, [&]<class T>() {
    using A = acc_t<T>;
    const Points<A> points(op, args.image, sigma_rgb, sigma_xy, true);
    const A* roi_data = args.roi ? read_ptr<A>(*args.roi) : nullptr;
    dispatch_simd([&]<class L>() {
      Energy<L, T>{points, read_ptr<T>(args.values), roi_data, args.images, args.channels, way,
                   write_ptr<A>(energy), with_filtered ? write_ptr<T>(filtered) : nullptr}
          .run();
    });
  });
  return {energy, filtered};
}

// ---- build_lattice ------------------------------------------------------------------------------

using LatticeTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;

template <class L, class A>
LatticeTensors build(const Points<A>& points, const Tensor& like, int64_t images, ScalarType dtype) {
  const int64_t corners = points.d() + 1, size = points.points() * corners;
  Tensor vertices = new_tensor(like, {images, points.points(), corners}, ScalarType::Int);
  Tensor weights = new_tensor(like, {images, points.points(), corners}, dtype);
  Tensor offsets = new_tensor(like, {images + 1}, ScalarType::Long);
  std::vector<std::vector<int32_t>> found(images);  // (corners, 2, M) of every image
  int64_t* const ends = write_ptr<int64_t>(offsets);
  ends[0] = 0;
  for_images(images, chunks_of(points.points()), [&](int64_t begin, int64_t end) {
    Workspace<L, A> workspace(end - begin == 1);
    for (int64_t n = begin; n < end; ++n) {
      int32_t* const vertex = write_ptr<int32_t>(vertices) + n * size;
      A* const weight = write_ptr<A>(weights) + n * size;
      ends[n + 1] = 0;
      const auto keep = [&](auto& lattice) {
        lattice.export_points(vertex, weight);
        ends[n + 1] = lattice.vertices();
        found[n].reserve(2 * corners * lattice.vertices());
        for (int64_t axis = 0; axis < corners; ++axis) {
          const NeighbourPair near = lattice.neighbours(axis);
          found[n].insert(found[n].end(), near.one, near.one + lattice.vertices());
          found[n].insert(found[n].end(), near.other, near.other + lattice.vertices());
        }
      };
      if (!workspace.with_lattice(points.of_image(n), keep)) {
        std::fill(vertex, vertex + size, 0);
        std::fill(weight, weight + size, A(0));
      }
    }
  });
  for (int64_t n = 0; n < images; ++n) ends[n + 1] += ends[n];
  Tensor neighbours = new_tensor(like, {corners, 2, ends[images]}, ScalarType::Int);
  for (int64_t n = 0; n < images; ++n) {
    const int64_t count = ends[n + 1] - ends[n];
    for (int64_t row = 0; row < 2 * corners; ++row) {
      std::copy(found[n].data() + row * count, found[n].data() + (row + 1) * count,
                write_ptr<int32_t>(neighbours) + row * ends[images] + ends[n]);
    }
  }
  return {vertices, weights, neighbours, offsets};
}

LatticeTensors build_lattices(const char* op, const Tensor& planes, const std::vector<double>& sigma_rgb,
                              double sigma_xy, bool image, bool in_double) {
  LatticeTensors result;
  const ScalarType dtype = in_double ? ScalarType::Double : ScalarType::Float;
  dispatch_simd([&]<class L>() {
    if (in_double) {
      const Points<double> points(op, planes, sigma_rgb, sigma_xy, image);
      result = build<L>(points, planes, planes.size(0), dtype);
    } else {
      const Points<float> points(op, planes, sigma_rgb, sigma_xy, image);
      result = build<L>(points, planes, planes.size(0), dtype);
    }
  });
  return result;
}

LatticeTensors build_lattice_cpu(const Tensor& features) {
  check_rank("build_lattice", "features", features, 3);
  return build_lattices("build_lattice", as_contiguous(features), {}, 1.0, false,
                        features.scalar_type() == ScalarType::Double);
}

LatticeTensors build_bilateral_lattice_cpu(const Tensor& image, std::vector<double> sigma_rgb,
                                           double sigma_xy, bool in_double) {
  check_sigmas("build_bilateral_lattice", image, sigma_rgb, sigma_xy);
  return build_lattices("build_bilateral_lattice", as_contiguous(image), sigma_rgb, sigma_xy, true,
                        in_double);
}

// ---- lattice_filter, lattice_energy -------------------------------------------------------------

// Into `energy` (images, channels) and `filtered`, like values; either may be null.
void filter(const LatticeArgs& args, Direction direction, Tensor* energy, Tensor* filtered) {
  const Tensor& values = args.values;
  dispatch_floating(values.scalar_type(), "lattice_filter", [&]<class T>() {
    using A = acc_t<T>;
    dispatch_simd([&]<class L>() {
      Filter<L, T>{read_ptr<T>(values), read_ptr<int32_t>(args.vertices), read_ptr<A>(args.weights),
                   read_ptr<int32_t>(args.neighbours), read_ptr<int64_t>(args.offsets),
                   values.size(0), values.size(1), values.size(2), args.neighbours.size(2),
                   static_cast<int>(args.vertices.size(2)), direction,
                   energy == nullptr ? nullptr : write_ptr<A>(*energy),
                   filtered == nullptr ? nullptr : write_ptr<T>(*filtered)}
          .run();
    });
  });
}

Tensor lattice_filter_cpu(const Tensor& values, const Tensor& vertices, const Tensor& weights,
                          const Tensor& neighbours, const Tensor& offsets, std::string direction) {
  const char* op = "lattice_filter";
  const LatticeArgs args = lattice_args(op, values, vertices, weights, neighbours, offsets);
  Tensor filtered = new_tensor(values, sizes_of(values), values.scalar_type());
  if (values.numel() > 0) filter(args, direction_named(op, direction), nullptr, &filtered);
  return filtered;
}

std::tuple<Tensor, Tensor> lattice_energy_cpu(const Tensor& values, const Tensor& vertices,
                                              const Tensor& weights, const Tensor& neighbours,
                                              const Tensor& offsets, std::string direction,
                                              bool with_filtered) {
  const char* op = "lattice_energy";
  const LatticeArgs args = lattice_args(op, values, vertices, weights, neighbours, offsets);
  auto [energy, filtered] = new_energies(values, with_filtered);
  if (values.numel() > 0) {
    filter(args, direction_named(op, direction), &energy, with_filtered ? &filtered : nullptr);
  }
  return {energy, filtered};
}

}  // namespace
}  // namespace wsfast::crf

STABLE_TORCH_LIBRARY_FRAGMENT(wsfast, m) {
  m.def(
      "dense_crf_energy(Tensor image, Tensor values, Tensor? roi, float[] sigma_rgb,"
      " float sigma_xy, str direction, bool with_filtered) -> (Tensor, Tensor)");
  m.def("build_lattice(Tensor features) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "build_bilateral_lattice(Tensor image, float[] sigma_rgb, float sigma_xy, bool in_double)"
      " -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "lattice_filter(Tensor values, Tensor vertices, Tensor weights, Tensor neighbours,"
      " Tensor offsets, str direction) -> Tensor");
  m.def(
      "lattice_energy(Tensor values, Tensor vertices, Tensor weights, Tensor neighbours,"
      " Tensor offsets, str direction, bool with_filtered) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(wsfast, CPU, m) {
  m.impl("dense_crf_energy", TORCH_BOX(&wsfast::crf::dense_crf_energy_cpu));
  m.impl("build_lattice", TORCH_BOX(&wsfast::crf::build_lattice_cpu));
  m.impl("build_bilateral_lattice", TORCH_BOX(&wsfast::crf::build_bilateral_lattice_cpu));
  m.impl("lattice_filter", TORCH_BOX(&wsfast::crf::lattice_filter_cpu));
  m.impl("lattice_energy", TORCH_BOX(&wsfast::crf::lattice_energy_cpu));
}
