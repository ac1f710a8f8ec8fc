"""Partial cross-entropy, size constraint and the classification loss of the foreground."""

import math
import re
from fractions import Fraction

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from wsfast.nn import (
    DenseCRFLoss,
    MaskedClassifierLoss,
    SizeConstraintLoss,
    log_barrier,
    partial_cross_entropy,
)


class CalledOperators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.names.append(str(operator))
        return operator(*args, **(kwargs or {}))


def random_seeds(shape, share=0.2):
    seeds = torch.full(shape, -255)
    labelled = torch.rand(shape) < share
    seeds[labelled] = torch.randint(0, 2, (int(labelled.sum()),))
    return seeds


def test_partial_cross_entropy_is_the_mean_over_the_labelled_pixels_of_the_batch():
    logits = torch.randn(3, 2, 5, 7)
    seeds = random_seeds((3, 5, 7))
    seeds[1] = -255  # an image without labels must not weigh
    values = [
        -logits[n, :, y, x].log_softmax(0)[seeds[n, y, x]]
        for n, y, x in (seeds != -255).nonzero().tolist()
    ]
    torch.testing.assert_close(partial_cross_entropy(logits, seeds), torch.stack(values).mean())
    torch.testing.assert_close(
        partial_cross_entropy(logits, seeds, reduction="sum"), torch.stack(values).sum()
    )
    wanted = F.cross_entropy(logits, seeds, ignore_index=-255)
    torch.testing.assert_close(partial_cross_entropy(logits, seeds), wanted)


def test_without_a_label_loss_and_gradient_are_zero():
    logits = torch.randn(2, 2, 4, 4, requires_grad=True)
    loss = partial_cross_entropy(logits, torch.full((2, 4, 4), -255))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_partial_cross_entropy_off_the_cpu_is_the_same_in_deterministic_operators(monkeypatch):
    # What is compiled goes the way of other devices.
    plain = torch.randn(2, 3, 4, 5, requires_grad=True)
    other = plain.detach().clone().requires_grad_()
    seeds = torch.randint(0, 3, (2, 4, 5))
    seeds[0, 1:] = -255
    for reduction in ("mean", "sum"):
        for labels in (seeds, torch.full_like(seeds, -255)):
            wanted = partial_cross_entropy(plain, labels, reduction=reduction)
            with monkeypatch.context() as patch, CalledOperators() as called:
                patch.setattr(torch.compiler, "is_compiling", lambda: True)
                found = partial_cross_entropy(other, labels, reduction=reduction)
            assert not [name for name in called.names if "nll_loss2d" in name]
            torch.testing.assert_close(found, wanted)
            wanted.backward()
            found.backward()
            torch.testing.assert_close(other.grad, plain.grad)


def test_losses_compile_once_whatever_the_epoch():
    counter = CompileCounter()
    size = SizeConstraintLoss()

    @torch.compile(backend=counter, fullgraph=True)
    def both(logits, seeds):
        return partial_cross_entropy(logits, seeds) + size(logits.softmax(1))

    logits, seeds = torch.randn(2, 2, 4, 4), random_seeds((2, 4, 4))
    for epoch in range(0, 300, 25):
        size.set_epoch(epoch)
        wanted = partial_cross_entropy(logits, seeds) + size(logits.softmax(1))
        torch.testing.assert_close(both(logits, seeds), wanted)
    assert counter.frame_count == 1
    assert not size.state_dict()


def test_partial_cross_entropy_of_half_types_is_computed_in_float32():
    logits, seeds = torch.randn(1, 2, 4, 4).bfloat16(), random_seeds((1, 4, 4))
    loss = partial_cross_entropy(logits, seeds)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, partial_cross_entropy(logits.float(), seeds))


def test_partial_cross_entropy_of_a_view_whose_negation_is_still_due():
    logits = torch.randn(1, 2, 4, 4, dtype=torch.complex64).conj().imag
    assert logits.is_neg()
    seeds = random_seeds((1, 4, 4))
    wanted = partial_cross_entropy(logits.resolve_neg(), seeds)
    torch.testing.assert_close(partial_cross_entropy(logits, seeds), wanted)


