"""What is installed here: the distribution, how its libraries were built, and what does not fit."""

import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any

import torch

from ._version import __version__

FOLDER = Path(__file__).resolve().parent


def distribution() -> dict[str, str]:
    """Version, kind and wheel tag of the wsfast that is imported, and its folder.

    Returns:
        ``version`` with the variant's label (``0.1.0+cu13``); ``kind``: ``"wheel"``,
        ``"editable"`` or ``"source folder"``; ``tag``, empty without a wheel; ``folder``.
    """
    facts = {"version": __version__, "kind": "source folder", "tag": "", "folder": str(FOLDER)}
    try:
        found = importlib.metadata.distribution("wsfast")
    except importlib.metadata.PackageNotFoundError:
        return facts
    origin = json.loads(found.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        return facts | {"version": found.version, "kind": "editable"}
    installed_here = Path(str(found.locate_file("wsfast"))).resolve() == FOLDER
    tags = re.findall(r"^Tag: (\S+)", found.read_text("WHEEL") or "", re.MULTILINE)
    if not installed_here or not tags:  # another copy is imported, from the current folder say
        return facts
    return facts | {"version": found.version, "kind": "wheel", "tag": tags[0]}


def build_facts(library: Path) -> dict[str, str]:
    """How a library was built, read from its file (csrc/core/build_facts.h), loadable or not.

    Returns:
        ``version``, ``torch`` and ``compiler``; of CUDA kernels also ``cuda`` and
        ``architectures``. Empty where the file does not say.
    """
    found = re.search(rb"wsfast build: ([^\0]+)\0", library.read_bytes())
    if found is None:
        return {}
    pairs = (fact.split("=", 1) for fact in found.group(1).decode().split("; "))
    return {fact[0]: fact[1] for fact in pairs}


def covers(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether kernels for ``architectures`` run on a GPU.

    Machine code runs on its own major version from its minor version on, PTX on everything newer.

    >>> covers("8.0/9.0+PTX", (8, 6)), covers("8.0/9.0+PTX", (7, 5)), covers("9.0+PTX", (12, 0))
    (True, False, True)
    """
    for name in architectures.split("/"):
        number = re.match(r"(\d+)\.(\d+)", name)
        if number is None:  # a name such as "Hopper": not for us to judge
            return True
        built = (int(number.group(1)), int(number.group(2)))
        forward = name.endswith("+PTX") and capability >= built
        if forward or (capability[0] == built[0] and capability >= built):
            return True
    return False


def _library_problems(name: str, state: str, facts: dict[str, str], version: str) -> list[str]:
    built = facts.get("version", version)
    if built != version:
        return [f"{name} was built from wsfast {built}: build again"]
    if name == "_C" and state != "loaded":
        return ["without _C every op runs its PyTorch reference, which is much slower"]
    return []


def _cuda_problems(state: str, facts: dict[str, str]) -> list[str]:
    problems = []
    cuda, torch_cuda = facts.get("cuda"), torch.version.cuda
    if cuda and torch_cuda and cuda.split(".")[0] != torch_cuda.split(".")[0]:
        problems.append(
            f"_C_cuda is for CUDA {cuda}, torch for CUDA {torch_cuda}: install wsfast's wheel for "
            f"CUDA {torch_cuda.split('.')[0]}, or build from source"
        )
    if not torch.cuda.is_available():
        return problems
    if state != "loaded":
        problems.append("without _C_cuda CUDA tensors go through PyTorch references")
    capability = torch.cuda.get_device_capability()
    if facts and not covers(facts.get("architectures", ""), capability):
        problems.append(
            f"_C_cuda has no kernels for this GPU (sm_{capability[0]}{capability[1]}): build from "
            f"source with TORCH_CUDA_ARCH_LIST={capability[0]}.{capability[1]}"
        )
    return problems


def problems(
    status: dict[str, str], builds: dict[str, dict[str, str]], version: str = __version__
) -> list[str]:
    """What does not fit together here, and what to do about it, in one line each.

    Args:
        status: state of each library, ``"loaded"`` or the reason why not.
        builds: :func:`build_facts` of each library that is there.
        version: of the Python code.
    """
    found = [
        problem
        for name, state in status.items()
        for problem in _library_problems(name, state, builds.get(name, {}), version)
    ]
    return found + _cuda_problems(status.get("_C_cuda", "not built"), builds.get("_C_cuda", {}))


def gpu() -> str:
    """Name and compute capability of the current CUDA device, or ``"none"``."""
    if not torch.cuda.is_available():
        return "none"
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()} (sm_{major}{minor})"


def summary(status: dict[str, str], paths: dict[str, Path | None]) -> dict[str, Any]:
    """The part of :func:`wsfast.info` that is about the installation."""
    builds = {name: build_facts(path) for name, path in paths.items() if path is not None}
    return {
        "distribution": distribution(),
        "builds": builds,
        "problems": problems(status, builds),
    }
