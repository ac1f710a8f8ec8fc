"""One op, one room: each has its parts in every tree, and its tests the same names."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = sorted(path.parent.name for path in (ROOT / "wsfast/ops").glob("*/__init__.py"))
PARTS = (
    "wsfast/ops/{}/reference.py",
    "wsfast/ops/{}/registration.py",
    "csrc/ops/{0}/{0}_math.h",
    "csrc/ops/{0}/{0}_cpu.cpp",
    "tests/ops/test_{}.py",
    "benchmarks/bench_{}.py",
    "docs/rooms/{}.md",
)
CUDA_PARTS = (
    "csrc/ops/{0}/{0}_kernels.cuh",
    "csrc/ops/{0}/{0}_cuda.cu",
    "tests/native/bind_{}.cpp",
)
TESTS = {
    "test_forward_matches_reference",
    "test_deterministic",
    "test_errors",
    "test_opcheck",
    "test_export",
    "test_compile_fullgraph",
    "test_script_and_trace",
}


def names_of_tests(room: str) -> set[str]:
    """Over all of its files."""
    files = (ROOT / "tests/ops").glob(f"test_{room}*.py")
    trees = (ast.parse(path.read_text()) for path in files)
    return {node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_its_parts(room: str) -> None:
    missing = [part.format(room) for part in PARTS if not (ROOT / part.format(room)).exists()]
    assert missing == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_with_cuda_has_all_of_its_parts(room: str) -> None:
    """`levels` has none of them."""
    found = [(ROOT / part.format(room)).exists() for part in CUDA_PARTS]
    assert all(found) or not any(found), dict(zip(CUDA_PARTS, found, strict=True))


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_share_the_names_of_their_tests(room: str) -> None:
    found = names_of_tests(room)
    assert TESTS - found == set()
    assert found & {"test_gradcheck", "test_not_differentiable"}
