#!/usr/bin/env bash
# Everything that needs a GPU, in one command of less than ten minutes: build, tests on CUDA,
# compute-sanitizer on every kernel, roofline, benchmarks against the peers that are installed.
#
#   scripts/gpu_check.sh [FOLDER] [--minutes 9.3] [--bundle DIR] [--only STEP ...]
#   scripts/gpu_check.sh --device cpu --dry-run      the same steps on small inputs, without a GPU
#
# Uses python3 (or $PYTHON) as it is, with torch 2.11 or newer and nvcc; needs no network. Packages
# that are missing there come from build/gpu_wheels, where scripts/gpu_wheels.sh put them, and go to
# a folder of this project. A second run with the same folder repeats only what did not pass. Without
# .git, the summary names the commit that WSFAST_COMMIT holds.
set -euo pipefail
export WSFAST_GPU_STARTED=${WSFAST_GPU_STARTED:-$(date +%s)} # the minutes count from here
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
wheels=build/gpu_wheels site=$PWD/build/gpu_site
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}:$site" PYTHONUNBUFFERED=1
if [[ -d $wheels ]]; then
  mapfile -t missing < <("$PYTHON" scripts/gpu/missing.py "$wheels")
  if ((${#missing[@]})); then
    echo "gpu_check: installing ${missing[*]} into build/gpu_site"
    for wheel in "${missing[@]}"; do # one that does not fit must not keep the others out
      "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade \
        --target "$site" "$wheel" || echo "gpu_check: $wheel could not be installed"
    done
  fi
fi
exec "$PYTHON" -m scripts.gpu.check "$@"
