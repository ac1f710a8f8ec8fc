"""Builds `wsfast_native_test`, the sanitized pybind11 module behind the `emulator` fixture.

Every `bind_<room>.cpp` here becomes part of it; no list to edit. A second run with unchanged
sources compiles nothing, and a changed room recompiles that room only: objects are kept under a
hash of their preprocessed text in the user's cache folder (WSFAST_TEST_CACHE overrides it).
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MODULE = "wsfast_native_test"
FLAGS = [
    "-std=c++20", "-Og", "-g1", "-fPIC", "-fvisibility=hidden", "-fno-omit-frame-pointer",
    "-fno-strict-aliasing",  # atomics see long as long long, as CUDA does
    "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined",
    "-Wall", "-Wextra", "-DWSFAST_EMULATOR",
]  # fmt: skip
PATTERNS = ("csrc/**/*.h", "csrc/**/*.cuh", "tests/native/*.h", "tests/native/*.cuh",
            "tests/native/*.cpp")  # fmt: skip


class Unavailable(Exception):
    """This machine cannot build or run the emulator; the message says why."""


def compiler() -> str:
    """The C++ compiler with ASan's runtime, or Unavailable."""
    if not sys.platform.startswith("linux"):
        raise Unavailable(f"the CUDA emulator needs Linux, this is {sys.platform}")
    name = os.environ.get("CXX", "g++")
    path = shutil.which(name)
    if path is None:
        raise Unavailable(f"the CUDA emulator needs a C++ compiler, {name} was not found")
    if not Path(runtime_library(path, "libasan.so")).is_absolute():
        raise Unavailable(
            f"the CUDA emulator needs g++ with AddressSanitizer, {name} has no libasan.so"
        )
    return path


def runtime_library(cxx: str, name: str) -> str:
    """Full path of one of the compiler's runtime libraries (just `name` if it has none)."""
    command = [cxx, f"-print-file-name={name}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def include_flags() -> list[str]:
    """Headers of pybind11, Python and the emulator."""
    try:
        import pybind11
    except ImportError as error:
        raise Unavailable("the CUDA emulator needs pybind11: pip install pybind11") from error
    system = [pybind11.get_include(), sysconfig.get_paths()["include"]]
    return [f"-I{HERE}", *(flag for folder in system for flag in ("-isystem", folder))]


def cache_folder() -> Path:
    """A folder that only this user can write."""
    base = os.environ.get("WSFAST_TEST_CACHE")
    if base is None:
        base = os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")
    folder = Path(base) / "wsfast-native-test"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder
    except OSError:
        return Path(tempfile.mkdtemp(prefix="wsfast-native-test-"))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One build at a time."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def digest(*parts: str | bytes) -> str:
    """Short hash of all parts."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "little") + data)
    return sha.hexdigest()[:20]


def run(command: list[str], text: bytes = b"") -> bytes:
    """Output of a compiler command; its messages become the error, or are printed."""
    done = subprocess.run(command, input=text, capture_output=True)
    messages = done.stderr.decode(errors="replace")
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{messages}")
    if messages:
        print(messages, file=sys.stderr)  # warnings
    return done.stdout


def source_files() -> list[Path]:
    """The C++ files that are compiled."""
    return [HERE / "module.cpp", *sorted(HERE.glob("bind_*.cpp"))]


def digest_of_files(toolchain: str, patterns: Iterable[str]) -> str:
    """Hash of everything that a library is made of."""
    files = sorted(path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file())
    parts = [part for path in files for part in (str(path), path.read_bytes())]
    return digest(toolchain, *parts)


def write_room_list(cache: Path) -> Path:
    """Tell module.cpp which bind functions there are; the folder of rooms.inc."""
    rooms = [path.stem.removeprefix("bind_") for path in source_files()[1:]]
    text = "".join(f"WS_ROOM({room})\n" for room in rooms)
    folder = cache / f"rooms-{digest(text)}"
    folder.mkdir(exist_ok=True)
    (folder / "rooms.inc").write_text(text)
    return folder


def compile_object(command: list[str], source: Path, toolchain: str, cache: Path) -> Path:
    """Object file of one source, from the cache where its preprocessed text is unchanged."""
    text = run([*command, "-E", str(source)])
    target = cache / f"{source.stem}-{digest(toolchain, text)}.o"
    if not target.exists():
        fresh = target.with_suffix(".tmp")
        run([*command, "-x", "c++-cpp-output", "-c", "-", "-o", str(fresh)], text)
        fresh.replace(target)
    target.touch()
    return target


def discard_old(cache: Path, keep: int = 60) -> None:
    """Drop all but the most recently used objects and modules."""
    files = [path for path in cache.iterdir() if path.suffix in (".o", ".so", ".tmp")]
    for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)[keep:]:
        path.unlink(missing_ok=True)


def compile_in_parallel(commands: dict[Path, list[str]], toolchain: str, cache: Path) -> list[str]:
    """Object files of sources, each by a command of its own."""
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 4)) as pool:
        objects = pool.map(
            lambda source: compile_object(commands[source], source, toolchain, cache), commands
        )
        return [str(path) for path in objects]


def link_module(command: list[str], toolchain: str, cache: Path, target: Path) -> None:
    """Compile what is missing in the cache and link everything into `target`."""
    objects = compile_in_parallel(dict.fromkeys(source_files(), command), toolchain, cache)
    run([command[0], "-shared", "-fsanitize=address,undefined", *objects, "-o", str(target)])


def build_module() -> Path:
    """Path of the module for the sources as they are now; compiles what is missing."""
    cxx = compiler()
    flags = [*FLAGS, *include_flags()]
    toolchain = digest(run([cxx, "--version"]), sys.version, *flags)
    cache = cache_folder()
    with locked(cache):
        while True:
            tree = digest_of_files(toolchain, PATTERNS)
            module = cache / f"{MODULE}-{tree}.so"
            if module.exists():
                module.touch()
                return module
            command = [cxx, *flags, f"-I{write_room_list(cache)}"]
            fresh = module.with_suffix(".tmp")
            link_module(command, toolchain, cache, fresh)
            edited = digest_of_files(toolchain, PATTERNS) != tree  # by somebody, meanwhile
            if not edited:
                fresh.replace(module)
            discard_old(cache)


if __name__ == "__main__":
    print(build_module())
