// CUDA launchers of the seeds room.
#include <cstdint>

#include "seeds_args.h"
#include "seeds_launch.cuh"

namespace wsfast::seeds {
namespace {

std::tuple<Tensor, Tensor> sample_seeds_cuda(const Tensor& cams, const Tensor& keys,
                                             std::optional<Tensor> roi,
                                             std::optional<Tensor> background_only,
                                             int64_t foreground, int64_t background, bool top,
                                             double foreground_share, double background_share,
                                             bool weighted, bool background_outside_roi,
                                             int64_t erode, int64_t dilate) {
  const DeviceGuard guard(cams.get_device_index());
  const Args args = seed_args(cams, keys, roi, background_only);
  WS_CHECK(args.images <= INT32_MAX, "wsfast::sample_seeds: too many images, got ", args.images);
  const Options options =
      seed_options(foreground, background, top, foreground_share, background_share, weighted,
                   background_outside_roi && roi.has_value(), erode, dilate);
  const int64_t pixels = args.images * args.pixels();
  const Tensor marks = new_tensor(cams, {pixels}, ScalarType::Byte);
  const Tensor rows = new_tensor(cams, {pixels}, ScalarType::Byte);
  const Tensor clocks = new_tensor(cams, {weighted ? pixels : 0}, ScalarType::Int);
  const Tensor varies = new_tensor(cams, {args.images}, ScalarType::Bool);
  const Batch batch{args.images,
                    static_cast<int>(args.height),
                    static_cast<int>(args.width),
                    read_ptr<float>(args.cams),
                    read_ptr<uint64_t>(args.keys),
                    read_ptr_or_null<uint8_t>(args.roi_mask),
                    read_ptr_or_null<int32_t>(args.roi_boxes),
                    read_ptr_or_null<bool>(args.background_only),
                    write_ptr<uint8_t>(marks),
                    write_ptr<uint8_t>(rows),
                    write_ptr<uint32_t>(clocks),
                    write_ptr<bool>(varies),
                    write_ptr<bool>(args.valid),
                    write_ptr<int64_t>(args.seeds)};
  launch_seeds(batch, options, current_stream(cams));
  check_launch();
  return {args.seeds, args.valid};
}

Tensor seed_keys_cuda(const Tensor& seed, const Tensor& image_ids, int64_t epoch) {
  const DeviceGuard guard(image_ids.get_device_index());
  const KeyArgs args = key_args(seed, image_ids);
  launch_keys(read_ptr<uint64_t>(args.seed), read_ptr<uint64_t>(args.image_ids), args.images,
              static_cast<uint64_t>(epoch), write_ptr<uint64_t>(args.keys),
              current_stream(image_ids));
  check_launch();
  return args.keys;
}

}  // namespace
}  // namespace wsfast::seeds

STABLE_TORCH_LIBRARY_IMPL(wsfast, CUDA, m) {
  m.impl("sample_seeds", TORCH_BOX(&wsfast::seeds::sample_seeds_cuda));
  m.impl("seed_keys", TORCH_BOX(&wsfast::seeds::seed_keys_cuda));
}
