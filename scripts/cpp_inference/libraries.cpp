#include "libraries.h"

#include <dlfcn.h>

#include <string>
#include <system_error>

#include "text.h"

namespace wsfast {
namespace {

// RTLD_GLOBAL: the code of a .pt2 finds its operators through torch's registry, and that library
// has to stay. Nothing is ever closed.
void open(const std::string& name, const std::string& hint) {
  if (::dlopen(name.c_str(), RTLD_NOW | RTLD_GLOBAL) != nullptr) return;
  throw InputError(hint + first_line(::dlerror()));
}

}  // namespace

void open_libraries(const std::vector<std::filesystem::path>& operators, bool cuda) {
  // Before the first use of torch, which asks only once whether its CUDA part is there.
  if (cuda) open("libtorch_cuda.so", "--device cuda needs a torch with CUDA: ");
  for (const std::filesystem::path& library : operators) {
    std::error_code ignored;
    if (!std::filesystem::is_regular_file(library, ignored)) {
      throw InputError("--ops " + library.string() + ": no such file");
    }
    // An absolute path: a bare name would be looked for in the system's folders.
    open(std::filesystem::absolute(library).string(), "--ops cannot be opened: ");
  }
}

}  // namespace wsfast
