#!/usr/bin/env bash
# Compiles the CPU library for arm64, and parses it with clang and libc++ as on macOS: source builds
# there stay possible. Nothing is linked or run; torch's headers come from the Python in use.
#
# Usage: scripts/arm_check.sh      needs aarch64-linux-gnu-g++, or clang++ with libc++, or both:
#   apt-get install g++-aarch64-linux-gnu clang libc++-dev
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
includes=$("${PYTHON:-python3}" -c "
from torch.utils.cpp_extension import include_paths
print(*(f'-isystem {folder}' for folder in include_paths('cpu')))")
flags="-std=c++20 -fPIC -fvisibility=hidden -Wall -Wextra -Werror -Wno-psabi
  -Wno-unknown-pragmas -Wno-missing-field-initializers
  -DTORCH_TARGET_VERSION=0x020b000000000000"
tried=0

check() { # name, compiler and its own flags
  local name=$1 file
  shift
  tried=$((tried + 1))
  for file in csrc/core/*.cpp csrc/ops/*/*_cpu.cpp; do
    echo "$name: $file"
    # shellcheck disable=SC2086
    "$@" $flags $includes "$file" -o "$work/object.o"
  done
}

if command -v aarch64-linux-gnu-g++ > /dev/null; then
  check "arm64 g++" aarch64-linux-gnu-g++ -c
fi
if command -v clang++ > /dev/null; then
  check "clang++, libc++" clang++ -stdlib=libc++ -fsyntax-only
  if [[ -d /usr/aarch64-linux-gnu ]]; then
    check "arm64 clang++, libc++" clang++ --target=aarch64-linux-gnu -stdlib=libc++ \
      -fsyntax-only
  fi
fi
if [[ $tried == 0 ]]; then
  echo "arm_check: neither aarch64-linux-gnu-g++ nor clang++ is installed" >&2
  exit 2
fi
