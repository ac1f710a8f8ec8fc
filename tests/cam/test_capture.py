"""What a capture hands out and what it leaves alone, against plain autograd."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from wsfast.cam import FullGrad, GradCAM, LayerCAM, SmoothGradCAMPlusPlus
from wsfast.cam.capture import LayerCapture


class Net(nn.Module):
    """Two convolutions and a head; ``between`` is what happens to the first one's output."""

    def __init__(self, between: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1)
        self.same = nn.Identity()
        self.head = nn.Linear(5, 3)
        self.between = between
        self.grad_modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.grad_modes.append(torch.is_grad_enabled())
        x = self.conv2(self.between(self.same(self.conv1(x))))
        self.grad_modes.append(torch.is_grad_enabled())
        return self.head(F.relu(x).mean((2, 3)))


Pair = tuple[list[Tensor], list[Tensor]]


def capture(model: nn.Module, names: list[str], images: Tensor) -> Pair:
    """Activations and gradients of class 1 by the capture."""
    layers = {name: model.get_submodule(name) for name in names}
    captured = LayerCapture("test", model, layers).run(images)
    seed = torch.zeros_like(captured.logits)
    seed[:, 1] = 1
    return captured.activations(), captured.gradients(captured.logits, seed, keep_graph=False)


def plain(model: nn.Module, names: list[str], images: Tensor) -> Pair:
    """The same by hooks that add a zero leaf, on a model without in-place ops."""
    kept: dict[str, Tensor] = {}
    zeros: dict[str, Tensor] = {}

    def add_zero(name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            zeros[name] = torch.zeros_like(output).requires_grad_()
            kept[name] = output.detach().clone()
            return output + zeros[name]

        return hook

    handles = [model.get_submodule(n).register_forward_hook(add_zero(n)) for n in names]
    model(images)[:, 1].sum().backward(inputs=list(zeros.values()))
    for handle in handles:
        handle.remove()
    return [kept[n] for n in names], [zeros[n].grad for n in names]


def channels_last_view(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).permute(0, 3, 1, 2)


IN_PLACE = {
    "in-place ReLU": (F.relu_, F.relu),
    "in-place twice": (lambda x: F.relu_(x.mul_(2)), lambda x: F.relu(x * 2)),
    "in-place on a view": (lambda x: F.relu_(channels_last_view(x)), F.relu),
    "in-place on a part": (
        lambda x: x.index_fill_(1, torch.tensor([0]), 0.0),
        lambda x: x * torch.tensor([0.0, 1, 1, 1]).view(1, 4, 1, 1),
    ),
    "not in place": (F.relu, F.relu),
}


@pytest.mark.parametrize("case", IN_PLACE)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("names", [["conv1"], ["same"], ["conv1", "conv2"], ["conv1", "same"]])
def test_equals_plain_autograd(case: str, frozen: bool, names: list[str]) -> None:
    between, out_of_place = IN_PLACE[case]
    model, images = Net(between), torch.randn(2, 3, 6, 7)
    model.requires_grad_(not frozen)
    found = capture(model, names, images)
    model.between = out_of_place
    for ours, expected in zip(found, plain(model, names, images), strict=True):
        torch.testing.assert_close(ours, expected)


class ViewThenInPlace(nn.Module):
    """The target's output is a view, with history when an earlier layer is captured too."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.turn = nn.Module()
        self.turn.forward = channels_last_view  # type: ignore[method-assign]
        self.head = nn.Linear(4, 3)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        x = self.turn(self.conv(x))
        return self.head(F.relu(x, inplace=self.in_place).mean((2, 3)))


@pytest.mark.parametrize("names", [["turn"], ["conv", "turn"]])
def test_in_place_on_a_captured_view(names: list[str]) -> None:
    images, model, other = torch.randn(2, 3, 6, 6), ViewThenInPlace(True), ViewThenInPlace(False)
    other.load_state_dict(model.state_dict())
    for ours, expected in zip(
        capture(model, names, images), plain(other, names, images), strict=True
    ):
        torch.testing.assert_close(ours, expected)


class Residual(nn.Module):
    """Writes to the tensor that the (identity) target was given, behind the target's back."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.same = nn.Conv2d(3, 4, 1), nn.Identity()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x.add_(3 * self.same(x))
        return self.head(x.mean((2, 3)))


def test_the_tensor_before_an_identity_may_be_overwritten() -> None:
    model, images = Residual(), torch.randn(2, 3, 5, 5)
    (activation,), (grad,) = capture(model, ["same"], images)
    torch.testing.assert_close(activation, model.conv(images).detach())
    expected = 3 * model.head.weight[1].detach() / 25
    torch.testing.assert_close(grad, expected.view(1, 4, 1, 1).expand_as(grad))


def test_so_it_may_where_the_whole_graph_is_asked_for() -> None:
    model, images = Residual(), torch.randn(2, 3, 5, 5)
    captured = LayerCapture("test", model, {"same": model.same}).run(images, graph="whole")
    (activation,) = captured.activations()
    torch.testing.assert_close(activation, model.conv(images))
    scores, weights = captured.logits[:, 1], torch.ones(2)
    (grad,) = captured.gradients(scores, weights, keep_graph=True)
    expected = 3 * model.head.weight[1].detach() / 25
    torch.testing.assert_close(grad.detach(), expected.view(1, 4, 1, 1).expand_as(grad))


@pytest.mark.parametrize(("between", "passes"), [(F.relu, [1, 1]), (F.relu_, [2, 1])])
def test_a_copy_is_made_only_where_needed(
    between: Callable[[Tensor], Tensor], passes: list[int]
) -> None:
    model = Net(between)
    outputs: list[int] = []
    model.conv2.register_forward_hook(lambda _m, _i, out: outputs.append(out.data_ptr()))
    layers = {"conv1": model.conv1, "conv2": model.conv2}
    runner = LayerCapture("test", model, layers)
    for expected in passes:
        outputs.clear()
        captured = runner.run(torch.randn(2, 3, 6, 6))
        assert len(outputs) == expected
        assert captured.activations()[1].data_ptr() == outputs[-1]


def test_prefix_runs_without_gradients_and_the_rest_with() -> None:
    model, images = Net(), torch.randn(2, 3, 6, 6)
    for outside in (torch.enable_grad(), torch.no_grad()):
        model.grad_modes.clear()
        with outside:
            mode = torch.is_grad_enabled()
            capture(model, ["conv1"], images)
            assert torch.is_grad_enabled() == mode
        assert model.grad_modes == [False, True]


def test_images_that_require_grad_are_left_alone() -> None:
    model = nn.Sequential(nn.Identity(), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    images = torch.randn(2, 3, 6, 6, requires_grad=True)
    expected = GradCAM(model, "0")(images.detach()).cams
    assert torch.equal(GradCAM(model, "0")(images).cams, expected)
    assert images.grad is None
    assert images.is_leaf


def test_a_block_and_its_last_child_see_the_same() -> None:
    model, images = Net(), torch.randn(2, 3, 6, 6)
    model.block = nn.Sequential(model.conv1, nn.ReLU())
    model.conv1 = nn.Sequential(model.block)
    maps = LayerCAM(model, ["conv1", "conv1.0", "conv1.0.1"])(images).per_layer
    assert torch.equal(maps[0], maps[1])
    assert torch.equal(maps[0], maps[2])


class Noisy(nn.Module):
    """Batch norm, dropout both ways, and a ``train`` that keeps the batch norm frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(4, 3)
        self.fail = False

    def train(self, mode: bool = True) -> "Noisy":
        super().train(mode)
        self.norm.train(False)
        return self

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.norm(self.conv(x)), 0.5, training=True)
        if self.fail:
            raise RuntimeError("broken")
        return self.head(self.drop(x.mean((2, 3))))


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("frozen_norm", [False, True])
def test_modes_buffers_and_rng_are_left_as_found(fail: bool, frozen_norm: bool) -> None:
    model, images = Noisy().train(), torch.randn(2, 3, 8, 8)
    model.norm.train(not frozen_norm)
    model.fail = fail
    modes = [module.training for module in model.modules()]
    buffers = [buffer.clone() for buffer in model.buffers()]
    rng = torch.get_rng_state()
    for _ in range(2):
        if fail:
            with pytest.raises(RuntimeError, match="broken"):
                GradCAM(model, "norm")(images)
        else:
            GradCAM(model, "norm")(images)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))
    assert torch.equal(torch.get_rng_state(), rng)
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.is_grad_enabled()


def test_training_mode_does_not_change_the_maps() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(64, 3),
    )
    images = torch.randn(2, 3, 6, 6)
    expected = GradCAM(model.eval(), "2")(images)
    found = GradCAM(model.train(), "2")(images)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.cams, expected.cams)


def test_training_goes_on_inside_one_autocast() -> None:
    model, images = Net(), torch.randn(2, 3, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        GradCAM(model, "conv2")(images)  # casts the weights of conv1 without history
        model(images).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


class Threaded(Net):
    """Another thread runs the target in the middle of the forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        kept = self.conv1(x)
        other: list[Tensor] = []
        thread = threading.Thread(target=lambda: other.append(self.conv1(torch.zeros_like(x))))
        thread.start()
        thread.join()
        assert other[0].grad_fn is not None  # its own graph, not cut off
        return self.head(F.relu(self.conv2(F.relu(kept))).mean((2, 3)))


def test_other_threads_are_not_captured() -> None:
    model, images = Threaded(), torch.randn(2, 3, 6, 6)
    calm = Net()
    calm.load_state_dict(model.state_dict())
    assert torch.equal(GradCAM(model, "conv1")(images).cams, GradCAM(calm, "conv1")(images).cams)


class Checkpointed(Net):
    """Recomputes its second half in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.conv2, F.relu(self.conv1(x)), use_reentrant=False)
        return self.head(F.relu(x).mean((2, 3)))


@pytest.mark.parametrize("layers", [["conv1"], ["conv1", "conv2"]])
def test_checkpointed_models(layers: list[str]) -> None:
    model, images, ordinary = Checkpointed(), torch.randn(2, 3, 6, 6), Net()
    ordinary.load_state_dict(model.state_dict())
    assert torch.equal(GradCAM(model, layers)(images).cams, GradCAM(ordinary, layers)(images).cams)


class CheckpointedNorm(nn.Module):
    """Recomputes batch normalisation and dropout in the backward pass."""

    def __init__(self, checkpointed: bool) -> None:
        super().__init__()
        self.first, self.conv = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
        self.norm, self.drop, self.head = nn.BatchNorm2d(5), nn.Dropout(0.5), nn.Linear(5, 3)
        self.checkpointed = checkpointed

    def rest(self, x: Tensor) -> Tensor:
        return F.relu(self.drop(self.norm(self.conv(x))))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        # Without the check of shapes, other gradients come without a word.
        options = {"use_reentrant": False, "determinism_check": "none"}
        x = checkpoint(self.rest, x, **options) if self.checkpointed else self.rest(x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(
    "method",
    [lambda m: GradCAM(m, "first"), lambda m: SmoothGradCAMPlusPlus(m, "first"), FullGrad],
)
def test_checkpointed_models_stay_in_evaluation_mode(method: Callable[..., Any]) -> None:
    model, ordinary = CheckpointedNorm(True).train(), CheckpointedNorm(False)
    images = torch.randn(4, 3, 9, 9)
    for _ in range(3):
        model(images + 1)
    ordinary.load_state_dict(model.state_dict())
    found, expected = (method(m)(images, 1).cams for m in (model, ordinary.eval()))
    assert torch.equal(found, expected)
    assert all(module.training for module in model.modules())
    for buffer, before in zip(model.buffers(), ordinary.buffers(), strict=True):
        assert torch.equal(buffer, before)


class WithAux(NamedTuple):
    logits: Tensor
    aux: Tensor


class Wrapped(Net):
    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(super().forward(x))


OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "dict": lambda y: {"aux": y[:, :1], "logits": y},
    "dict without the key": lambda y: {"out": y},
    "tuple": lambda y: (y, y + 1),
    "tuple with features": lambda y: (y[:, :1, None, None], None, y),
    "dict with a loss": lambda y: {"loss": None, "total": y.sum(), "out": y},
    "tuple with class numbers": lambda y: (y.argmax(1, keepdim=True), y),
    "list": lambda y: [y],
    "named tuple": lambda y: WithAux(y, y[:, :1]),
    "object": lambda y: SimpleNamespace(logits=y),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_logits_are_found_in_the_output(kind: str) -> None:
    model, images, ordinary = Wrapped(OUTPUTS[kind]), torch.randn(2, 3, 6, 6), Net()
    ordinary.load_state_dict(model.state_dict())
    assert torch.equal(
        GradCAM(model, "conv1")(images).cams, GradCAM(ordinary, "conv1")(images).cams
    )


@pytest.mark.parametrize(
    ("wrap", "kind", "got"),
    [
        (lambda y: y[:, 0], ValueError, r"got shape \[2\]"),
        (lambda y: y[:, :, None], ValueError, r"got shape \[2, 3, 1\]"),
        (lambda y: y[:1], ValueError, r"got shape \[1, 3\]"),
        (lambda y: y[:, :0], ValueError, r"got shape \[2, 0\]"),
        (lambda y: y.argmax(1, keepdim=True), TypeError, "got torch.int64"),
        (lambda y: None, TypeError, "got NoneType"),
        (lambda y: {}, TypeError, "got dict"),
        (lambda y: {"loss": None}, TypeError, "got dict"),
        (lambda y: (y[:, :2], y), ValueError, r"got 0 of \[2, 2\], 1 of \[2, 3\]"),
        (
            lambda y: {"features": y[:, :2], "output": y},
            ValueError,
            r"got 'features' of \[2, 2\], 'output' of \[2, 3\]",
        ),
        (lambda y: (), TypeError, "got tuple"),
    ],
)
def test_other_outputs_are_refused(wrap: Callable[[Tensor], Any], kind: type, got: str) -> None:
    with pytest.raises(kind, match=rf"wsfast.cam.GradCAM: model must be a classifier .*{got}"):
        GradCAM(Wrapped(wrap), "conv1")(torch.randn(2, 3, 6, 6))


class Odd(nn.Module):
    def __init__(self, give: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.give = give

    def forward(self, x: Tensor) -> Any:
        return self.give(x)


@pytest.mark.parametrize(
    ("give", "got"),
    [
        (lambda x: (x,), "tuple"),
        (lambda x: x.flatten(2), r"shape \[2, 3, 36\] of torch.float32"),
        (lambda x: x.long(), r"shape \[2, 3, 6, 6\] of torch.int64"),
        (lambda x: x.reshape(4, 3, 3, 6), r"shape \[4, 3, 3, 6\] of torch.float32"),
    ],
)
def test_unusable_layers_are_named(give: Callable[[Tensor], Any], got: str) -> None:
    model = Net()
    model.odd = Odd(give)
    model.between = lambda x: (model.odd(x[:, :3]), F.relu(x))[1]
    with pytest.raises(
        ValueError, match=rf"\(N, C, h, w\) outputs with N = 2 .*, got {got}.*'odd'"
    ):
        GradCAM(model, ["conv1", "odd"])(torch.randn(2, 3, 6, 6))


def test_inference_tensors_are_taken_outside_inference_mode() -> None:
    model = nn.Sequential(nn.Identity(), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    with torch.inference_mode():
        images = torch.randn(2, 3, 6, 6)
    expected = GradCAM(model, "0")(images.clone()).cams
    assert torch.equal(GradCAM(model, "0")(images).cams, expected)
