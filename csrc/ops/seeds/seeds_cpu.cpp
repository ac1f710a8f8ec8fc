// Schemas and CPU kernels of the seeds room: one image per task, so results do not depend on the
// number of threads.
#include <algorithm>
#include <bit>
#include <cstring>

#include "../../core/memory.h"
#include "seeds_args.h"
#include "seeds_sampler.h"

#define WS_SIMD_BODY "../ops/seeds/seeds_simd.h"
#include "../../core/foreach_simd.h"

namespace wsfast::seeds {
namespace {

WS_DEFINE_DISPATCH_SIMD(Loops)

// Images per task at least: a thread is worth waking for this many pixels.
int64_t grain(int64_t pixels) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, pixels));
}

Tensor seed_keys_cpu(const Tensor& seed, const Tensor& image_ids, int64_t epoch) {
  const KeyArgs args = key_args(seed, image_ids);
  const auto* ids = read_ptr<uint64_t>(args.image_ids);
  auto* keys = write_ptr<uint64_t>(args.keys);
  const uint64_t word = *read_ptr<uint64_t>(args.seed);
  for (int64_t n = 0; n < args.images; ++n) {
    keys[n] = image_key(word, ids[n], static_cast<uint64_t>(epoch));
  }
  return args.keys;
}

template <class Loops>
void sample_images(const Args& args, const Options& options, int64_t begin, int64_t end) {
  Sampler<Loops> sampler(args.height, args.width, options);
  const auto* masks = read_ptr_or_null<uint8_t>(args.roi_mask);
  const auto* boxes = read_ptr_or_null<int32_t>(args.roi_boxes);
  const auto* clean = read_ptr_or_null<bool>(args.background_only);
  for (int64_t n = begin; n < end; ++n) {
    const int64_t at = n * args.pixels();
    const Roi roi{masks == nullptr ? nullptr : masks + at,
                  boxes == nullptr ? nullptr : boxes + n * 4};
    write_ptr<bool>(args.valid)[n] =
        sampler.sample(read_ptr<float>(args.cams) + at, read_ptr<uint64_t>(args.keys)[n], roi,
                       clean != nullptr && clean[n], write_ptr<int64_t>(args.seeds) + at);
  }
}

std::tuple<Tensor, Tensor> sample_seeds_cpu(const Tensor& cams, const Tensor& keys,
                                            std::optional<Tensor> roi,
                                            std::optional<Tensor> background_only,
                                            int64_t foreground, int64_t background, bool top,
                                            double foreground_share, double background_share,
                                            bool weighted, bool background_outside_roi,
                                            int64_t erode, int64_t dilate) {
  const Args args = seed_args(cams, keys, roi, background_only);
  const Options options =
      seed_options(foreground, background, top, foreground_share, background_share, weighted,
                   background_outside_roi && roi.has_value(), erode, dilate);
  if (args.pixels() == 0) return {args.seeds, args.valid};
  prefer_huge_pages(args.seeds.data_ptr(), args.images * args.pixels() * int64_t{sizeof(int64_t)});
  dispatch_simd([&]<class Loops>() {
    parallel_for(0, args.images, grain(args.pixels()), [&](int64_t begin, int64_t end) {
      sample_images<Loops>(args, options, begin, end);
    });
  });
  return {args.seeds, args.valid};
}

}  // namespace
}  // namespace wsfast::seeds

STABLE_TORCH_LIBRARY_FRAGMENT(wsfast, m) {
  m.def(
      "sample_seeds(Tensor cams, Tensor keys, Tensor? roi, Tensor? background_only, int foreground,"
      " int background, bool top, float foreground_share, float background_share, bool weighted,"
      " bool background_outside_roi, int erode, int dilate) -> (Tensor, Tensor)");
  m.def("seed_keys(Tensor seed, Tensor image_ids, SymInt epoch) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(wsfast, CPU, m) {
  m.impl("sample_seeds", TORCH_BOX(&wsfast::seeds::sample_seeds_cpu));
  m.impl("seed_keys", TORCH_BOX(&wsfast::seeds::seed_keys_cpu));
}
