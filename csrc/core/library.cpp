// The library's own entry: what this build can do, and the stub Python needs to find the file.
#include "build_facts.h"
#include "simd.h"
#include "torch_api.h"

namespace wsfast {
namespace {

// Which instruction set the CPU kernels run with on this machine.
int64_t cpu_simd_level() { return static_cast<int64_t>(simd_level()); }

}  // namespace
}  // namespace wsfast

STABLE_TORCH_LIBRARY(wsfast, m) { m.def("_cpu_simd_level() -> int"); }

STABLE_TORCH_LIBRARY_IMPL(wsfast, CompositeExplicitAutograd, m) {
  m.impl("_cpu_simd_level", TORCH_BOX(&wsfast::cpu_simd_level));
}
