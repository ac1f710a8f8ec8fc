"""What is packed and built: setup.py's decisions, the sdist, and portable sources."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import wsfast
from wsfast import _installation, native

ROOT = Path(__file__).parents[1]


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """setup.py as a module, in an environment without its switches."""
    pytest.importorskip("setuptools")
    for name in ("CUDA", "NATIVE", "DEBUG", "RELEASE", "LOCAL_VERSION"):
        monkeypatch.delenv(f"WSFAST_{name}", raising=False)
    for name in ("FORCE_CUDA", "MAX_JOBS", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("wsfast_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_version_is_written_once(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert setup.version() == setup.source_version() == wsfast.__version__
    monkeypatch.setenv("WSFAST_LOCAL_VERSION", "cu13")
    assert setup.version() == f"{wsfast.__version__}+cu13"
    quoted = re.compile(rf"""["']{re.escape(wsfast.__version__)}["']""")
    files = [*ROOT.glob("*.py"), *ROOT.glob("*.toml"), *ROOT.glob("wsfast/**/*.py")]
    assert [f.name for f in files if quoted.search(f.read_text())] == ["_version.py"]


# mode (None: not set), FORCE_CUDA, obstacle -> CUDA or not, or the text of an exit
WANTED = [
    (None, None, None, True),
    (None, None, "nvcc was not found", False),
    ("auto", "1", "nvcc was not found", False),
    ("0", "1", None, False),
    ("1", None, None, True),
    ("1", None, "nvcc was not found", "WSFAST_CUDA=1, but nvcc was not found"),
    (None, "1", "nvcc was not found", "WSFAST_CUDA=1, but nvcc was not found"),
    ("yes", None, None, "WSFAST_CUDA must be auto, 1 or 0, got yes"),
]


@pytest.mark.parametrize(("mode", "force", "obstacle", "wanted"), WANTED)
def test_want_cuda(setup, monkeypatch, capsys, mode, force, obstacle, wanted) -> None:
    monkeypatch.setattr(setup, "cuda_obstacle", lambda: obstacle)
    for name, value in (("WSFAST_CUDA", mode), ("FORCE_CUDA", force)):
        if value is not None:
            monkeypatch.setenv(name, value)
    if isinstance(wanted, str):
        with pytest.raises(SystemExit, match=wanted):
            setup.want_cuda()
        return
    assert setup.want_cuda() is wanted
    boxed = f"building CPU kernels only: {obstacle}" in capsys.readouterr().err
    assert boxed == (obstacle is not None)


@pytest.mark.parametrize(
    ("torch_cuda", "nvcc", "obstacle"),
    [
        ("13.2", 13, None),
        ("13.2", 12, "nvcc is CUDA 12, torch .* is CUDA 13.2"),
        ("13.2", None, "nvcc was not found"),
        (None, 13, "is a CPU build"),
    ],
)
def test_cuda_obstacle(setup, monkeypatch, torch_cuda, nvcc, obstacle) -> None:
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    monkeypatch.setattr(setup, "nvcc_major", lambda: nvcc)
    said = setup.cuda_obstacle()
    assert said is None if obstacle is None else re.search(obstacle, said)


def test_nvcc_major(setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for home in (None, str(tmp_path / "nowhere")):
        monkeypatch.setattr(setup, "CUDA_HOME", home)
        assert setup.nvcc_major() is None
    program = tmp_path / "bin" / "nvcc"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.9, V12.9.86'\n")
    program.chmod(0o755)
    monkeypatch.setattr(setup, "CUDA_HOME", str(tmp_path))
    assert setup.nvcc_major() == 12


def test_default_jobs(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    page = 4096

    def machine(gigabytes: float) -> None:
        known = {"SC_PAGE_SIZE": page, "SC_PHYS_PAGES": int(gigabytes * 2**30) // page}
        monkeypatch.setattr(os, "sysconf", known.__getitem__)

    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for gigabytes, jobs in ((64, 8), (5, 2), (1, 1)):
        machine(gigabytes)
        assert setup.default_jobs() == jobs
    monkeypatch.delattr(os, "sysconf")  # as on Windows
    assert setup.default_jobs() == 8


def test_architectures(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for given in ("8.0;9.0+PTX", "8.0 9.0+PTX", " 8.0; 9.0+PTX "):
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", given)
        assert setup.architectures() == "8.0/9.0+PTX"


@pytest.mark.parametrize("given", [None, "", " "])
def test_an_empty_list_of_architectures_is_none(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    """As an unset build argument leaves it: torch would ask the GPUs, and there may be none."""
    if given is not None:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", given)
    setup.choose_architectures()
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == setup.DEFAULT_ARCHITECTURES
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    setup.choose_architectures()
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == "8.0"


@pytest.mark.parametrize(
    ("folder", "maps"), [("/env", 2), ("/my env", 1), ("/a,b", 1), ("/a(1)", 1)]
)
def test_nvcc_gets_no_path_that_it_would_take_apart(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: str, maps: int
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    monkeypatch.setattr(
        setup, "path_maps", lambda: [f"-ffile-prefix-map={folder}/=", "-fmap=/src/="]
    )
    flags = setup.nvcc_flags()
    assert sum("map=" in flag for flag in flags) == maps
    assert flags.count("-Xcompiler") == maps + 1


def test_torch_without_the_stable_abi_is_refused(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", "2.11.0a0+git")
    setup.check_torch()
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu126")
    with pytest.raises(SystemExit, match=r"torch must be at least 2.11, got 2.9.1\+cu126"):
        setup.check_torch()


def test_sdist_holds_the_sources_and_nothing_built(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", str(tmp_path)]
    environment = {**os.environ, "WSFAST_CUDA": "0"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    listed = set((tmp_path / "wsfast.egg-info" / "SOURCES.txt").read_text().split())
    present = {
        path.relative_to(ROOT).as_posix()
        for folder in ("csrc", "docs", "tests", "wsfast")
        for path in ROOT.glob(f"{folder}/**/*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    }
    assert present <= listed
    assert {"setup.py", "pyproject.toml", "LICENSE", "README.md"} <= listed
    assert {"mkdocs.yml", "scripts/test.sh"} <= listed
    folders = {name.split("/")[0] for name in listed if "/" in name and name[0] != "/"}
    assert {f for f in folders if not f.startswith("..")} <= {
        "benchmarks", "csrc", "docs", "scripts", "tests", "wsfast"
    }  # fmt: skip
    assert not [name for name in listed if name.endswith((".so", ".pyc", ".o"))]


X86 = re.compile(r"\b_mm\d*_\w+|\b__m(?:128|256|512|mask)\w*|immintrin|__builtin_(?:ia32|cpu)_")
X86_FILES = {"simd.h", "simd_avx2.h", "simd_avx512.h"}


def test_x86_code_is_behind_its_guard() -> None:
    """Only the vector types name x86 instructions, and simd.h includes them on x86 only."""
    found = {path.name for path in ROOT.glob("csrc/**/*.*") if X86.search(path.read_text())}
    assert found == X86_FILES
    depth, unguarded = [], []
    for line in (ROOT / "csrc/core/simd.h").read_text().splitlines():
        words = line.split()
        if line.startswith("#if"):
            depth.append("X86" in line or "__x86_64__" in line)
        elif line.startswith("#else"):
            depth[-1] = False
        elif line.startswith("#endif"):
            depth.pop()
        elif words and not any(depth) and (X86.search(line) or '"simd_avx' in line):
            unguarded.append(line)
    assert unguarded == []


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_a_library_tells_how_it_was_built(tmp_path: Path) -> None:
    source, library = tmp_path / "facts.cpp", tmp_path / "_C.so"
    source.write_text('#include "core/build_facts.h"\n')
    values = ["-DWSFAST_VERSION=1.2.3", "-DWSFAST_BUILT_WITH_TORCH=2.15.0+cu132"]
    command = ["g++", "-shared", "-fPIC", "-O3", f"-I{ROOT / 'csrc'}", *values, "-Wl,--strip-all"]
    subprocess.run([*command, str(source), "-o", str(library)], check=True)
    facts = _installation.build_facts(library)
    assert facts["version"] == "1.2.3"
    assert facts["torch"] == "2.15.0+cu132"
    assert facts["compiler"].startswith("GCC ")
    assert set(facts) == {"version", "torch", "compiler"}
    source.write_text("")
    assert _installation.build_facts(source) == {}


def test_the_library_here_tells_how_it_was_built() -> None:
    info = native.info()
    for name, facts in info["builds"].items():
        assert facts, f"{name} is older than its sources: build again"
        assert facts["version"] == wsfast.__version__
        assert torch.__version__.split(".")[0] == facts["torch"].split(".")[0]
        assert ("architectures" in facts) == (name == "_C_cuda")
    assert info["problems"] == [] or info["gpu"] != "none"


LOADED = {"_C": "loaded", "_C_cuda": "loaded"}
CUDA_13 = {"version": "1.0", "cuda": "13.0", "architectures": "8.0/9.0+PTX"}
# status, builds, torch's CUDA, the GPU's capability -> what is said
PROBLEMS = [
    (LOADED, {"_C_cuda": CUDA_13}, "13.2", (9, 0), []),
    (LOADED, {"_C_cuda": CUDA_13}, "13.2", None, []),
    ({"_C": "not built", "_C_cuda": "not built"}, {}, None, None, ["without _C every op runs"]),
    (LOADED, {"_C": {"version": "0.9"}}, "13.2", None, ["_C was built from wsfast 0.9"]),
    (LOADED, {"_C_cuda": CUDA_13}, "12.6", None, ["install wsfast's wheel for CUDA 12"]),
    (LOADED, {"_C_cuda": CUDA_13}, "13.2", (7, 5), ["build from source with .*LIST=7.5"]),
    ({"_C": "loaded", "_C_cuda": "not built"}, {}, "13.2", (9, 0), ["go through PyTorch ref"]),
]


@pytest.mark.parametrize(("status", "builds", "cuda", "capability", "said"), PROBLEMS)
def test_problems(monkeypatch, status, builds, cuda, capability, said) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    found = _installation.problems(status, builds, "1.0")
    assert len(found) == len(said)
    assert all(re.search(part, text) for part, text in zip(said, found, strict=True))
