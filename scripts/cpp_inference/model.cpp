#include "model.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/softmax.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>

#include "program.h"
#include "text.h"

namespace wsfast {
namespace {

// The program's outputs on the host, in the order of wsfast.deploy.LocalizerOutput; cams and masks
// stay where they are.
struct Outputs {
  at::Tensor probabilities, known, boxes, scores, counts;
};

void check(bool right) {
  if (!right) {
    throw InputError(
        "the model must return (logits, cams, masks, boxes, scores, counts) as of `wsfast export`");
  }
}

at::Tensor on_host(const at::Tensor& tensor, at::ScalarType type) {
  return tensor.to(at::kCPU, type).contiguous();
}

Outputs take(const std::vector<at::Tensor>& tensors, std::int64_t count) {
  check(tensors.size() == 6);
  const at::Tensor &logits = tensors[0], &boxes = tensors[3], &scores = tensors[4],
                   &counts = tensors[5];
  check(logits.dim() == 2 && logits.size(0) == count && logits.size(1) > 0);
  check(boxes.dim() == 3 && boxes.size(0) == count && boxes.size(2) == 4);
  check(scores.dim() == 2 && scores.size(0) == count && scores.size(1) == boxes.size(1));
  check(counts.dim() == 1 && counts.size(0) == count);
  return {on_host(at::softmax(logits, 1, at::kFloat), at::kFloat),
          on_host(at::isfinite(logits).all(1), at::kBool), on_host(boxes, at::kLong),
          on_host(scores, at::kFloat), on_host(counts, at::kLong)};
}

Localization localization(const Outputs& outputs, std::int64_t image) {
  const std::int64_t classes = outputs.probabilities.size(1), capacity = outputs.boxes.size(1);
  const float* probabilities = outputs.probabilities.const_data_ptr<float>() + image * classes;
  const std::int64_t* boxes = outputs.boxes.const_data_ptr<std::int64_t>() + image * capacity * 4;
  const float* scores = outputs.scores.const_data_ptr<float>() + image * capacity;

  Localization found;
  if (outputs.known.const_data_ptr<bool>()[image]) {
    const float* best = std::max_element(probabilities, probabilities + classes);
    found.predicted = best - probabilities;
    found.probability = *best;
  }
  found.count = outputs.counts.const_data_ptr<std::int64_t>()[image];
  for (std::int64_t b = 0; b < std::min(found.count, capacity); ++b, boxes += 4) {
    found.boxes.push_back({boxes[0], boxes[1], boxes[2], boxes[3]});
    found.scores.push_back(scores[b]);
  }
  return found;
}

c10::Device usable_device(const std::string& name) {
  const c10::Device device(name);
  if (device.is_cuda() && !at::hasCUDA()) {
    throw InputError("--device " + name + ": torch finds no CUDA device here");
  }
  return device;
}

}  // namespace

int use_threads(int threads) {
  if (threads > 0) at::set_num_threads(threads);
  return at::get_num_threads();
}

Model::Model(const std::filesystem::path& file, const std::string& device)
    : device_(device), program_(load_program(file, usable_device(device))) {}

Model::~Model() = default;

const ExportInfo& Model::info() const { return program_->info(); }

std::vector<Localization> Model::run(std::vector<std::uint8_t>& batch, std::int64_t count) {
  const c10::InferenceMode no_gradients;
  const ExportInfo& expected = info();
  const at::Tensor images = at::from_blob(
      batch.data(), {count, expected.channels, expected.image_height, expected.image_width},
      at::kByte);
  try {
    const Outputs outputs = take(program_->run(images.to(c10::Device(device_))), count);
    std::vector<Localization> found;
    for (std::int64_t i = 0; i < count; ++i) found.push_back(localization(outputs, i));
    return found;
  } catch (const InputError&) {
    throw;
  } catch (const std::exception& error) {
    throw InputError("the model failed: " + torch_message(error));
  }
}

}  // namespace wsfast
