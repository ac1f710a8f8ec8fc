#include "program.h"

#include <c10/util/Exception.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>

#include <system_error>

#include "text.h"

namespace wsfast {
namespace {

constexpr const char* kMetadataFile = "wsfast.json";

class ScriptProgram : public Program {
 public:
  ScriptProgram(const std::string& file, const c10::Device& device) {
    torch::jit::ExtraFilesMap extra{{kMetadataFile, ""}};
    module_ = torch::jit::load(file, device, extra);
    module_.eval();
    info_ = read_export_info(extra[kMetadataFile]);
  }

  std::vector<at::Tensor> run(const at::Tensor& images) override {
    const c10::IValue result = module_.forward({images});
    if (result.isTensor()) return {result.toTensor()};
    if (!result.isTuple()) return {};
    std::vector<at::Tensor> tensors;
    for (const c10::IValue& element : result.toTupleRef().elements()) {
      if (element.isTensor()) tensors.push_back(element.toTensor());
    }
    return tensors;
  }

  const ExportInfo& info() const override { return info_; }

 private:
  torch::jit::Module module_;
  ExportInfo info_;
};

class PackagedProgram : public Program {
  using Loader = torch::inductor::AOTIModelPackageLoader;

 public:
  PackagedProgram(const std::string& file, const c10::Device& device)
      : info_(read_info(file, device)),
        loader_(file, kName, /*run_single_threaded=*/false, /*num_runners=*/1,
                device.has_index() ? device.index() : c10::DeviceIndex{-1}) {}

  std::vector<at::Tensor> run(const at::Tensor& images) override { return loader_.run({images}); }

  const ExportInfo& info() const override { return info_; }

 private:
  static constexpr const char* kName = "model";

  // Before the loader, whose message for another device does not know of --device.
  static ExportInfo read_info(const std::string& file, const c10::Device& device) {
    const auto metadata = Loader::load_metadata_from_package(file, kName);
    check_device(metadata, device);
    return read_export_info(metadata);
  }

  static void check_device(const std::unordered_map<std::string, std::string>& metadata,
                           const c10::Device& device) {
    const auto entry = metadata.find("AOTI_DEVICE_KEY");
    if (entry == metadata.end() || entry->second == c10::DeviceTypeName(device.type(), true)) {
      return;
    }
    throw InputError("was made for " + entry->second + ": run it with --device " + entry->second);
  }

  ExportInfo info_;
  Loader loader_;
};

// Whether torch says that it does not know an operator of wsfast.
bool lacks_operators(const std::string& message) {
  return message.find("wsfast::") != std::string::npos &&
         (message.find("Unknown builtin op") != std::string::npos ||
          message.find("Could not find schema") != std::string::npos);
}

}  // namespace

std::string torch_message(const std::exception& error) {
  const auto* c10_error = dynamic_cast<const c10::Error*>(&error);
  const std::string text = c10_error ? c10_error->what_without_backtrace() : error.what();
  const bool traceback = text.find("TorchScript, serialized code") != std::string::npos;
  return traceback ? last_line(text) : first_line(text);
}

std::unique_ptr<Program> load_program(const std::filesystem::path& file,
                                      const c10::Device& device) {
  const std::string name = file.string();
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(file, ignored)) {
    throw InputError(name + ": no such model file");
  }
  try {
    if (file.extension() == ".pt2") return std::make_unique<PackagedProgram>(name, device);
    return std::make_unique<ScriptProgram>(name, device);
  } catch (const InputError& error) {
    throw InputError(name + " " + error.what());
  } catch (const std::exception& error) {
    if (lacks_operators(error.what())) {
      throw InputError(name + " needs wsfast's operators: give --ops LIBRARY " +
                       "(`wsfast info --libs` prints it)");
    }
    throw InputError(name + " cannot be loaded: " + torch_message(error));
  }
}

}  // namespace wsfast
