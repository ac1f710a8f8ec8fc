// A stand-in for a GPU: tensors say cuda:0, their memory is the host's, torch's own operators run on
// the CPU, and those of wsfast run the CUDA library's code on the emulator of tests/native. What is
// linked beside this file registers the latter by itself; install() does the rest.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <new>
#include <set>
#include <string>

namespace {

const c10::Device kDevice(c10::DeviceType::CUDA, 0);
const c10::DispatchKeySet kKeys(c10::DispatchKey::CUDA);

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    constexpr int kUnwritten = 0xA7;  // large numbers of both signs, none of which is 0
    void* memory = nullptr;
    if (bytes > 0) {
      if (posix_memalign(&memory, 512, bytes) != 0) throw std::bad_alloc();
      std::memset(memory, kUnwritten, bytes);
    }
    return {memory, memory, &std::free, kDevice};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
};
Memory device_memory;

// One device whose work is done when the call that asks for it returns.
struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  c10::Stream getStream(c10::Device) const noexcept override { return stream(); }
  c10::Stream getNewStream(c10::Device, int) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(c10::DeviceIndex) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}

 private:
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, kDevice); }
};
Guard device_guard;

// What torch asks the CUDA library about. The device draws the host's random numbers.
struct Hooks final : at::CUDAHooksInterface {
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  long versionCuDNN() const override { return 0; }
  long versionRuntimeCuDNN() const override { return 0; }
  int getNumGPUs() const override { return 1; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  void deviceSynchronize(c10::DeviceIndex) const override {}
  at::Device getDeviceFromPtr(void*) const override { return kDevice; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  c10::Allocator* getCUDADeviceAllocator() const override { return &device_memory; }
  at::Generator getNewGenerator(c10::DeviceIndex) const override {
    return at::detail::createCPUGenerator();
  }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    return at::detail::getDefaultCPUGenerator();
  }
};

// torch keeps the hooks that it finds first, which may have been before this library was loaded.
void replace_hooks() {
  static Hooks hooks;
  auto& found = const_cast<at::CUDAHooksInterface&>(at::detail::getCUDAHooks());
  std::memcpy(static_cast<void*>(&found), static_cast<void*>(&hooks), sizeof(void*));  // its functions
}

// ---- Operators that make or move tensors --------------------------------------------------------

at::Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype,
                 std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>,
                 std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &device_memory, kKeys,
                                   c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                         std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                         std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size),
                                           C10_AS_INTARRAYREF_SLOW(stride), &device_memory, kKeys,
                                           c10::dtype_or_default(dtype));
}

// The same memory as a tensor of the host.
at::Tensor host_view(const at::Tensor& tensor) {
  if (!tensor.is_cuda()) return tensor;
  const auto options = tensor.options().device(at::kCPU);
  if (tensor.numel() == 0) return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  at::Tensor view = at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), options);
  if (tensor.is_neg()) view._set_neg(true);
  if (tensor.is_conj()) view._set_conj(true);
  return view;
}

at::Tensor& copy(at::Tensor& to, const at::Tensor& from, bool) {
  host_view(to).copy_(host_view(from));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  if (to.sizes() != from.sizes()) to.resize_(from.sizes());
  return to.copy_(from);
}

const at::Tensor& resize(const at::Tensor& self, c10::SymIntArrayRef size,
                         std::optional<at::MemoryFormat> format) {
  const c10::IntArrayRef sizes = C10_AS_INTARRAYREF_SLOW(size);
  auto* const storage = self.storage().unsafeGetStorageImpl();
  const size_t bytes =
      (c10::multiply_integers(sizes) + self.storage_offset()) * self.element_size();
  if (bytes > storage->nbytes()) {
    auto grown = device_memory.allocate(bytes);
    if (storage->nbytes() > 0) std::memcpy(grown.get(), storage->data(), storage->nbytes());
    storage->set_data_ptr_noswap(std::move(grown));
    storage->set_nbytes(bytes);
  }
  self.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  if (format) self.unsafeGetTensorImpl()->empty_tensor_restride(*format);
  return self;
}

at::Tensor& set_storage_at(at::Tensor& self, at::Storage source, c10::SymInt offset,
                           c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  auto* const impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  impl->set_sizes_and_strides(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride),
                              offset.expect_int());
  return self;
}

at::Tensor& set_storage(at::Tensor& self, at::Storage source) {
  const auto elements = static_cast<int64_t>(source.nbytes() / self.element_size());
  return set_storage_at(self, std::move(source), 0, c10::SymInt(elements), c10::SymInt(1));
}

void record_stream(at::Tensor&, c10::Stream) {}

// Attention by plain products: the number of the first of torch's ways.
int64_t plain_attention(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                        const std::optional<at::Tensor>&, double, bool, std::optional<double>, bool) {
  return 0;
}

// ---- All other operators of torch ---------------------------------------------------------------