@pytest.mark.parametrize(
    ("seeds", "error", "message"),
    [
        (torch.full((1, 4, 4), 2), ValueError, "seeds must be classes of 0 to 1, got 2 to 2"),
        (torch.full((1, 4, 4), -1), ValueError, "seeds must be classes of 0 to 1, got -1 to -1"),
        (
            torch.zeros(1, 4, 5, dtype=torch.int64),
            ValueError,
            r"seeds must be of shape \[1, 4, 4\]",
        ),
        (torch.zeros(1, 4, 4), TypeError, "seeds must be int64"),
    ],
)
def test_partial_cross_entropy_explains_bad_seeds(seeds, error, message):
    with pytest.raises(error, match=message):
        partial_cross_entropy(torch.zeros(1, 2, 4, 4), seeds)


@pytest.mark.parametrize("label", [None, True, 1.5])
def test_partial_cross_entropy_explains_a_bad_ignore_index(label):
    with pytest.raises(
        TypeError, match="partial_cross_entropy: ignore_index must be a whole number"
    ):
        partial_cross_entropy(torch.zeros(1, 2, 4, 4), random_seeds((1, 4, 4)), ignore_index=label)


def test_log_barrier_known_values():
    # t = 2: the branches meet at -1/4, where the value is -log(1/4)/2 = log(2).
    at = torch.tensor([-math.e, -1.0, -0.25, 0.0, 3.0], dtype=torch.float64)
    expected = torch.tensor(
        [-0.5, 0.0, math.log(2), math.log(2) + 0.5, 6 + math.log(2) + 0.5], dtype=torch.float64
    )
    torch.testing.assert_close(log_barrier(at, 2.0), expected)


@pytest.mark.parametrize("t", [1.0, 1.7, 10.0])
def test_log_barrier_is_smooth_where_its_branches_meet(t):
    edge = -1 / t**2
    at = torch.tensor(
        [edge * (1 + 1e-9), edge * (1 - 1e-9)], dtype=torch.float64, requires_grad=True
    )
    value = log_barrier(at, t)
    (slope,) = torch.autograd.grad(value.sum(), at)
    assert value[0].item() == pytest.approx(value[1].item(), abs=1e-7)
    assert slope.tolist() == pytest.approx([t, t], rel=1e-6)


def test_size_constraint_known_value_and_gradient():
    # Sizes 6 and 2 pixels, t = 1: 0.1/2 (-log 6 - log 2); gradient -0.1/(2 size).
    prob = torch.tensor([[[[0.75] * 4] * 2, [[0.25] * 4] * 2]], requires_grad=True)
    loss = SizeConstraintLoss()(prob)
    loss.backward()
    assert loss.item() == pytest.approx(-0.05 * math.log(12), rel=1e-6)
    assert prob.grad[0, 0].unique().item() == pytest.approx(-0.1 / 12, rel=1e-6)
    assert prob.grad[0, 1].unique().item() == pytest.approx(-0.1 / 4, rel=1e-6)


def test_normalized_sizes_do_not_depend_on_resolution():
    loss = SizeConstraintLoss(normalize=True)
    prob = torch.rand(2, 2, 4, 6)
    larger = prob.repeat_interleave(3, 2).repeat_interleave(3, 3)
    torch.testing.assert_close(loss(prob), loss(larger))


@pytest.mark.parametrize("epoch", [1024, 71_400, 10**9])
@pytest.mark.parametrize("growth", [1.01, 2.0])
def test_the_barrier_stays_at_its_cap_however_long(epoch, growth):
    loss = SizeConstraintLoss(t_growth=growth)
    loss.set_epoch(epoch)
    assert loss.t == 10.0
    endless = SizeConstraintLoss(t_growth=growth, t_max=math.inf)
    endless.set_epoch(epoch)
    assert endless.t > 1e4


