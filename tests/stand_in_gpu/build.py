"""Builds the stand-in's library: torch's device in `device.cpp`, and the CUDA library's sources.

`csrc/ops/*/*_cuda.cu` are compiled by the host's compiler for the emulator of `tests/native`.
"""

from pathlib import Path

import torch

from tests.native.build import (
    ROOT,
    Unavailable,
    cache_folder,
    compile_in_parallel,
    compiler,
    digest,
    digest_of_files,
    discard_old,
    locked,
    run,
)

HERE = Path(__file__).resolve().parent
TORCH = Path(torch.__file__).resolve().parent
FLAGS = ["-std=c++20", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-w"]
STABLE = "-DTORCH_TARGET_VERSION=0x020b000000000000"
PATTERNS = (
    "csrc/**/*.h",
    "csrc/**/*.cuh",
    "csrc/**/*.cu",
    "tests/native/*.h",
    "tests/stand_in_gpu/*",
)


def commands(cxx: str) -> dict[Path, list[str]]:
    """The compiler's command for each source."""
    folders = [TORCH / "include", TORCH / "include/torch/csrc/api/include"]
    torch_headers = [flag for folder in folders for flag in ("-isystem", str(folder))]
    emulated = ["-DWSFAST_EMULATOR", STABLE, f"-I{ROOT / 'tests' / 'native'}",
                "-include", str(HERE / "runtime.h"), "-x", "c++"]  # fmt: skip
    device = HERE / "device.cpp"
    kernels = sorted(ROOT.glob("csrc/ops/*/*_cuda.cu"))
    found = {source: [cxx, *FLAGS, *torch_headers, *emulated] for source in kernels}
    return {device: [cxx, *FLAGS, *torch_headers], **found}


def build_library() -> Path:
    """Path of the library for the sources as they are now; compiles what is missing."""
    if torch.version.cuda is None:
        raise Unavailable("the stand-in for a GPU needs a torch with CUDA, if no driver")
    cxx = compiler()
    toolchain = digest(run([cxx, "--version"]), torch.__version__, *FLAGS)
    cache = cache_folder()
    with locked(cache):
        library = cache / f"stand_in_gpu-{digest_of_files(toolchain, PATTERNS)}.so"
        if not library.exists():
            objects = compile_in_parallel(commands(cxx), toolchain, cache)
            fresh = library.with_suffix(".tmp")
            libraries = [f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-lc10"]  # which are loaded already
            run([cxx, "-shared", *objects, *libraries, "-o", str(fresh)])
            fresh.replace(library)
        library.touch()
        discard_old(cache)
    return library