// May have tensors of both devices (indices, values).
const std::set<std::string> kMixed = {
    "aten::index",      "aten::index_put_",  "aten::_index_put_impl_", "aten::index_put",
    "aten::copy_",      "aten::masked_fill_", "aten::_unsafe_index",   "aten::_foreach_copy_"};

// A GPU refuses tensors of the host, unless they are single numbers.
void check_one_device(const c10::OperatorHandle& op, const torch::jit::Stack& stack) {
  bool device = false;
  const at::Tensor* stranger = nullptr;
  const auto look = [&](const at::Tensor& tensor) {
    if (!tensor.defined()) return;
    device |= tensor.is_cuda();
    if (!tensor.is_cuda() && tensor.dim() > 0) stranger = &tensor;
  };
  const auto arguments = torch::jit::last(stack, op.schema().arguments().size());
  for (const c10::IValue& argument : arguments) {
    if (argument.isTensor()) look(argument.toTensor());
    if (!argument.isList()) continue;
    for (const c10::IValue& element : argument.toListRef()) {
      if (element.isTensor()) look(element.toTensor());
    }
  }
  TORCH_CHECK(!device || stranger == nullptr || kMixed.count(op.schema().name()), op.schema().name(),
              ": tensors of cuda:0 and, of shape ", stranger->sizes(), ", of the CPU");
}

// TorchScript types its lists of indices more closely than cpu_fallback knows lists of tensors by.
void retype_indices(c10::IValue& argument) {
  if (!argument.isList() || argument.isTensorList() || argument.isOptionalTensorList()) return;
  c10::List<std::optional<at::Tensor>> tensors;
  for (const c10::IValue& element : argument.toListRef()) {
    if (!element.isTensor() && !element.isNone()) return;
    tensors.push_back(element.toOptional<at::Tensor>());
  }
  if (!tensors.empty()) argument = std::move(tensors);
}

void run_on_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  check_one_device(op, *stack);
  const size_t arguments = op.schema().arguments().size();
  std::for_each(stack->end() - arguments, stack->end(), retype_indices);
  at::native::cpu_fallback(op, stack);
  const size_t results = op.schema().returns().size();
  for (size_t i = stack->size() - results; i < stack->size(); ++i) {
    c10::IValue& result = (*stack)[i];  // is where the first argument is, which may be a number
    if (result.isTensor() && result.toTensor().is_cpu()) result = result.toTensor().to(kDevice);
  }
}

bool returns_view(const c10::FunctionSchema& schema) {
  for (const auto& result : schema.returns()) {
    if (result.alias_info() != nullptr && !result.alias_info()->isWrite()) return true;
  }
  return false;
}

torch::Library& library_of(const std::string& space) {
  static std::map<std::string, std::unique_ptr<torch::Library>> libraries;
  auto& library = libraries[space];
  if (library == nullptr) {
    library = std::make_unique<torch::Library>(torch::Library::IMPL, space, c10::DispatchKey::CUDA,
                                               __FILE__, __LINE__);
  }
  return *library;
}

void replace_operators() {
  const std::set<std::string> spaces = {"aten", "torchvision"};
  const std::set<std::string> whole = {"convolution", "convolution_backward"};  // parts are CUDA's
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto& name : dispatcher.getAllOpNames()) {
    const std::string space(name.getNamespace().value_or(""));
    const auto op = dispatcher.findSchema(name);
    if (!spaces.count(space) || !op || returns_view(op->schema())) continue;
    std::string local = name.name.substr(space.size() + 2);
    if (!name.overload_name.empty()) local += "." + name.overload_name;
    const bool has_kernel = op->hasKernelForDispatchKey(c10::DispatchKey::CPU) ||
                            op->hasKernelForDispatchKey(c10::DispatchKey::CUDA);
    if (!has_kernel && !whole.count(local)) continue;
    library_of(space).impl(local.c_str(), torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
  }
  auto& aten = library_of("aten");
  aten.impl("empty.memory_format", TORCH_FN(empty));
  aten.impl("empty_strided", TORCH_FN(empty_strided));
  aten.impl("copy_", TORCH_FN(copy));
  aten.impl("_copy_from_and_resize", TORCH_FN(copy_from_and_resize));
  aten.impl("resize_", TORCH_FN(resize));
  aten.impl("set_.source_Storage", TORCH_FN(set_storage));
  aten.impl("set_.source_Storage_storage_offset", TORCH_FN(set_storage_at));
  aten.impl("record_stream", TORCH_FN(record_stream));
  aten.impl("_fused_sdp_choice", TORCH_FN(plain_attention));
}

}  // namespace

extern "C" __attribute__((visibility("default"))) void install() {
  c10::impl::device_guard_impl_registry[static_cast<size_t>(kDevice.type())].store(&device_guard);
  c10::SetAllocator(kDevice.type(), &device_memory, 255);
  replace_hooks();
  replace_operators();
}