@pytest.mark.parametrize("epoch", [0, 9, 50])
def test_normalized_sizes_defend_what_nearly_vanished(epoch):
    """With the slope of the logarithm: that of shares would cancel between the two regions."""
    loss = SizeConstraintLoss(normalize=True)
    loss.set_epoch(epoch)
    share = torch.tensor(0.02, dtype=torch.float64, requires_grad=True)
    prob = torch.stack([1 - share, share]).view(1, 2, 1, 1).expand(1, 2, 8, 8)
    (slope,) = torch.autograd.grad(loss(prob), share)
    expected = -0.1 / 2 / loss.t * (1 / 0.02 - 1 / 0.98)
    assert slope.item() == pytest.approx(expected, rel=1e-6)


def test_the_barrier_grows_by_a_hundredth_per_epoch_up_to_its_cap():
    loss = SizeConstraintLoss()
    for epoch, t in ((0, 1.0), (50, 1.01**50), (231, 1.01**231), (232, 10.0), (500, 10.0)):
        loss.set_epoch(epoch)
        assert loss.t == pytest.approx(t)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_barrier_is_not_rounded_with_the_network_that_holds_it(dtype):
    loss = SizeConstraintLoss()
    loss.set_epoch(1)
    nn.Sequential(nn.Linear(1, 1), loss).to(dtype)
    assert loss.t == pytest.approx(1.01)


def test_an_empty_region_costs_finitely_and_pulls_back():
    prob = torch.stack([torch.ones(4, 4), torch.zeros(4, 4)])[None].requires_grad_()
    loss = SizeConstraintLoss()(prob)
    loss.backward()
    assert math.isfinite(loss.item())
    assert bool((prob.grad[0, 1] < 0).all())


def smooth_classifier():
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def masked_loss(**options):
    return MaskedClassifierLoss(smooth_classifier(), **options)


def test_gradients_of_all_losses(device):
    double = {"dtype": torch.float64, "device": device}
    logits = torch.randn(2, 2, 4, 4, **double, requires_grad=True)
    seeds = random_seeds((2, 4, 4), 0.5).to(device)
    assert torch.autograd.gradcheck(lambda z: partial_cross_entropy(z, seeds), logits)
    prob = torch.rand(2, 2, 4, 4, **double, requires_grad=True)
    assert torch.autograd.gradcheck(SizeConstraintLoss(0.3, t=1.5), prob)
    small = (prob.detach() * 0.01).requires_grad_()  # the linear branch
    assert torch.autograd.gradcheck(SizeConstraintLoss(0.3, normalize=True), small)
    images = torch.randn(2, 3, 4, 4, **double)
    maps = torch.rand(2, 4, 4, **double, requires_grad=True)
    masked = MaskedClassifierLoss(smooth_classifier().to(device), 0.4)
    labels = torch.tensor([2, 0], device=device)
    assert torch.autograd.gradcheck(lambda m: masked(images, m, labels), maps)


def test_the_classifier_loss_is_that_of_the_masked_image():
    classifier = smooth_classifier()
    images = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    maps, labels = torch.rand(2, 4, 4, dtype=torch.float64), torch.tensor([1, 1])
    loss = MaskedClassifierLoss(classifier, 0.5)(images, maps, labels)
    wanted = 0.5 * F.cross_entropy(classifier(images * maps[:, None]), labels)
    torch.testing.assert_close(loss, wanted)


def test_the_published_codes_loss_has_no_gradient():
    maps = torch.rand(1, 4, 4, dtype=torch.float64, requires_grad=True)
    images, labels = torch.randn(1, 3, 4, 4, dtype=torch.float64), torch.tensor([0])
    assert not MaskedClassifierLoss(smooth_classifier(), detach=True)(
        images, maps, labels
    ).requires_grad


def test_the_classifier_stays_frozen_and_out_of_the_saved_state():
    classifier = nn.Sequential(smooth_classifier(), nn.Dropout(0.5))
    loss = MaskedClassifierLoss(classifier).train()
    assert not classifier.training
    assert not any(p.requires_grad for p in classifier.parameters())
    assert not loss.state_dict()
    assert not list(loss.parameters())


