"""What the stand-in is and refuses; `test_stand_in_gpu.py` runs these with the plugin."""

import pytest
import torch

import wsfast
from tests.stand_in_gpu import graphs


def test_wsfast_has_its_kernels_on_the_device(device: torch.device) -> None:
    ways = {name: kinds[device.type] for name, kinds in wsfast.native.info()["ops"].items()}
    assert set(ways.values()) == {"native", "host", "torch"}
    assert ways["cam_boxes"] == ways["build_lattice"] == ways["truncate_gradients"] == "native"


def test_fresh_memory_is_garbage(device: torch.device) -> None:
    assert (torch.empty(1000, device=device) != 0).all()


def test_operators_of_torch(device: torch.device) -> None:
    values = torch.arange(6.0, device=device).view(2, 3)
    found = (1 - values.T).sum(0)  # the number comes first
    assert found.is_cuda
    assert found.tolist() == [0.0, -9.0]
    values[:, 1] = 7
    assert values.cpu().tolist() == [[0, 7, 2], [3, 7, 5]]


def test_tensors_of_both_devices_are_refused(device: torch.device) -> None:
    here, there = torch.ones(3), torch.ones(3, device=device)
    with pytest.raises(RuntimeError, match=r"aten::add.*cuda:0 and, of shape \[3\], of the CPU"):
        torch.add(here, there)
    assert (there + torch.tensor(1.0)).tolist() == [2, 2, 2]


def test_waiting_during_a_capture_is_refused(device: torch.device) -> None:
    values = torch.ones(3, device=device)
    with (
        pytest.raises(RuntimeError, match="waits for the device"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        values.sum().item()


def test_a_graph_is_replayed_on_new_values(device: torch.device) -> None:
    values = torch.ones(3, device=device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        doubled = values * 2
    values.fill_(4)
    graph.replay()
    assert doubled.tolist() == [8, 8, 8]
    assert not graphs.is_capturing()
