// The toy kernels and the conversions of the half types, for test_emulator.py.
#include "bind.h"
#include "toy_kernels.cuh"

namespace wsfast::bind {
namespace {

template <class T>
py::tuple summary(const Array<T>& x, unsigned threads) {
  DeviceArray<T> in(x);
  const unsigned blocks = ceil_div(static_cast<unsigned>(in.count()), threads);
  DeviceArray<T> sums(blocks), minima(blocks), maxima(blocks);
  WS_LAUNCH(toy::summary_kernel<T>, dim3(blocks), dim3(threads), 0, nullptr, in.data(),
            static_cast<int64_t>(in.count()), sums.data(), minima.data(), maxima.data());
  return py::make_tuple(sums.numpy(), minima.numpy(), maxima.numpy());
}

Array<int> shuffles(const Array<int>& x, unsigned rows, int lane, unsigned delta) {
  DeviceArray<int> in(x), out(toy::kShuffleRows * in.count());
  const dim3 block(static_cast<unsigned>(in.count()) / rows, rows);
  WS_LAUNCH(toy::shuffle_kernel, dim3(1), block, 0, nullptr, in.data(), lane, delta, out.data());
  return out.numpy({toy::kShuffleRows, x.size()});
}

template <class T>
Array<T> transpose(const Array<T>& x, unsigned side) {
  const auto rows = static_cast<int>(x.shape(0)), columns = static_cast<int>(x.shape(1));
  DeviceArray<T> in(x), out(in.count());
  const dim3 grid(ceil_div(static_cast<unsigned>(columns), side),
                  ceil_div(static_cast<unsigned>(rows), side));
  WS_LAUNCH(toy::transpose_kernel<T>, grid, dim3(side, side), side * side * sizeof(T), nullptr,
            in.data(), rows, columns, out.data());
  return out.numpy({columns, rows});
}

template <class T>
py::tuple atomics(int64_t first, unsigned blocks, unsigned threads) {
  DeviceArray<T> cells(5);
  cells.zero();
  T* cell = cells.data();
  WS_LAUNCH(toy::atomics_kernel<T>, dim3(blocks), dim3(threads), 0, nullptr, first, cell, cell + 1,
            cell + 2, cell + 3, cell + 4);
  return py::make_tuple(cell[0], cell[1], cell[2], cell[3], cell[4]);
}

template <class T>
T float_sum(const Array<T>& x, unsigned blocks, unsigned threads) {
  DeviceArray<T> in(x), sum(1);
  sum.zero();
  WS_LAUNCH(toy::float_sum_kernel<T>, dim3(blocks), dim3(threads), 0, nullptr, in.data(),
            static_cast<int64_t>(in.count()), sum.data());
  return *sum.data();
}

int64_t locked_sum(unsigned threads) {
  DeviceArray<int> lock(1);
  DeviceArray<int64_t> total(1);
  lock.zero();
  total.zero();
  WS_LAUNCH(toy::lock_kernel, dim3(1), dim3(threads), 0, nullptr, lock.data(), total.data());
  return *total.data();
}

void read_past_end(const Array<float>& x, unsigned threads) {
  DeviceArray<float> in(x), out(threads);
  WS_LAUNCH(toy::read_past_end_kernel, dim3(1), dim3(threads), 0, nullptr, in.data(), x.size(),
            out.data());
}

void shared_past_end() {
  DeviceArray<float> out(32);
  WS_LAUNCH(toy::shared_past_end_kernel, dim3(1), dim3(32), 32 * sizeof(float), nullptr,
            out.data());
}

void static_past_end() {
  DeviceArray<float> out(32);
  WS_LAUNCH(toy::static_past_end_kernel, dim3(1), dim3(32), 0, nullptr, 32, out.data());
}

Array<float> unwritten_shared() {
  DeviceArray<float> out(32);
  WS_LAUNCH(toy::unwritten_shared_kernel, dim3(1), dim3(32), 32 * sizeof(float), nullptr,
            out.data());
  return out.numpy();
}

Array<int> divergent(int how, unsigned threads) {
  DeviceArray<int> out(threads);
  WS_LAUNCH(toy::divergent_kernel, dim3(1), dim3(threads), 0, nullptr,
            static_cast<toy::Divergence>(how), out.data());
  return out.numpy();
}

int64_t overflow(int rows, int columns) {
  DeviceArray<int64_t> out(1);
  WS_LAUNCH(toy::overflow_kernel, dim3(1), dim3(1), 0, nullptr, rows, columns, out.data());
  return *out.data();
}

Array<int> race(const Array<int>& x) {
  DeviceArray<int> in(x), out(in.count());
  WS_LAUNCH(toy::race_kernel, dim3(1), dim3(static_cast<unsigned>(in.count())), 0, nullptr,
            in.data(), out.data());
  return out.numpy();
}

int block_race(unsigned blocks) {
  DeviceArray<int> last(1);
  WS_LAUNCH(toy::block_race_kernel, dim3(blocks), dim3(1), 0, nullptr, last.data());
  return *last.data();
}

void launch_empty(unsigned blocks, unsigned threads, size_t shared_bytes) {
  DeviceArray<int> last(1);
  WS_LAUNCH(toy::block_race_kernel, dim3(blocks), dim3(threads), shared_bytes, nullptr,
            last.data());
}

template <class T>
Array<float> widen(const Array<T>& x) {
  DeviceArray<T> in(x);
  DeviceArray<float> out(in.count());
  for (size_t i = 0; i < in.count(); ++i) out.data()[i] = to_acc(in.data()[i]);
  return out.numpy();
}

template <class T>
Array<T> narrow(const Array<float>& x) {
  DeviceArray<float> in(x);
  DeviceArray<T> out(in.count());
  for (size_t i = 0; i < in.count(); ++i) out.data()[i] = from_acc<T>(in.data()[i]);
  return out.numpy();
}

}  // namespace

void bind_toy(py::module_& m) {
  m.def("toy_summary", &summary<float>);
  m.def("toy_summary", &summary<double>);
  m.def("toy_summary", &summary<int64_t>);
  m.def("toy_shuffles", &shuffles);
  def_floating(m, "toy_transpose", []<class Tag>(Tag) { return &transpose<typename Tag::type>; });
  m.def("toy_atomics_int32", &atomics<int32_t>);
  m.def("toy_atomics_uint32", &atomics<uint32_t>);
  m.def("toy_atomics_int64", &atomics<int64_t>);
  m.def("toy_atomics_uint64", &atomics<uint64_t>);
  m.def("toy_float_sum", &float_sum<float>);
  m.def("toy_float_sum", &float_sum<double>);
  m.def("toy_locked_sum", &locked_sum);
  m.def("toy_read_past_end", &read_past_end);
  m.def("toy_shared_past_end", &shared_past_end);
  m.def("toy_static_past_end", &static_past_end);
  m.def("toy_unwritten_shared", &unwritten_shared);
  m.def("toy_divergent", &divergent);
  m.def("toy_overflow", &overflow);
  m.def("toy_race", &race);
  m.def("toy_block_race", &block_race);
  m.def("toy_launch", &launch_empty);
  m.def("toy_widen_half", &widen<half_t>);
  m.def("toy_widen_bfloat16", &widen<bfloat16_t>);
  m.def("toy_narrow_half", &narrow<half_t>);
  m.def("toy_narrow_bfloat16", &narrow<bfloat16_t>);
}

}  // namespace wsfast::bind
