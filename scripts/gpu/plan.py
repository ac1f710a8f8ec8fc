"""The steps of the GPU pass and their order.

Build first; then what is quick and tells most; then the long checks side by side; then timings,
which need the device for themselves; at last the benchmarks without peers on a GPU. A dry run goes
through the same steps on the CPU; of tests and benchmarks it only collects what would run.
"""

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from scripts.gpu.sanitize import TOOLS, sanitizer
from scripts.gpu.steps import Step

ROOMS = ("truncation", "fusion", "boxes", "levels", "crf", "seeds")
BENCHED_FIRST = ("truncation", "fusion", "boxes")  # these have peers on a GPU
BENCHED_LAST = ("crf", "seeds", "levels", "deploy", "cam")  # by what they tell of the kernels
NETWORKS = ("deploy", "cam")
COMPILED = ("fusion", "truncation")
PYTEST = (
    *("-m", "pytest", "-v", "--tb=short", "--durations=5", "-p", "no:randomly"),
    "--continue-on-collection-errors",
)
SIDE_BY_SIDE = {"OMP_NUM_THREADS": "2"}
# The rooms' own, and tests that take no device, some of which need packages a GPU machine lacks.
ELSEWHERE = ("tests/ops", "tests/native", "tests/scripts", "tests/docs")
LIBRARIES = {"cuda": ("wsfast/_C.so", "wsfast/_C_cuda.so"), "cpu": ("wsfast/_C.so",)}


@dataclass(frozen=True)
class Setting:
    """What the plan depends on: the device, where results go, cores."""

    device: str
    out: Path
    cores: int = os.cpu_count() or 1

    def file(self, name: str) -> str:
        """A result file."""
        return str(self.out / name)


def missing(*modules: str) -> str:
    """Why steps that need these modules cannot run; empty if they can."""
    lacking = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(lacking)}" if lacking else ""


def module(name: str, *arguments: str, setting: Setting) -> tuple[str, ...]:
    """The command of one of the scripts beside this."""
    return (sys.executable, "-m", f"scripts.gpu.{name}", "--device", setting.device, *arguments)


def beginning(setting: Setting) -> list[list[Step]]:
    """Facts, build, and every kernel once."""
    return [
        [Step("facts", module("facts", "--out", setting.file("facts.json"), setting=setting), 60,
              products=(setting.file("facts.json"),))],
        [Step("build", module("build", setting=setting), 300,
              products=LIBRARIES[setting.device])],
        [Step("kernels",
              module("kernels", "--coverage", setting.file("kernels.json"), setting=setting), 120,
              needs=("build",), products=(setting.file("kernels.json"),))],
    ]  # fmt: skip


def timings(setting: Setting) -> list[list[Step]]:
    """Roofline, levels and benchmarks, one at a time."""
    lone = [
        Step(name, module(name, "--out", setting.file(f"{name}.json"), setting=setting), seconds,
             needs=("build",), products=(setting.file(f"{name}.json"),))
        for name, seconds in (("roofline", 240.0), ("levels", 60.0))
    ]  # fmt: skip
    return [[step] for step in (*lone, *(benchmark(room, setting) for room in BENCHED_FIRST))]


def benchmark(room: str, setting: Setting, compiles: bool = False) -> Step:
    """One room's benchmarks at headline sizes; torch.compile takes long, so it comes apart."""
    name = f"bench-{room}-compiled" if compiles else f"bench-{room}"
    file = setting.file(f"{name}.json")
    modules = ("pytest_benchmark", "pytest_timeout", *(("timm",) if room in NETWORKS else ()))
    dry = setting.device == "cpu"
    options = ["--collect-only"] if dry else [f"--benchmark-json={file}"]
    if compiles:
        options.append("--compile")
    command = (
        sys.executable, *PYTEST, f"benchmarks/bench_{room}.py", "--device", setting.device,
        "--quick", "--threads", str(setting.cores), *options,
    )  # fmt: skip
    return Step(
        name, command, 120, needs=("build",), absent=missing(*modules),
        products=() if dry else (file,), environment={"OMP_NUM_THREADS": str(setting.cores)},
    )  # fmt: skip


def room_tests(room: str) -> list[str]:
    """Test files of a room that need no emulator."""
    files = sorted(Path("tests/ops").glob(f"test_{room}*.py"))
    return [str(file) for file in files if "emulated" not in file.name]


def tests(setting: Setting) -> list[Step]:
    """Tests that take a device: by room, and all others together."""
    absent = missing("hypothesis", "pytest_timeout", "torchmetrics")
    steps = []
    for room in ROOMS:
        command = (*tested(setting), *room_tests(room))
        steps.append(test_step(f"tests-{room}", command, absent))
    others = ["tests", *(f"--ignore={folder}" for folder in ELSEWHERE)]
    steps.append(test_step("tests-others", (*tested(setting), *others), absent))
    emulated = [str(file) for file in sorted(Path("tests/ops").glob("test_*_emulated.py"))]
    steps.append(
        test_step("emulator", (*tested(setting), *emulated), absent or missing("pybind11"))
    )
    return steps


def tested(setting: Setting) -> tuple[str, ...]:
    """The command of the tests that take a device, and no others."""
    options = ["--collect-only"] if setting.device == "cpu" else []
    return (sys.executable, *PYTEST, "--device", setting.device, "--only-device", *options)


def test_step(name: str, command: tuple[str, ...], absent: str) -> Step:
    """Tests with native kernels or failure."""
    environment = SIDE_BY_SIDE
    return Step(name, command, 240, needs=("build",), environment=environment, absent=absent)


def sanitizers(setting: Setting) -> list[Step]:
    """Each tool over every kernel; on the CPU only their absence can be tried."""
    absent = "" if sanitizer() else "compute-sanitizer is not installed"
    if setting.device == "cpu":
        absent = "needs a GPU"
    return [
        Step(tool, (sys.executable, "-m", "scripts.gpu.sanitize", tool), 260, needs=("build",),
             environment=SIDE_BY_SIDE, absent=absent)
        for tool in TOOLS
    ]  # fmt: skip


def plan(setting: Setting) -> list[list[Step]]:
    """All steps: groups in turn, the steps of a group side by side."""
    determinism = Step(
        "determinism", module("determinism", setting=setting), 90, needs=("build",),
        environment={"CUBLAS_WORKSPACE_CONFIG": ":4096:8", **SIDE_BY_SIDE},  # torch asks for it
    )  # fmt: skip
    together = [determinism, *tests(setting), *sanitizers(setting)]
    groups = [together] if setting.device == "cuda" else [[step] for step in together]
    last = [[benchmark(room, setting)] for room in BENCHED_LAST]
    last += [[benchmark(room, setting, compiles=True)] for room in COMPILED]
    return [*beginning(setting), *groups, *timings(setting), *last]
