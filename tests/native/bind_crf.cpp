// The crf kernels, launched as crf_cuda.cu launches them.
#include <optional>

#include "../../csrc/ops/crf/crf_launch.cuh"
#include "bind.h"

namespace wsfast::bind {
namespace {

namespace cr = wsfast::crf;

cr::Direction direction_of(const std::string& name) {
  return name == "symmetric" ? cr::Direction::symmetric
         : name == "forward" ? cr::Direction::forward
                             : cr::Direction::transpose;
}

// Planes (B, d, P), or images (B, C, H, W) with one sigma per axis.
template <class T>
cr::Points points_of(const Array<T>& planes, const std::vector<double>& sigmas) {
  cr::Points points{};
  const bool image = planes.ndim() == 4;
  points.images = planes.shape(0);
  points.planes = static_cast<int>(planes.shape(1));
  points.d = points.planes + (image ? 2 : 0);
  points.width = image ? planes.shape(3) : 0;
  points.points = planes.shape(2) * (image ? planes.shape(3) : 1);
  for (int i = 0; i < points.d; ++i) {
    points.coefficient[i] = cr::elevation_scale(points.d, i) * (1.0 / sigmas[i]);
  }
  return points;
}

template <class T, class A>
struct Lattices {
  cr::Points points;
  int64_t slots;
  DeviceArray<A> features;
  DeviceArray<int64_t> bounds;
  DeviceArray<cr::KeySpace> spaces;
  DeviceArray<int64_t> keys;
  DeviceArray<int32_t> numbers, vertices;
  DeviceArray<A> weights;
  DeviceArray<int64_t> offsets;
  std::optional<DeviceArray<int32_t>> neighbours;

  Lattices(const Array<T>& array, const std::vector<double>& sigmas)
      : points(points_of(array, sigmas)),
        slots(cr::table_slots(points)),
        features(array.size()),
        bounds(points.images * points.planes * 2),
        spaces(points.images),
        keys(points.images * slots),
        numbers(points.images * slots),
        vertices(points.images * points.points * points.corners()),
        weights(vertices.count()),
        offsets(points.images + 1) {
    DeviceArray<T> planes(array);
    const cr::Build<A> build{slots,          features.data(), bounds.data(),
                             spaces.data(),  keys.data(),     numbers.data(),
                             vertices.data(), weights.data(),  offsets.data()};
    cr::find_vertices(points, planes.data(), build, nullptr);
    neighbours.emplace(points.corners() * 2 * total());
    cr::find_neighbours(points, build, total(), neighbours->data(), nullptr);
  }

  int64_t total() { return offsets.data()[points.images]; }
  int64_t likely() { return cr::likely_vertices(total(), points.images); }
  cr::Kept<A> kept() {
    return {points.images,    points.points,  total(),             points.corners(),
            vertices.data(), weights.data(), neighbours->data(), offsets.data()};
  }
};

template <class T, class A>
py::tuple build_lattice(const Array<T>& planes, const std::vector<double>& sigmas) {
  Lattices<T, A> lattices(planes, sigmas);
  const cr::Points& points = lattices.points;
  return py::make_tuple(
      lattices.vertices.numpy({points.images, points.points, points.corners()}),
      lattices.weights.numpy({points.images, points.points, points.corners()}),
      lattices.neighbours->numpy({points.corners(), 2, lattices.total()}),
      lattices.offsets.numpy());
}

// The energies and, with_filtered, what is filtered of values (B, C, P) on the lattices of images.
template <class T, class V>
py::tuple dense_crf_energy(const Array<T>& images, const Array<V>& values,
                           const std::optional<Array<acc_t<V>>>& roi,
                           const std::vector<double>& sigmas, const std::string& direction,
                           bool with_filtered) {
  using A = acc_t<V>;
  Lattices<T, A> lattices(images, sigmas);
  const int64_t channels = values.shape(1);
  const int64_t rows = lattices.total() * cr::LatticeFilter<V>::group_of(channels);
  DeviceArray<V> in(values), filtered(with_filtered ? values.size() : 0);
  std::optional<DeviceArray<A>> mask;
  if (roi) mask.emplace(*roi);
  DeviceArray<int32_t> exponents(lattices.points.images * channels);
  DeviceArray<A> on_vertices(3 * rows);
  DeviceArray<A> energy(lattices.points.images * channels);
  cr::LatticeFilter<V>(lattices.kept(), channels, lattices.likely(), direction_of(direction))
      .launch(in.data(), mask ? mask->data() : nullptr,
              {exponents.data(), on_vertices.data()}, energy.data(),
              with_filtered ? filtered.data() : nullptr, nullptr);
  const std::vector<py::ssize_t> shape{lattices.points.images, channels, lattices.points.points};
  return py::make_tuple(
      energy.numpy({lattices.points.images, channels}),
      filtered.numpy(with_filtered ? shape : std::vector<py::ssize_t>{0}));
}

}  // namespace

void bind_crf(py::module_& m) {
  m.def("build_lattice", &build_lattice<float, float>);
  m.def("build_lattice", &build_lattice<double, double>);
  def_floating(m, "dense_crf_energy",
               []<class Tag>(Tag) { return &dense_crf_energy<float, typename Tag::type>; });
  m.def("dense_crf_energy", &dense_crf_energy<uint8_t, float>);
}

}  // namespace wsfast::bind
