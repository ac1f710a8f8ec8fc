#!/usr/bin/env bash
# Everything that needs a GPU, in one command: build, op tests on CUDA, compute-sanitizer, bandwidth.
# Uses the Python environment it is started in (torch 2.11 or newer with CUDA, nvcc, pytest,
# hypothesis); needs no network. Results go to the folder given (default: build/gpu_check).
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-build/gpu_check}
mkdir -p "$out"
failed=0
step() {
  local name=$1
  shift
  echo "== $name"
  if timeout 240 "$@" > "$out/$name.log" 2>&1; then echo "   ok"; else
    echo "   FAILED (exit $?), see $out/$name.log"
    tail -n 15 "$out/$name.log"
    failed=1
  fi
}

python -c "import torch; assert torch.cuda.is_available(); print(torch.__version__, torch.cuda.get_device_name())" \
  || { echo "gpu_check: no CUDA device"; exit 2; }
step build env WSFAST_CUDA=1 python setup.py build_ext --inplace
step tests env WSFAST_REQUIRE_NATIVE=1 python -m pytest tests/ops/test_truncation.py \
  tests/ops/test_fusion.py tests/ops/test_boxes.py tests/ops/test_boxes_labels.py \
  tests/ops/test_levels.py tests/ops/test_crf*.py tests/ops/test_seeds.py \
  tests/ops/test_seeds_proposals.py tests/train/test_recipes.py --device cuda -q
if command -v compute-sanitizer > /dev/null; then
  for tool in memcheck racecheck; do
    step "$tool" compute-sanitizer --tool "$tool" --error-exitcode 1 python scripts/gpu_kernels.py
  done
else
  echo "== compute-sanitizer is not installed: skipped"
fi
step bandwidth python scripts/gpu_kernels.py --time "$out/bandwidth.json"
cat "$out/bandwidth.json" 2> /dev/null
exit $failed
