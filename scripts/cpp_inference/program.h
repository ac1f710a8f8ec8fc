// An exported program, TorchScript or AOTInductor: one tensor in, six out.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <memory>
#include <vector>

#include "export_info.h"

namespace wsfast {

class Program {
 public:
  virtual ~Program() = default;
  // Takes (N, C, H, W) uint8 on the program's device.
  virtual std::vector<at::Tensor> run(const at::Tensor& images) = 0;
  virtual const ExportInfo& info() const = 0;
};

// A .pt2 suffix means AOTInductor, anything else TorchScript. Throws InputError where the file
// cannot be loaded, is not of `wsfast export`, or was made for another device.
std::unique_ptr<Program> load_program(const std::filesystem::path& file, const c10::Device& device);

// What went wrong in torch, in one line.
std::string torch_message(const std::exception& error);

}  // namespace wsfast
