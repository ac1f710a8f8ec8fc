#!/usr/bin/env bash
# Builds a wheel against one torch and runs it on another, both ways: the Stable ABI's promise.
# Usage: scripts/abi_check.sh [TORCH_A] [TORCH_B]     default: 2.13.0 and the newest
set -euo pipefail
cd "$(dirname "$0")/.."
first=${1:-torch==2.13.0}
second=${2:-torch}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
smoke='
import torch, wsfast
g = torch.randn(2, 3, 60, 61, requires_grad=True)
out = wsfast.truncate_gradients(g, 50)
out.sum().backward()
assert torch.equal(g.grad, (out > 0).float())
cams = wsfast.fuse_cams([wsfast.truncated_gradcam(g.detach(), g.detach(), 50)], (120, 122))
boxes = wsfast.cam_boxes(cams, "otsu")
prob = torch.rand(2, 2, 60, 61, requires_grad=True)
wsfast.dense_crf_loss(torch.rand(2, 3, 60, 61) * 255, prob, roi=torch.ones(2, 60, 61)).backward()
assert prob.grad.abs().sum() > 0
levels = wsfast.level_boxes(cams)
torch.library.opcheck(torch.ops.wsfast.truncate_gradients.default, (g, 50.0, False))
print("torch", torch.__version__, "ok:", boxes.counts.tolist())
'
for spec in "$first" "$second"; do
  folder="$work/${spec//[^a-z0-9.]/_}"
  python3 -m venv "$folder"
  "$folder/bin/pip" install --quiet "setuptools>=77" wheel ninja numpy "$spec"
  WSFAST_CUDA=0 "$folder/bin/pip" wheel --quiet --no-build-isolation --no-deps -w "$folder/wheel" .
done
for spec in "$first" "$second"; do
  runner="$work/${spec//[^a-z0-9.]/_}"
  for builder in "$first" "$second"; do
    "$runner/bin/pip" install --quiet --no-deps --force-reinstall \
      "$work/${builder//[^a-z0-9.]/_}"/wheel/*.whl
    echo "built with $builder, run with $spec:"
    (cd "$work" && WSFAST_REQUIRE_NATIVE=1 "$runner/bin/python" -c "$smoke")
  done
done
