"""Changes of a model that calls in several threads share, and hooks that see one thread alone."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.cam.nets import GapNet
from wsfast.cam import AblationCAM, GradCAM
from wsfast.cam.attention import any_size
from wsfast.cam.borrowing import changed_attributes, replaced_forwards
from wsfast.cam.capture import undisturbed
from wsfast.cam.rerun import Rerun, bytes_per_image
from wsfast.cam.stages import stage_names


@pytest.fixture
def other() -> Iterator[Callable[..., Any]]:
    """Runs a function in another thread, always the same one, and returns what it returns."""
    with ThreadPoolExecutor(1) as pool:
        yield lambda function, *args: pool.submit(function, *args).result(30)


def test_the_last_one_to_leave_puts_an_attribute_back() -> None:
    module = nn.Identity()
    module.flag = "own"
    first, second = (changed_attributes([(module, "flag", "other")]) for _ in range(2))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert module.flag == "other"
    second.__exit__(None, None, None)
    assert module.flag == "own"


def test_what_is_changed_already_comes_back_after_an_error() -> None:
    module = nn.Identity()
    changes = [(module, "training", False), (module, "missing", 1)]
    with pytest.raises(AttributeError), changed_attributes(changes):
        pass
    assert module.training


def test_each_thread_sees_its_own_forward(other) -> None:
    module, x = nn.Identity(), torch.zeros(1)
    mine, theirs = (replaced_forwards([(module, lambda own, n=n: lambda x: x + n)]) for n in (1, 2))
    mine.__enter__()
    assert other(module, x) == 0
    other(theirs.__enter__)
    assert (module(x), other(module, x)) == (1, 2)
    mine.__exit__(None, None, None)
    assert (module(x), other(module, x)) == (0, 2)
    other(theirs.__exit__, None, None, None)
    assert other(module, x) == 0
    assert "forward" not in vars(module)


def test_evaluation_mode_lasts_until_all_calls_are_over(other) -> None:
    inner = nn.Dropout()
    model = nn.Sequential(inner, nn.Dropout()).train()
    outside, inside = (undisturbed(m, torch.device("cpu")) for m in (model, inner))
    outside.__enter__()
    other(inside.__enter__)  # a call on a part of the model
    outside.__exit__(None, None, None)
    assert [m.training for m in model.modules()] == [True, False, True]
    other(inside.__exit__, None, None, None)
    assert all(m.training for m in model.modules())


def test_any_size_lasts_until_all_calls_are_over(other) -> None:
    vit = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32, num_classes=2).eval()
    before = dict(vars(vit.patch_embed))
    mine, theirs = any_size(vit), any_size(vit)
    mine.__enter__()
    other(theirs.__enter__)
    mine.__exit__(None, None, None)
    assert vit(torch.zeros(1, 3, 48, 64)).shape == (1, 2)
    other(theirs.__exit__, None, None, None)
    assert vars(vit.patch_embed) == before
    assert not vit.dynamic_img_size


class Interrupted(GapNet):
    """In the middle of one thread's forward pass another one runs the model on other images."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()
        self.act1.register_forward_hook(self._interrupt)

    def _interrupt(self, module: nn.Module, inputs: object, output: object) -> None:
        if threading.get_ident() == self.thread:
            thread = threading.Thread(target=self, args=(torch.zeros(8, 3, 40, 40),))
            thread.start()
            thread.join()


def test_hooks_see_one_thread_alone() -> None:
    model, images = Interrupted().eval(), torch.randn(2, 3, 12, 12)
    calm = GapNet().eval()
    calm.load_state_dict(model.state_dict())
    assert stage_names("", model, images) == stage_names("", calm, images)
    assert bytes_per_image(model, images) == bytes_per_image(calm, images)
    rerun, expected = (Rerun("", m, m.conv1, images) for m in (model, calm))
    assert rerun.bytes_per_image == expected.bytes_per_image
    assert rerun.skipped == expected.skipped


def test_methods_of_one_model_in_several_threads() -> None:
    model = GapNet().train()
    batches = [torch.randn(2, 3, 16, 16) for _ in range(4)]
    methods = [AblationCAM(model, "act2"), AblationCAM(model, "conv1"), GradCAM(model)]

    def explain(images: Tensor) -> list[Tensor]:
        return [method(images, 1).cams for _ in range(5) for method in methods]

    expected = [explain(images) for images in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(explain, batches))
    for ours, single in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, single)
    assert all(module.training for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())
