// CUDA launcher of the crf room. How many vertices a batch has is read back once, when its lattices
// are built, to size what lies on them.
#include <algorithm>
#include <cstdint>
#include <limits>

#include "crf_args.h"
#include "crf_launch.cuh"

namespace wsfast::crf {
namespace {

Points points_of(const char* op, const Tensor& planes, const std::vector<double>& sigma_rgb,
                 double sigma_xy, bool image) {
  Points points{};
  points.images = planes.size(0);
  points.planes = static_cast<int>(planes.size(1));
  points.d = points.planes + (image ? 2 : 0);
  points.width = image ? planes.size(3) : 0;
  points.points = planes.size(2) * (image ? planes.size(3) : 1);
  check_points(op, points.points, points.d);
  for (int i = 0; i < points.d; ++i) {
    const double sigma = !image ? 1.0 : i < 2 ? sigma_xy : sigma_rgb[i - 2];
    points.coefficient[i] = elevation_scale(points.d, i) * (1.0 / sigma);
  }
  WS_CHECK(points.images * std::max(1, points.planes) * 64 <= INT32_MAX &&
               table_slots(points) <= INT32_MAX,
           "wsfast::", op, ": too many points, got ", points.images, " images of ", points.points);
  return points;
}

template <class A>
constexpr ScalarType dtype_of() {
  return sizeof(A) == 4 ? ScalarType::Float : ScalarType::Double;
}

// The lattices of a batch, finished.
template <class A>
struct Lattices {
  Tensor vertices, weights, neighbours, offsets;
  int64_t images, points, total, grid_vertices;
  int corners;

  Kept<A> kept() const {
    return {images,
            points,
            total,
            corners,
            read_ptr<int32_t>(vertices),
            read_ptr<A>(weights),
            read_ptr<int32_t>(neighbours),
            read_ptr<int64_t>(offsets)};
  }
};

// Counts of a batch from its offsets, read back.
struct Counts {
  int64_t total = 0, most = 0;

