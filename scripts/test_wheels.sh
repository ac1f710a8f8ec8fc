#!/usr/bin/env bash
# Installs what scripts/build_wheels.sh made as a new user would, and runs it.
#
# Usage: scripts/test_wheels.sh [DIST]           default: dist
#   MATRIX="python3.11=torch==2.11.0 python3=torch"   interpreter=torch of the wheel environments
#   SOURCE="python3.11=torch"                         the same for the builds from the sdist
#       instead of a torch to install, the site-packages folder of an environment that has one
#       (python3.12=/venv/lib/python3.12/site-packages) saves the download
#   STEPS="wheels source"                             either may be left out
#
# Each environment is fresh and removed afterwards (torch with CUDA takes about 7 GB). In it there
# are no compilers on PATH and no CUDA toolkit, and nothing of this folder can be imported. The
# wheels of all variants go through each environment one after the other.
set -euo pipefail
dist=${1:+$(realpath "$1")} # a relative folder is the caller's, the default is this project's
cd "$(dirname "$0")/.."
dist=${dist:-$PWD/dist}
matrix=${MATRIX:-"python3.11=torch==2.11.0 python3=torch"}
source=${SOURCE:-"python3.11=torch"}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/suite"
cp -r tests benchmarks pyproject.toml "$work/suite"
unset CC CXX CUDA_PATH VIRTUAL_ENV PYTHONPATH WSFAST_CUDA WSFAST_NATIVE
export CUDA_HOME="$work/no-cuda" # torch looks into /usr/local/cuda otherwise
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

readonly FIVE_LINES='
import timm, torch, wsfast
from wsfast.cam import LTGradCAM
model = timm.create_model("resnet18", pretrained=False).eval()
result = LTGradCAM(model, layers="stages", percentile=50)(torch.rand(2, 3, 224, 224))
boxes = wsfast.cam_boxes(result.cams, "otsu")
assert boxes.boxes.shape == (2, 64, 4) and int(boxes.counts.min()) > 0
print("five lines of the README: ok")
'

say() { echo "== $*"; }

fresh() { # interpreter=torch: an environment in $env with that torch and no wsfast
  env="$work/env"
  torch=${1#*=}
  rm -rf "$env"
  "${1%%=*}" -m venv "$env"
  if [[ -d $torch ]]; then
    echo "$torch" > "$(echo "$env"/lib/python3*/site-packages)/borrowed.pth"
    torch=setuptools # nothing to install beside a wheel
  else
    "$env/bin/pip" install --quiet "$torch"
  fi
}

inside() { # without compilers, away from the source
  (cd "$work" && PATH="$env/bin" "$@")
}

with_compiler() { # g++, but neither nvcc nor anything else that was installed by hand
  (cd "$work" && PATH="$env/bin:/usr/bin:/bin" "$@")
}

state_of() { # of a library, as `wsfast info` tells it
  inside python -c "import wsfast; print(wsfast.info()['libraries']['$1'])"
}

expect() { # state of a library, pattern
  local state
  state=$(state_of "$1")
  # shellcheck disable=SC2053  # a pattern on purpose
  [[ $state == $2 ]] || { echo "test_wheels: $1 is '$state', expected '$2'" >&2; return 1; }
}

try_out() { # what a new user does first; then part of the tests
  inside wsfast info --check
  inside /usr/bin/env WSFAST_REQUIRE_NATIVE=1 python -c "$FIVE_LINES"
}

run_tests() {
  inside pip install --quiet "pytest>=8" "pytest-timeout>=2.3" "hypothesis>=6.100" "scipy>=1.11"
  (cd "$work/suite" && PATH="$env/bin" WSFAST_REQUIRE_NATIVE=1 python -m pytest -q tests/ops \
    --ignore-glob '*emulated*' \
    -k "known_values or matches_reference or equals or opcheck or script_and_trace or errors")
}

test_wheels() { # interpreter=torch
  fresh "$1"
  local folder variant wheel
  for folder in "$dist"/*/; do
    variant=$(basename "$folder")
    wheel=$(ls "$folder"*.whl)
    say "$variant wheel, ${1%%=*}, $(inside python -c 'import torch; print("torch", torch.__version__)')"
    inside pip install --quiet "$wheel" "$torch"
    try_out
    expect _C loaded
    if [[ $variant == cpu ]]; then
      expect _C_cuda "not built"
    elif inside python -c "import sys, torch; sys.exit(torch.version.cuda is None)"; then
      expect _C_cuda loaded
    else
      expect _C_cuda "cannot be loaded: torch * is a CPU build"
    fi
    run_tests
    inside pip uninstall --quiet --yes wsfast
    inside python -c "import importlib.util as u, sys; sys.exit(u.find_spec('wsfast') is not None)"
  done
}

from_sdist() { # what is tried, options of pip; WSFAST_* from the environment
  local what=$1 sdist
  shift
  sdist=$(ls -t "$dist"/*.tar.gz | head -n 1)
  say "$what"
  with_compiler pip install --verbose --no-cache-dir "$@" "$sdist" > "$work/pip.log" 2>&1 \
    || { tail -n 30 "$work/pip.log"; return 1; }
}

boxed() { # a message of setup.py in pip's log
  grep -q "$1" "$work/pip.log" || { echo "test_wheels: pip did not say '$1'" >&2; return 1; }
}

test_source() { # interpreter=torch
  fresh "$1"
  inside pip install --quiet "setuptools>=77" wheel ninja
  from_sdist "sdist without nvcc, --no-build-isolation" --no-build-isolation
  boxed "building CPU kernels only"
  try_out
  expect _C loaded
  expect _C_cuda "not built"
  inside pip uninstall --quiet --yes wsfast

  from_sdist "sdist without nvcc, isolated build"
  boxed "building CPU kernels only"
  try_out
  expect _C loaded
  inside pip uninstall --quiet --yes wsfast

  WSFAST_NATIVE=0 from_sdist "sdist, WSFAST_NATIVE=0" --no-build-isolation
  boxed "no native kernels"
  inside wsfast info
  expect _C "not built"
  inside python -W ignore -c "$FIVE_LINES"
  if inside /usr/bin/env WSFAST_REQUIRE_NATIVE=1 python -c "import wsfast" 2> /dev/null; then
    echo "test_wheels: WSFAST_REQUIRE_NATIVE=1 accepts a build without kernels" >&2
    return 1
  fi
}

for step in ${STEPS:-wheels source}; do
  case $step in
    wheels) for pair in $matrix; do test_wheels "$pair"; done ;;
    source) for pair in $source; do test_source "$pair"; done ;;
    *) echo "test_wheels: a step must be wheels or source, got $step" >&2; exit 2 ;;
  esac
done
say "all installations work"
