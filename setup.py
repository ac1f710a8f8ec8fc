"""Native build of wsfast: `_C` (CPU, always) and `_C_cuda` (when nvcc fits the torch in use).

Metadata lives in pyproject.toml. Environment:
  WSFAST_CUDA=auto|1|0   build CUDA kernels if possible | or fail | never   (default auto)
  WSFAST_NATIVE=0        build nothing; every op runs its PyTorch reference
  WSFAST_DEBUG=1         -O0 -g and assertions
  WSFAST_RELEASE=1       stripped libraries without line tables, as in the wheels
  WSFAST_LOCAL_VERSION   label of a wheel's variant: `cu13` makes the version 0.1.0+cu13
  TORCH_CUDA_ARCH_LIST   GPU architectures (default "8.0;9.0+PTX", no GPU needed to build)
  MAX_JOBS               parallel compile jobs (default: by cores and memory)
"""

import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

from setuptools import find_packages, setup

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:
    sys.exit(
        "wsfast builds with setuptools>=77, and this environment has an older one: "
        'pip install "setuptools>=77" ninja, or drop --no-build-isolation.'
    )
try:
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
except ImportError:
    sys.exit(
        "wsfast builds against torch, and torch cannot be imported here: install torch>=2.11 "
        "first, or drop --no-build-isolation."
    )

ROOT = Path(__file__).resolve().parent
OLDEST_TORCH = (2, 11)
TARGET_TORCH = "0x020b000000000000"  # stable ABI of torch 2.11: one binary for every later torch
DEFAULT_ARCHITECTURES = "8.0;9.0+PTX"
DEBUG = os.environ.get("WSFAST_DEBUG", "0") == "1"
RELEASE = os.environ.get("WSFAST_RELEASE", "0") == "1"


def source_version() -> str:
    """The version in wsfast/_version.py."""
    text = (ROOT / "wsfast" / "_version.py").read_text()
    return re.findall(r'^__version__ = "(.+)"$', text, re.MULTILINE)[0]


def version() -> str:
    """The version, with the variant's label where one is given."""
    label = os.environ.get("WSFAST_LOCAL_VERSION", "")
    return f"{source_version()}+{label}" if label else source_version()


def box(message: str) -> None:
    """Print a message that survives a long build log."""
    rule = "=" * 88
    print(f"{rule}\nwsfast: {message}\n{rule}", file=sys.stderr)


def nvcc_major() -> int | None:
    """Major version of the nvcc that torch's build helper would call, None without one."""
    if CUDA_HOME is None:
        return None
    try:
        text = subprocess.check_output([f"{CUDA_HOME}/bin/nvcc", "--version"], text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r"release (\d+)\.", text)
    return int(found.group(1)) if found else None


def cuda_obstacle() -> str | None:
    """Why CUDA kernels cannot be built here, None if they can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a CPU build"
    major = nvcc_major()
    if major is None:
        return "nvcc was not found"
    if major != int(torch.version.cuda.split(".")[0]):
        return f"nvcc is CUDA {major}, torch {torch.__version__} is CUDA {torch.version.cuda}"
    return None


def want_cuda() -> bool:
    """Resolve WSFAST_CUDA (FORCE_CUDA=1 counts as 1)."""
    mode = os.environ.get("WSFAST_CUDA", "1" if os.environ.get("FORCE_CUDA") == "1" else "auto")
    if mode not in ("auto", "0", "1"):
        sys.exit(f"wsfast: WSFAST_CUDA must be auto, 1 or 0, got {mode}")
    if mode == "0":
        return False
    obstacle = cuda_obstacle()
    if obstacle and mode == "1":
        sys.exit(f"wsfast: WSFAST_CUDA=1, but {obstacle}.")
    if obstacle:
        box(f"building CPU kernels only: {obstacle}.")
    return obstacle is None


def default_jobs() -> int:
    """One compile job per core and per 2 GB of memory, where the system tells its memory."""
    cores = os.cpu_count() or 1
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return cores
    return max(1, min(cores, memory // (2 << 30)))


def check_torch() -> None:
    """Refuse a torch whose headers have no stable ABI to build against."""
    found = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if found < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        sys.exit(f"wsfast: torch must be at least {oldest}, got {torch.__version__}.")


def architectures() -> str:
    """The GPU architectures to build for, as 8.0/9.0+PTX: nvcc splits a -D at commas."""
    return re.sub(r"[;\s]+", "/", os.environ["TORCH_CUDA_ARCH_LIST"].strip())


def sources(pattern: str) -> list[str]:
    """Source files of every room that match, relative to the root."""
    return [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob(pattern))]


def common_flags() -> list[str]:
    """For both compilers: the stable ABI's version, and what `wsfast info` tells of the build."""
    return [
        f"-DTORCH_TARGET_VERSION={TARGET_TORCH}",
        f"-DWSFAST_VERSION={source_version()}",
        f"-DWSFAST_BUILT_WITH_TORCH={torch.__version__}",
    ]


def path_maps() -> list[str]:
    """No folder of the build machine in error messages; the last one that fits is taken."""
    folders = [ROOT, Path(torch.__path__[0]).parent]
    return [f"-ffile-prefix-map={folder}/=" for folder in folders]