  explicit Counts(const Tensor& offsets) {
    const std::vector<int64_t> ends = to_host<int64_t>(offsets);
    total = ends.back();
    for (size_t n = 1; n < ends.size(); ++n) most = std::max(most, ends[n] - ends[n - 1]);
  }
};

template <class T, class A>
Lattices<A> build(const Points& points, const Tensor& planes) {
  const int64_t n = points.images, corners = points.corners();
  const int64_t slots = table_slots(points);
  Tensor vertices = new_tensor(planes, {n, points.points, corners}, ScalarType::Int);
  Tensor weights = new_tensor(planes, {n, points.points, corners}, dtype_of<A>());
  Tensor offsets = new_tensor(planes, {n + 1}, ScalarType::Long);
  Tensor features = new_tensor(planes, {n * points.planes * points.points}, dtype_of<A>());
  const Tensor bounds = new_tensor(planes, {n * points.planes * 2}, ScalarType::Long);
  const Tensor spaces =
      new_tensor(planes, {n * static_cast<int64_t>(sizeof(KeySpace))}, ScalarType::Byte);
  const Tensor keys = new_tensor(planes, {n * slots}, ScalarType::Long);
  const Tensor numbers = new_tensor(planes, {n * slots}, ScalarType::Int);
  const Build<A> work{slots,
                      write_ptr<A>(features),
                      write_ptr<int64_t>(bounds),
                      write_ptr<KeySpace>(spaces),
                      write_ptr<int64_t>(keys),
                      write_ptr<int32_t>(numbers),
                      write_ptr<int32_t>(vertices),
                      write_ptr<A>(weights),
                      write_ptr<int64_t>(offsets)};
  const cudaStream_t stream = current_stream(planes);
  find_vertices(points, read_ptr<T>(planes), work, stream);
  check_launch();
  const Counts counts(offsets);
  features = Tensor();  // their memory may serve the neighbours
  Tensor neighbours = new_tensor(planes, {corners, 2, counts.total}, ScalarType::Int);
  if (counts.total > 0) {
    find_neighbours(points, work, counts.total, write_ptr<int32_t>(neighbours), stream);
    check_launch();
  }
  return {vertices, weights,      neighbours,   offsets,
          n,        points.points, counts.total, counts.most, points.corners()};
}

template <class A>
Lattices<A> build_any(const char* op, const Points& points, const Tensor& planes) {
  Lattices<A> lattices;
  if (planes.scalar_type() == ScalarType::Byte) return build<uint8_t, A>(points, planes);
  dispatch_floating(planes.scalar_type(), op,
                    [&]<class T>() { lattices = build<T, A>(points, planes); });
  return lattices;
}

template <class T>
void filter(const Lattices<acc_t<T>>& lattices, const Tensor& values, const Tensor* roi,
            int64_t channels, Direction direction, const Tensor* energy, const Tensor* filtered) {
  using A = acc_t<T>;
  WS_CHECK(lattices.images * channels <= INT32_MAX / parts_of(lattices.points),
           "wsfast: too many planes to filter, got ", lattices.images, " x ", channels);
  const int64_t rows = lattices.total * LatticeFilter<T>::group_of(channels);
  const Tensor exponents = new_tensor(values, {lattices.images * channels}, ScalarType::Int);
  const Tensor on_vertices = new_tensor(values, {3 * rows}, dtype_of<A>());
  LatticeFilter<T>(lattices.kept(), channels, lattices.grid_vertices, direction)
      .launch(read_ptr<T>(values), roi == nullptr ? nullptr : read_ptr<A>(*roi),
              {write_ptr<int32_t>(exponents), write_ptr<A>(on_vertices)},
              energy == nullptr ? nullptr : write_ptr<A>(*energy),
              filtered == nullptr ? nullptr : write_ptr<T>(*filtered), current_stream(values));
  check_launch();
}

std::tuple<Tensor, Tensor> dense_crf_energy_cuda(const Tensor& image, const Tensor& values,
                                                 std::optional<Tensor> roi,
                                                 std::vector<double> sigma_rgb, double sigma_xy,
                                                 std::string direction, bool with_filtered) {
  const char* op = "dense_crf_energy";
  const EnergyArgs args = energy_args(op, image, values, roi, sigma_rgb, sigma_xy);
  const DeviceGuard guard(values.get_device_index());
  auto [energy, filtered] = new_energies(values, with_filtered);
  if (args.images == 0 || args.channels == 0) return {energy, filtered};
  const Points points = points_of(op, args.image, sigma_rgb, sigma_xy, true);
  const Direction way = direction_named(op, direction);
  dispatch_floating(values.scalar_type(), op, [&]<class T>() {
    const auto lattices = build_any<acc_t<T>>(op, points, args.image);
    filter<T>(lattices, args.values, args.roi ? &*args.roi : nullptr, args.channels, way, &energy,
              with_filtered ? &filtered : nullptr);
  });
  return {energy, filtered};
}

using LatticeTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;

template <class A>
LatticeTensors build_tensors(const char* op, const Points& points, const Tensor& planes) {
  if (points.images == 0) {
    const int64_t corners = points.corners();
    const Tensor offsets = new_tensor(planes, {1}, ScalarType::Long);
    WS_LAUNCH(clear_kernel, dim3(1), dim3(kThreads), 0, current_stream(planes), 1,
              write_ptr<int64_t>(offsets));
    check_launch();
    return {new_tensor(planes, {0, points.points, corners}, ScalarType::Int),
            new_tensor(planes, {0, points.points, corners}, dtype_of<A>()),
            new_tensor(planes, {corners, 2, 0}, ScalarType::Int), offsets};
  }
  const Lattices<A> found = build_any<A>(op, points, planes);
  return {found.vertices, found.weights, found.neighbours, found.offsets};
}

LatticeTensors build_lattice_cuda(const Tensor& features) {
  const char* op = "build_lattice";
  check_rank(op, "features", features, 3);
  const DeviceGuard guard(features.get_device_index());
  const Tensor planes = as_contiguous(features);
  const Points points = points_of(op, planes, {}, 1.0, false);
  return features.scalar_type() == ScalarType::Double ? build_tensors<double>(op, points, planes)
                                                      : build_tensors<float>(op, points, planes);
}

LatticeTensors build_bilateral_lattice_cuda(const Tensor& image, std::vector<double> sigma_rgb,
                                            double sigma_xy, bool in_double) {
  const char* op = "build_bilateral_lattice";
  check_sigmas(op, image, sigma_rgb, sigma_xy);
  const DeviceGuard guard(image.get_device_index());
  const Tensor planes = as_contiguous(image);
  const Points points = points_of(op, planes, sigma_rgb, sigma_xy, true);
  return in_double ? build_tensors<double>(op, points, planes)
                   : build_tensors<float>(op, points, planes);
}

void filter_kept(const LatticeArgs& args, Direction direction, const Tensor* energy,
                 const Tensor* filtered) {
  const Tensor& values = args.values;
  const int64_t images = values.size(0), total = args.neighbours.size(2);
  dispatch_floating(values.scalar_type(), "lattice_filter", [&]<class T>() {
    const Lattices<acc_t<T>> lattices{args.vertices,
                                      args.weights,
                                      args.neighbours,
                                      args.offsets,
                                      images,
                                      values.size(2),
                                      total,
                                      likely_vertices(total, images),
                                      static_cast<int>(args.vertices.size(2))};
    filter<T>(lattices, values, nullptr, values.size(1), direction, energy, filtered);
  });
}

Tensor lattice_filter_cuda(const Tensor& values, const Tensor& vertices, const Tensor& weights,
                           const Tensor& neighbours, const Tensor& offsets, std::string direction) {
  const char* op = "lattice_filter";
  const LatticeArgs args = lattice_args(op, values, vertices, weights, neighbours, offsets);
  const DeviceGuard guard(values.get_device_index());
  const Tensor filtered = new_tensor(values, sizes_of(values), values.scalar_type());
  if (values.numel() > 0) filter_kept(args, direction_named(op, direction), nullptr, &filtered);
  return filtered;
}

std::tuple<Tensor, Tensor> lattice_energy_cuda(const Tensor& values, const Tensor& vertices,
                                               const Tensor& weights, const Tensor& neighbours,
                                               const Tensor& offsets, std::string direction,
                                               bool with_filtered) {
  const char* op = "lattice_energy";
  const LatticeArgs args = lattice_args(op, values, vertices, weights, neighbours, offsets);
  const DeviceGuard guard(values.get_device_index());
  const auto [energy, filtered] = new_energies(values, with_filtered);
  if (values.numel() > 0) {
    filter_kept(args, direction_named(op, direction), &energy, with_filtered ? &filtered : nullptr);
  }
  return {energy, filtered};
}

}  // namespace
}  // namespace wsfast::crf

STABLE_TORCH_LIBRARY_IMPL(wsfast, CUDA, m) {
  m.impl("dense_crf_energy", TORCH_BOX(&wsfast::crf::dense_crf_energy_cuda));
  m.impl("build_lattice", TORCH_BOX(&wsfast::crf::build_lattice_cuda));
  m.impl("build_bilateral_lattice", TORCH_BOX(&wsfast::crf::build_bilateral_lattice_cuda));
  m.impl("lattice_filter", TORCH_BOX(&wsfast::crf::lattice_filter_cuda));
  m.impl("lattice_energy", TORCH_BOX(&wsfast::crf::lattice_energy_cuda));
}
