"""The loader, the fallback and the binary's promises."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT, python
from wsfast import native


def test_every_op_is_native_on_the_cpu() -> None:
    facts = native.info()
    assert facts["libraries"]["_C"] == "loaded"
    assert {op: row["cpu"] for op, row in facts["ops"].items()} == dict.fromkeys(
        facts["ops"], "native"
    )


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
@pytest.mark.parametrize("name", native.LIBRARIES)
def test_library_uses_the_stable_abi_only(name: str) -> None:
    """No undefined at::, c10:: or torch:: C++ symbol: one binary for every torch from 2.11 on."""
    path = native.library_path(name)
    if path is None:
        pytest.skip(f"{name} was not built")
    symbols = subprocess.run(["nm", "-D", "-u", path], capture_output=True, text=True, check=True)
    assert "torch_call_dispatcher" in symbols.stdout  # nm did read the table
    assert not re.findall(r"_ZN\w*?(?:2at|3c10|5torch)\w*", symbols.stdout)


def test_schemas_mirror_the_source() -> None:
    """The schemas in Python, used where _C is missing, are those of csrc, letter by letter."""
    written = "".join(p.read_text() for p in sorted(ROOT.glob("csrc/ops/*/*_cpu.cpp")))
    found = {
        "".join(re.findall(r'"([^"]*)"', definition))
        for definition in re.findall(r"m\.def\(([^;]*)\);", written)
    }
    assert found == set(native.registered_schemas().values())


def test_missing_library_falls_back_with_one_warning(tmp_path: Path) -> None:
    package = tmp_path / "wsfast"
    shutil.copytree(ROOT / "wsfast", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    code = """
import warnings, torch, wsfast
grads = torch.tensor([[[[-1.0, 1.0], [2.0, 3.0]]]], requires_grad=True)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        out = wsfast.truncate_gradients(grads, 50)
    wsfast.fuse_cams([torch.rand(2, 3, 3)], (6, 6))
out.sum().backward()
print(out.flatten().tolist(), grads.grad.flatten().tolist())
print([str(w.message).split(":")[0] for w in caught if "native" in str(w.message)])
"""
    options = {"cwd": tmp_path, "capture_output": True, "text": True}
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, **options)
    assert done.stdout.splitlines() == [
        "[0.0, 0.0, 2.0, 3.0] [0.0, 0.0, 1.0, 1.0]",
        "['wsfast.truncate_gradients', 'wsfast.fuse_cams']",
    ], done.stderr
    strict = {**environment, "WSFAST_REQUIRE_NATIVE": "1"}
    done = subprocess.run([sys.executable, "-c", "import wsfast"], env=strict, **options)
    assert done.returncode != 0
    assert "WSFAST_REQUIRE_NATIVE=1, but _C is not built" in done.stderr


@pytest.mark.parametrize("level", ["scalar", "avx2"])
def test_every_instruction_set_gives_the_same_masks(level: str) -> None:
    code = """
import torch, wsfast
torch.manual_seed(0)
g = torch.randn(2, 3, 90, 91)
t = wsfast.truncate_gradients(g, 37.5)
f = wsfast.fuse_cams([torch.rand(2, 9, 9), torch.rand(2, 18, 20)], (40, 41))
options = {"foreground": 9, "background": 90, "foreground_weights": "activation"}
s = wsfast.sample_seeds(torch.rand(2, 70, 71), seed=1, **options)
print(wsfast.info()["cpu_simd"], int((t > 0).sum()), round(float(t.double().sum()), 6))
print(round(float(f.double().sum()), 2), int((s * torch.arange(s.numel()).view_as(s)).sum()))
"""
    best, other = python("-c", code), python("-c", code, WSFAST_SIMD=level)
    assert best.returncode == other.returncode == 0, other.stderr
    assert best.stdout.split()[1:] == other.stdout.split()[1:]
