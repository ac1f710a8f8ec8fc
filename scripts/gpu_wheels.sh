#!/usr/bin/env bash
# Downloads what the GPU pass imports beyond torch, torchvision, timm, OpenCV, pytest,
# pytest-benchmark, ninja and nvcc into build/gpu_wheels, for a machine without network: wheels for
# Python 3.12 on Linux x86-64, less than 50 MiB. scripts/gpu_check.sh installs from there what the
# machine does not have.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3} folder=build/gpu_wheels most_mib=50
# Needed by tests: without these they cannot even be collected.
needed=(hypothesis sortedcontainers pytest-timeout pytest-xdist execnet torchmetrics
  lightning-utilities pybind11 safetensors pyyaml tqdm)
# Peers that run on CUDA or beside it, and CAM libraries; without them their rows read "not installed".
peers=(kornia kornia-rs connected-components-3d)
rm -rf "$folder"
mkdir -p "$folder"
platforms=()
for version in 2_17 2014 2_24 2_27 2_28; do
  platforms+=(--platform "manylinux${version/#2_/_2_}_x86_64")
done
fetch() {
  "$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation cp "${platforms[@]}" --dest "$folder" "$1"
}
for package in "${needed[@]}"; do fetch "$package"; done
for package in "${peers[@]}"; do
  fetch "$package" || echo "gpu_wheels: no wheel of $package for Python 3.12: left out"
done
size=$(du -sm "$folder" | cut -f1)
echo "gpu_wheels: $(ls "$folder" | wc -l) wheels, $size MiB in $folder"
if ((size > most_mib)); then
  echo "gpu_wheels: more than $most_mib MiB" >&2
  exit 1
fi
