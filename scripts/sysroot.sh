#!/usr/bin/env bash
# Unpacks headers and libraries of Debian's C library into a folder, for SYSROOT of build_wheels.sh:
# wheels linked against it run on every Linux with that C library or a newer one.
#
# Usage: scripts/sysroot.sh FOLDER [SUITE] [MIRROR]
#   default: bullseye (Debian 11, glibc 2.31), http://deb.debian.org/debian; needs mmdebstrap
set -euo pipefail
folder=${1:?usage: scripts/sysroot.sh FOLDER [SUITE] [MIRROR]}
suite=${2:-bullseye}
mirror=${3:-http://deb.debian.org/debian}
command -v mmdebstrap > /dev/null || { echo "sysroot: install mmdebstrap first" >&2; exit 2; }
if [[ -e $folder ]]; then echo "sysroot: $folder exists already" >&2; exit 2; fi

partial=$(mktemp -d "$(realpath -m "$folder").XXXX")
trap 'rm -rf "$partial"' EXIT
mmdebstrap --quiet --variant=extract --include=libc6-dev "$suite" "$partial" "$mirror"
# Absolute links (libdl.so to /lib/...) would lead the linker to this system's own libraries.
find "$partial" -lname '/*' -print0 | while IFS= read -r -d '' link; do
  ln -snrf "$partial$(readlink "$link")" "$link"
done
mv -T "$partial" "$folder"
echo "sysroot: $folder"