def test_losses_of_nothing_are_zero():
    classifier = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    masked = MaskedClassifierLoss(classifier)

    def ignored(prob):
        return masked(torch.ones(len(prob), 3, 4, 4), prob[:, 1], torch.full((len(prob),), -100))

    nothing, two = (torch.zeros(count, 2, 4, 4, requires_grad=True) for count in (0, 2))
    for loss, prob in (
        (SizeConstraintLoss(), nothing),
        (SizeConstraintLoss(normalize=True), nothing),
        (ignored, nothing),
        (ignored, two),
    ):
        value = loss(prob)
        (gradient,) = torch.autograd.grad(value, prob)
        assert value.item() == 0
        assert torch.equal(gradient, torch.zeros_like(prob))


def test_the_frozen_classifier_learns_nothing_from_a_network_around_it_that_trains():
    classifier = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten())
    loss = MaskedClassifierLoss(classifier)
    nn.Sequential(classifier).train()
    before = classifier[1].running_mean.clone()
    loss(torch.randn(2, 1, 4, 4), torch.rand(2, 4, 4), torch.tensor([0, 1]))
    assert torch.equal(classifier[1].running_mean, before)
    assert not classifier[1].training


@pytest.mark.parametrize("loss", [SizeConstraintLoss, DenseCRFLoss, masked_loss])
def test_a_weight_is_a_number(loss):
    name = r"wsfast\.nn\.\w+Loss: weight must be"
    with pytest.raises(TypeError, match=f"{name} a number, got str"):
        loss(weight="2e-9")
    with pytest.raises(ValueError, match=f"{name} between -inf and inf, got nan"):
        loss(weight=float("nan"))


@pytest.mark.parametrize("loss", [SizeConstraintLoss, DenseCRFLoss, masked_loss])
def test_a_number_of_any_type_is_a_weight(loss):
    for number in (Fraction(1, 2), 2**64):
        assert type(loss(weight=number).weight) is float


def test_the_barriers_parameter_is_a_finite_number_of_any_type():
    at = torch.tensor([-1.0, 0.0, 1.0])
    assert torch.equal(log_barrier(at, Fraction(3, 2)), log_barrier(at, 1.5))
    assert log_barrier(at, 1e30).isfinite().all()
    with pytest.raises(ValueError, match="t must be between"):
        log_barrier(at, math.inf)
    loss = SizeConstraintLoss(t=Fraction(1), t_growth=Fraction(3, 2), t_max=Fraction(9, 4))
    loss.set_epoch(9)
    assert loss.t == 2.25


@pytest.mark.parametrize(("epoch", "error"), [("3", TypeError), (2.5, TypeError), (-5, ValueError)])
def test_an_epoch_is_counted_from_0(epoch, error):
    loss = SizeConstraintLoss()
    with pytest.raises(error, match=r"SizeConstraintLoss\.set_epoch: epoch must be "):
        loss.set_epoch(epoch)
    assert loss.t == 1


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([0.0, 1.0], TypeError, "labels must be int64, got torch.float32"),
        ([0], ValueError, "labels must be of shape [2], got shape [1]"),
        ([-100, 7], ValueError, "labels must be classes of 0 to 2, got 7 to 7"),
        ([-1, 0], ValueError, "labels must be classes of 0 to 2, got -1 to 0"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, error, message):
    with pytest.raises(error, match=f"MaskedClassifierLoss: {re.escape(message)}"):
        masked_loss()(torch.zeros(2, 3, 4, 4).double(), torch.rand(2, 4, 4), torch.tensor(labels))


def test_maps_of_another_size_and_no_images_are_refused():
    with pytest.raises(ValueError, match=r"maps must be of shape \[1, 4, 4\]"):
        MaskedClassifierLoss(smooth_classifier())(
            torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 2), torch.tensor([0])
        )
    with pytest.raises(TypeError, match=r"images must be a torch\.Tensor, got NoneType"):
        MaskedClassifierLoss(smooth_classifier())(None, torch.rand(1, 4, 4), torch.tensor([0]))