def link_flags() -> list[str]:
    """Linker flags; torch's stable headers call dlsym, a library of its own before glibc 2.34."""
    if sys.platform != "linux":
        return []
    return ["-ldl", "-Wl,--strip-all"] if RELEASE else ["-ldl"]


def cxx_flags() -> list[str]:
    """Host compiler flags; SIMD is chosen at run time, so no -march here."""
    level = ["-O0", "-g"] if DEBUG else ["-O3", "-DNDEBUG", "-g0"]
    return [
        *level,
        "-std=c++20",
        "-Wno-psabi",
        *path_maps(),
        "-fvisibility=hidden",
        *common_flags(),
    ]


def nvcc_flags() -> list[str]:
    """Device compiler flags; no --use_fast_math, results follow the reference."""
    level = ["-O0", "-G"] if DEBUG else ["-O3", "-DNDEBUG"]
    lines = [] if RELEASE or DEBUG else ["-lineinfo"]
    # nvcc splits these at commas and hands them to a shell unquoted.
    plain = [flag for flag in path_maps() if flag == shlex.quote(flag) and "," not in flag]
    host = [word for flag in plain for word in ("-Xcompiler", flag)]
    return [
        *level, *lines, *common_flags(), *host, "-std=c++20", "-DUSE_CUDA",
        f"-DWSFAST_ARCHITECTURES={architectures()}",
        "--threads", "2", "-Xfatbin", "-compress-all", "-Xcompiler", "-fvisibility=hidden",
    ]  # fmt: skip


def cpu_extension() -> CppExtension:
    """The library with every schema and the CPU kernels."""
    return CppExtension(
        "wsfast._C",
        [*sources("csrc/core/*.cpp"), *sources("csrc/ops/*/*_cpu.cpp")],
        depends=sources("csrc/**/*.h"),
        py_limited_api=True,
        extra_compile_args={"cxx": cxx_flags()},
        extra_link_args=link_flags(),
    )


def static_cudart_folder() -> str | None:
    """Where libcudart_static.a lies: with nvcc, in the usual places, or in pip's CUDA packages."""
    homes = [
        Path(CUDA_HOME),
        Path("/usr/local/cuda"),
        *Path(torch.__path__[0]).parent.glob("nvidia/cu*"),
    ]
    targets = (f"targets/{platform.machine()}-linux/lib", "targets/sbsa-linux/lib")
    folders = [home / name for home in homes for name in ("lib64", "lib", *targets)]
    return next((str(f) for f in folders if (f / "libcudart_static.a").exists()), None)


def choose_architectures() -> None:
    """Say what to compile for; of an empty list torch would ask the GPUs."""
    if not os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip():
        os.environ["TORCH_CUDA_ARCH_LIST"] = DEFAULT_ARCHITECTURES


def cuda_extension() -> CUDAExtension:
    """The library with the CUDA kernels; static cudart where there is one: only a driver needed."""
    choose_architectures()
    extension = CUDAExtension(
        "wsfast._C_cuda",
        [*sources("csrc/core/*.cu"), *sources("csrc/ops/*/*_cuda.cu")],
        depends=[*sources("csrc/**/*.h"), *sources("csrc/**/*.cuh")],
        py_limited_api=True,
        extra_compile_args={"cxx": cxx_flags(), "nvcc": nvcc_flags()},
        extra_link_args=link_flags(),
    )
    extension.libraries = [
        name for name in extension.libraries if name not in ("cudart", "c10_cuda")
    ]
    folder = static_cudart_folder()
    if folder is None:
        extension.libraries.append("cudart")
    else:
        extension.library_dirs.append(folder)
        extension.libraries += ["cudart_static", "dl", "rt", "pthread"]
    return extension


def extensions() -> list[CppExtension]:
    """What this build makes."""
    if os.environ.get("WSFAST_NATIVE", "1") == "0":
        box("WSFAST_NATIVE=0: no native kernels, every op runs its PyTorch reference.")
        return []
    check_torch()
    os.environ.setdefault("MAX_JOBS", str(default_jobs()))
    return [cpu_extension(), cuda_extension()] if want_cuda() else [cpu_extension()]


class PlatformWheel(bdist_wheel):
    """A wheel for every Python, and for one platform where it holds libraries.

    The libraries do not use Python's C API.
    """

    def finalize_options(self) -> None:  # noqa: D102
        super().finalize_options()
        self.root_is_pure = not self.distribution.has_ext_modules()

    def get_tag(self) -> tuple[str, str, str]:  # noqa: D102
        return "py3", "none", "any" if self.root_is_pure else super().get_tag()[2]


# The benchmarks stay beside the package in a checkout and go inside it in a wheel.
if __name__ == "__main__":
    setup(
        version=version(),
        packages=[*find_packages(include=["wsfast*"]), "wsfast.benchmarks"],
        package_dir={"wsfast.benchmarks": "benchmarks"},
        package_data={
            "wsfast": ["py.typed"],
            "wsfast.benchmarks": ["page.css", "recreations/*.cpp"],
        },
        ext_modules=extensions(),
        cmdclass={
            "build_ext": BuildExtension.with_options(no_python_abi_suffix=True),
            "bdist_wheel": PlatformWheel,
        },
    )
