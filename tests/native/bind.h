// Helpers of the bind_<room>.cpp files: NumPy arrays in, emulated device memory, NumPy arrays out.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "../../csrc/core/device.h"

namespace wsfast::bind {

namespace py = pybind11;

// The half types travel as uint16 arrays of their bits.
template <class T>
using wire_t =
    std::conditional_t<std::is_same_v<T, half_t> || std::is_same_v<T, bfloat16_t>, uint16_t, T>;

// A contiguous array of exactly this element type: pybind11 converts nothing, so that bits of a half
// type are never taken for numbers.
template <class T>
class Array : public py::array_t<wire_t<T>, py::array::c_style> {
 public:
  using py::array_t<wire_t<T>, py::array::c_style>::array_t;
};

// Memory of exactly `count` elements on the heap, so that ASan sees any access outside. New memory
// holds garbage (NaN, -1): what a kernel forgets to write shows.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count) : count_(count), memory_(new T[count]) {
    std::memset(static_cast<void*>(memory_.get()), emulator::kGarbage, count * sizeof(T));
  }
  explicit DeviceArray(const Array<T>& array) : DeviceArray(static_cast<size_t>(array.size())) {
    if (count_ > 0) std::memcpy(static_cast<void*>(data()), array.data(), count_ * sizeof(T));
  }

  T* data() { return memory_.get(); }
  size_t count() const { return count_; }
  void zero() { std::memset(static_cast<void*>(data()), 0, count_ * sizeof(T)); }

  Array<T> numpy(const std::vector<py::ssize_t>& shape) const {
    Array<T> array(shape);
    if (static_cast<size_t>(array.size()) != count_) {
      throw py::value_error("DeviceArray::numpy: the shape does not hold the array's elements");
    }
    if (count_ > 0) std::memcpy(array.mutable_data(), memory_.get(), count_ * sizeof(T));
    return array;
  }
  Array<T> numpy() const { return numpy({static_cast<py::ssize_t>(count_)}); }

 private:
  size_t count_;
  std::unique_ptr<T[]> memory_;
};

template <class T>
struct TypeTag {
  using type = T;
};

// Binds one function template for every floating element type. `function_for(TypeTag<T>())` returns
// the function for T; float and double become overloads of `name`, the half types `name_half` and
// `name_bfloat16` (their arrays are both uint16).
template <class FunctionFor>
void def_floating(py::module_& m, const std::string& name, const FunctionFor& function_for) {
  m.def(name.c_str(), function_for(TypeTag<float>()));
  m.def(name.c_str(), function_for(TypeTag<double>()));
  m.def((name + "_half").c_str(), function_for(TypeTag<half_t>()));
  m.def((name + "_bfloat16").c_str(), function_for(TypeTag<bfloat16_t>()));
}

}  // namespace wsfast::bind
