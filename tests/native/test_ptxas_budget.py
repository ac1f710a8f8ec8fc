"""scripts/ptxas_budget.py: what it reads from ptxas and what it calls an offence."""

import importlib.util
import json
import shutil
import sys

import pytest

from .build import ROOT

SPEC = importlib.util.spec_from_file_location("ptxas_budget", ROOT / "scripts/ptxas_budget.py")
ptxas_budget = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(ptxas_budget)

KERNEL = "_ZN6wsfast3toy11some_kernelIfEEvPKT_"
OTHER = "_ZN6wsfast3toy12other_kernelEv"
OUTPUT = f"""
ptxas info    : 28 bytes gmem, 224 bytes cmem[4]
ptxas info    : Compiling entry function '{KERNEL}' for 'sm_80'
ptxas info    : Function properties for helper
    8 bytes stack frame, 90 bytes spill stores, 90 bytes spill loads
ptxas info    : Function properties for {KERNEL}
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 37 registers, used 1 barriers, 8192 bytes smem, 416 bytes cmem[0]
ptxas info    : Compile time = 30.617 ms
ptxas info    : Compiling entry function '{OTHER}' for 'sm_90'
ptxas info    : Function properties for {OTHER}
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers, 416 bytes cmem[0]
"""
USAGE = {"registers": 37, "spill_bytes": 12, "stack_bytes": 16, "shared_bytes": 8192}
LEAN = {"registers": 12, "spill_bytes": 0, "stack_bytes": 0, "shared_bytes": 0}


def test_parse():
    assert ptxas_budget.parse(OUTPUT) == {(KERNEL, "sm_80"): USAGE, (OTHER, "sm_90"): LEAN}


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="needs c++filt")
def test_demangle():
    names = ptxas_budget.demangle([KERNEL, OTHER])
    assert names == {KERNEL: "toy::some_kernel<float>", OTHER: "toy::other_kernel"}


def test_offences():
    budget = {"k": {"sm_80": LEAN}}
    assert ptxas_budget.offences(budget, budget, slack=0) == []
    grown = {"k": {"sm_80": {**LEAN, "registers": 14, "spill_bytes": 8}}}
    assert ptxas_budget.offences(grown, budget, slack=0) == [
        "k [sm_80]: registers 14, budget 12",
        "k [sm_80]: spill_bytes 8, budget 0",
    ]
    assert len(ptxas_budget.offences(grown, budget, slack=2)) == 1
    assert "no budget" in ptxas_budget.offences({"new": grown["k"]}, budget, slack=0)[0]


def run_main(monkeypatch, budget_file, kernels, *arguments):
    monkeypatch.setattr(ptxas_budget, "BUDGET", budget_file)
    monkeypatch.setattr(ptxas_budget, "ROOT", budget_file.parent)
    monkeypatch.setattr(ptxas_budget, "sources", lambda rooms: [])
    monkeypatch.setattr(ptxas_budget, "measure", lambda files, jobs: kernels)
    monkeypatch.setattr(ptxas_budget, "nvcc_version", lambda: "13.0.88")
    monkeypatch.setattr(sys, "argv", ["ptxas_budget.py", *arguments])
    return ptxas_budget.main()


def test_update_then_check(monkeypatch, tmp_path, capsys):
    file = tmp_path / "budget.json"
    kernels = {"a::one": {"sm_80": LEAN, "sm_90": LEAN}, "b::two": {"sm_80": USAGE}}
    assert run_main(monkeypatch, file, kernels) == 1  # no budget yet
    assert run_main(monkeypatch, file, kernels, "--update") == 0
    assert json.loads(file.read_text()) == {"nvcc": "13.0.88", "kernels": kernels}
    assert run_main(monkeypatch, file, kernels) == 0
    capsys.readouterr()
    assert run_main(monkeypatch, file, {"a::one": kernels["a::one"]}) == 1
    assert "b::two: has a budget but no longer exists" in capsys.readouterr().out
    only_a = {"a::new": {"sm_80": LEAN}}
    assert run_main(monkeypatch, file, only_a, "a", "--update") == 0  # other rooms stay
    assert json.loads(file.read_text())["kernels"] == {**only_a, "b::two": kernels["b::two"]}


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_nvcc_reports_a_spill(tmp_path):
    source = tmp_path / "spill.cu"
    source.write_text("""
        __global__ void __launch_bounds__(1024, 2) spill_kernel(const volatile float* x, float* y) {
          float values[200];  // far more than the 32 registers a thread may have here
          #pragma unroll
          for (int i = 0; i < 200; ++i) values[i] = x[threadIdx.x + i * 1024];
          float sum = 0;
          #pragma unroll
          for (int i = 199; i >= 0; --i) sum = sum * values[i] + values[199 - i];
          y[threadIdx.x] = sum;
        }
    """)
    usages = ptxas_budget.parse(ptxas_budget.compile_source(source, []))
    assert {architecture for _, architecture in usages} == {"sm_80", "sm_90"}
    assert all(usage["spill_bytes"] > 0 for usage in usages.values())
