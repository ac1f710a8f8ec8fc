"""The deployed module in the hands of torch's compilers."""

import warnings

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.deploy.small import FEED, INPUT, TwoLayers, assert_same, defects, small_localizer
from wsfast.deploy import Localizer, capture


def test_no_program_looks_at_the_values_of_its_pictures() -> None:
    images = defects(2).float()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*images must be of 0-1")
        torch.jit.script(Localizer(TwoLayers(), **FEED))(images)
        program = torch.export.export(small_localizer(), (images,), strict=False)
        program.module()(images)
    with FakeTensorMode(allow_non_fake_inputs=True):
        small_localizer()(torch.empty(2, 1, 50, 40))


def test_it_compiles_in_one_graph() -> None:
    torch._dynamo.reset()
    localizer, images = small_localizer(threshold=0.5), defects(3)
    compiled = torch.compile(localizer, fullgraph=True, backend="aot_eager", dynamic=False)
    assert_same(compiled(images), localizer(images))


def test_it_waits_for_no_value_and_shapes_need_none() -> None:
    """Under fake tensors there are no values: anything that looked at one would raise."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        found = small_localizer()(torch.empty(2, 1, 50, 40, dtype=torch.uint8))
    assert found.boxes.shape == (2, 16, 4)


def test_it_exports_with_a_dynamic_batch() -> None:
    localizer, images = small_localizer(), defects(5)
    batch = {"images": {0: torch.export.Dim("batch", min=1)}}
    program = torch.export.export(localizer, (images[:2],), dynamic_shapes=batch).module()
    for count in (1, 5):
        assert all(map(torch.equal, program(images[:count]), localizer(images[:count])))


def test_it_exports_and_compiles_with_sizes_of_which_one_is_the_network_s() -> None:
    localizer = small_localizer()
    own = (2, 1, *localizer.input_size)
    pictures = [torch.randint(256, size, dtype=torch.uint8) for size in (own, (2, 1, 70, 33))]
    sizes = {dim: torch.export.Dim(name, min=8, max=999) for dim, name in ((2, "h"), (3, "w"))}
    example = (torch.zeros(2, 1, 50, 40, dtype=torch.uint8),)
    program = torch.export.export(localizer, example, dynamic_shapes={"images": sizes}).module()
    torch._dynamo.reset()
    graphs = CompileCounter()
    compiled = torch.compile(localizer, fullgraph=True, backend=graphs, dynamic=True)
    for images in (*example, *pictures):
        for found in (program(images), compiled(images)):
            assert all(map(torch.equal, found, localizer(images)))
    assert graphs.frame_count == 1


def test_it_scripts_where_its_network_does(tmp_path) -> None:
    images = defects(4)
    for options in ({}, {"threshold": 0.4, "output_size": (20, 30)}, {"norm": None}):
        localizer = Localizer(TwoLayers(), **FEED, **options)
        scripted = torch.jit.script(localizer)
        for given in (images, images.float() / 255, images[:1]):
            assert all(map(torch.equal, scripted(given), localizer(given)))
    with pytest.raises(torch.jit.Error, match="images must be of shape"):
        scripted(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("size", [(50, 40), INPUT])
def test_it_traces(size: tuple[int, int]) -> None:
    localizer, images = small_localizer(), torch.randint(256, (2, 1, *size), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of what a trace keeps as it is
        traced = torch.jit.trace(localizer, (images,), check_trace=False)
    other = images.flip(0)
    assert all(map(torch.equal, traced(other), localizer(other)))


def test_cuda_graphs_need_cuda() -> None:
    with pytest.raises(ValueError, match=r"deploy.capture: example must be on a CUDA device"):
        capture(small_localizer(), defects(1))


def test_a_captured_graph_gives_the_same_boxes(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("needs --device cuda")
    localizer, images = small_localizer(threshold=0.5).cuda(), defects(6).cuda()
    captured = capture(localizer, images[:2])
    for first in (0, 2, 4):
        batch = images[first : first + 2]
        assert_same(captured(batch), localizer(batch))
    with pytest.raises(ValueError, match="images must be"):
        captured(images)
    wanted = localizer(images[:2])
    del localizer  # the graph keeps what it reads
    torch.full((1 << 24,), torch.nan, device="cuda")
    assert_same(captured(images[:2]), wanted)
