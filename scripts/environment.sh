# Sourced by the other scripts: an environment with wsfast and its development tools.
#
# An active environment, virtual or of conda, is used as it is; otherwise .venv is made beside this
# project, by $PYTHON. conda's base counts as none: it is active in every shell, and conda's own.
# What is already installed stays (a torch you chose, for instance); the rest comes from pip.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
ENVIRONMENT=${VIRTUAL_ENV:-}
if [[ -z $ENVIRONMENT && -n ${CONDA_PREFIX:-} && ${CONDA_DEFAULT_ENV:-base} != base &&
  $(command -v python) == "$CONDA_PREFIX/bin/python" ]]; then
  ENVIRONMENT=$CONDA_PREFIX
fi
if [[ -z $ENVIRONMENT ]]; then
  if [[ ! -e .venv/bin/activate ]]; then # written last: without it, an attempt was broken off
    echo "wsfast: creating .venv"
    "$PYTHON" -m venv .venv
  fi
  # shellcheck disable=SC1091
  source .venv/bin/activate
  ENVIRONMENT=$VIRTUAL_ENV
fi

# A stamp of everything the build depends on makes a second run start at once.
stamp_of() {
  { python -c "import sys; print(sys.version)"; cat setup.py pyproject.toml; find csrc -type f -print0 | sort -z | xargs -0 cat; \
    echo "$PWD ${WSFAST_CUDA:-auto} ${WSFAST_NATIVE:-1} ${TORCH_CUDA_ARCH_LIST:-}"; } | sha256sum | cut -d' ' -f1
}
# One for the environment, as it holds one wsfast: that of the checkout that was installed last.
STAMP_FILE="$ENVIRONMENT/.wsfast"
STAMP=$(stamp_of)
if [[ "$(cat "$STAMP_FILE" 2>/dev/null || true)" != "$STAMP" || ( ${WSFAST_NATIVE:-1} != 0 && ! -e wsfast/_C.so ) ]]; then
  echo "wsfast: installing torch and the build tools (torch is several GB the first time)"
  python -m pip install --quiet --upgrade pip
  python -m pip install --quiet "setuptools>=77" wheel ninja "torch>=2.11" torchvision
  echo "wsfast: building the native libraries"
  python -m pip install --quiet --no-build-isolation --editable ".[dev]"
  echo "$STAMP" > "$STAMP_FILE"
fi
