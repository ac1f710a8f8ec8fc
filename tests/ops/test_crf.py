"""Room `crf`: the dense-CRF loss and mean field against brute force, gradients and known cases."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch.library import opcheck
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import wsfast
from tests.crf_inputs import relative, smooth_image, soft
from tests.permutohedral import DictionaryLattice, bilateral_features, gaussian_matrix
from tests.processes import python
from wsfast.ops.crf import reference
from wsfast.testing import FLOATING_DTYPES

OPS = torch.ops.wsfast
SHAPES = ((1, 1), (1, 50), (17, 1), (24, 31))
ROUGH = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def loss_of_matrix(
    matrix: np.ndarray, prob: torch.Tensor, roi: torch.Tensor | None = None
) -> float:
    """-sum_k (r s_k)' W (r s_k) of one image in float64."""
    s = prob.double().flatten(1).numpy()
    if roi is not None:
        s = s * roi.double().flatten().numpy()
    return -float(np.einsum("ki,ij,kj->", s, matrix, s))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_value_against_the_numpy_lattice(device: torch.device, channels: int) -> None:
    image, prob = smooth_image(2, 9, 12, channels), soft(2, 3, 9, 12, torch.float64)
    roi = torch.rand(2, 9, 12) > 0.3
    wanted, masked, gradients = [], [], []
    for n in range(2):
        features = bilateral_features(image[n].numpy(), 15.0, 8.0)
        matrix = DictionaryLattice(features).operator()
        wanted.append(loss_of_matrix(matrix, prob[n]))
        masked.append(loss_of_matrix(matrix, prob[n], roi[n]))
        gradients.append(-(matrix + matrix.T) @ prob[n].flatten(1).numpy().T)
    options = {"sigma_rgb": 15.0, "sigma_xy": 8.0, "reduction": "none"}
    for dtype in (torch.float32, torch.float64):
        x = prob.to(device, dtype).requires_grad_()
        found = wsfast.dense_crf_loss(image.to(device), x, **options)
        np.testing.assert_allclose(found.detach().cpu(), wanted, rtol=ROUGH[dtype])
        (gradient,) = torch.autograd.grad(found.sum(), x)
        for n in range(2):
            expected = torch.from_numpy(gradients[n].T).view(3, 9, 12)
            assert relative(gradient[n].cpu(), expected) < ROUGH[dtype]
        inside = wsfast.dense_crf_loss(image.to(device), x, roi=roi.to(device), **options)
        np.testing.assert_allclose(inside.detach().cpu(), masked, rtol=ROUGH[dtype])


@pytest.mark.parametrize("method", ["lattice", "dense", "exact"])
def test_value_against_brute_force(device: torch.device, method: str) -> None:
    image, prob = smooth_image(1, 32, 32), soft(1, 2, 32, 32, torch.float64)
    matrix = gaussian_matrix(bilateral_features(image[0].numpy(), 15.0, 20.0))
    wanted = loss_of_matrix(matrix, prob[0])
    x = prob.to(device).requires_grad_()
    found = wsfast.dense_crf_loss(image.to(device), x, sigma_xy=20.0, method=method)
    low, high = {"lattice": (0.5, 0.72), "dense": (0.98, 1.02), "exact": (1, 1)}[method]
    assert low - 1e-9 <= float(found.detach()) / wanted <= high + 1e-9
    (gradient,) = torch.autograd.grad(found, x)
    expected = -2 * torch.from_numpy(matrix) @ prob[0].flatten(1).T
    contrast = [(g[0] - g[1]).flatten() for g in (gradient[0].flatten(1).cpu(), expected.T)]
    cosine = F.cosine_similarity(*contrast, dim=0)  # what is left behind a softmax
    assert cosine > {"lattice": 0.97, "dense": 0.999, "exact": 1 - 1e-12}[method]


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
@pytest.mark.parametrize("size", SHAPES)
def test_forward_matches_reference(
    device: torch.device, size: tuple[int, int], dtype: torch.dtype
) -> None:
    image = smooth_image(2, *size).to(device)
    for classes in (2, 5, 21):
        values = torch.rand(2, classes, *size, device=device).to(dtype)
        roi = (torch.rand(2, *size, device=device) > 0.2).to(reference.accumulate_dtype(dtype))
        for direction, mask in (("symmetric", None), ("forward", roi), ("transpose", None)):
            arguments = (image, values, mask, [15.0] * 3, 30.0, direction, True)
            energy, filtered = OPS.dense_crf_energy(*arguments)
            theirs = reference.dense_crf_energy(*arguments)
            assert energy.dtype == reference.accumulate_dtype(dtype)
            torch.testing.assert_close(energy, theirs[0], rtol=1e-4, atol=1e-5)
            assert filtered.dtype == dtype
            torch.testing.assert_close(
                filtered, theirs[1], rtol=ROUGH[dtype], atol=ROUGH[dtype] * 10
            )
        alone, nothing = OPS.dense_crf_energy(*arguments[:-1], False)
        assert torch.equal(alone, energy)
        assert nothing.shape == (0,)


def test_symmetry_of_the_value_and_the_known_gradient() -> None:
    image, prob = smooth_image(2, 24, 24), soft(2, 3, 24, 24, torch.float64).requires_grad_()
    energies = [
        OPS.dense_crf_energy(image, prob, None, [15.0] * 3, 50.0, direction, True)
        for direction in ("forward", "transpose", "symmetric")
    ]
    torch.testing.assert_close(energies[0][0], energies[1][0])
    torch.testing.assert_close(energies[0][0], energies[2][0])
    assert relative(energies[0][1], energies[1][1]) > 1e-3  # A is not symmetric
    losses = [
        wsfast.dense_crf_loss(image, prob, sigma_xy=50.0, symmetric=s, reduction="sum")
        for s in (True, False)
    ]
    torch.testing.assert_close(losses[0], losses[1])
    exact, known = (torch.autograd.grad(loss, prob)[0] for loss in losses)
    torch.testing.assert_close(exact, -2 * energies[2][1].detach())
    torch.testing.assert_close(known, -2 * energies[0][1].detach())


def test_forms_and_normalization() -> None:
    image = smooth_image(2, 10, 11)
    prob = torch.rand(2, 3, 10, 11, dtype=torch.float64)  # does not sum to 1
    roi = torch.rand(2, 10, 11) > 0.4
    options = {"sigma_xy": 9.0, "reduction": "none"}
    for n in range(2):
        matrix = DictionaryLattice(bilateral_features(image[n].numpy(), 15.0, 9.0)).operator()
        r = roi[n].double().flatten().numpy()
        s = prob[n].flatten(1).numpy() * r
        agree = np.einsum("ki,ij,kj->", s, matrix, s)
        paper = np.einsum("ki,ij,kj->", s, 0.5 * (matrix + matrix.T), r - s)
        whole = r @ matrix @ r
        one = (image[n : n + 1], prob[n : n + 1])
        for form, value, share in (
            ("rloss", -agree, 1 - agree / whole),
            ("paper", paper, paper / whole),
        ):
            call = lambda scale, o=one, f=form, m=roi[n : n + 1]: wsfast.dense_crf_loss(  # noqa: E731
                *o, roi=m, form=f, normalize=scale, **options
            ).item()
            assert call(None) == pytest.approx(value, rel=1e-10)
            assert call("pixels") == pytest.approx(value / r.sum(), rel=1e-10)
            assert call("affinity") == pytest.approx(share, rel=1e-10)
    each = wsfast.dense_crf_loss(image, prob, **options)
    total = wsfast.dense_crf_loss(image, prob, sigma_xy=9.0, reduction="sum")
    torch.testing.assert_close(each.sum(), total)
    torch.testing.assert_close(wsfast.dense_crf_loss(image, prob, sigma_xy=9.0), total / 2)


@pytest.mark.parametrize("normalize", ["pixels", "affinity", None])
@pytest.mark.parametrize("form", ["rloss", "paper"])
def test_empty_roi(device: torch.device, form: str, normalize: str | None) -> None:
    image, prob = smooth_image(2, 6, 7).to(device), soft(2, 3, 6, 7).to(device).requires_grad_()
    roi = torch.zeros(2, 6, 7, device=device)
    roi[1, 2:, 2:] = 1
    loss = wsfast.dense_crf_loss(
        image, prob, roi=roi, form=form, normalize=normalize, reduction="none"
    )
    (gradient,) = torch.autograd.grad(loss.sum(), prob)
    assert loss[0] == 0
    assert loss[1] != 0
    assert not gradient[0].any()
    assert gradient[1].isfinite().all()
    assert gradient[1].any()


@pytest.mark.parametrize("normalize", ["pixels", "affinity", None])
@pytest.mark.parametrize("form", ["rloss", "paper"])
def test_nan_stays_where_nobody_looks(form: str, normalize: str | None) -> None:
    """Off the CPU, and in a script, an image that is not finite gives NaN, not a perfect 0."""
    image, prob = smooth_image(2, 6, 7), soft(2, 2, 6, 7)
    image[0, 0, 2, 3] = math.nan
    scripted = torch.jit.script(wsfast.ops.crf.loss._dense_crf_loss)
    options = {"form": form, "normalize": normalize, "reduction": "none"}
    assert scripted(image, prob, **options).isnan().tolist() == [True, False]


def test_scale_factor_and_roi() -> None:
    image, prob = smooth_image(2, 20, 26), soft(2, 2, 20, 26)
    roi = torch.zeros(2, 20, 26)
    roi[:, 4:, 3:] = 1
    kept = roi.clone()
    half = wsfast.dense_crf_loss(image, prob, scale_factor=0.5, sigma_xy=40.0, roi=roi)
    assert torch.equal(roi, kept)
    by_hand = wsfast.dense_crf_loss(
        F.interpolate(image, scale_factor=0.5, mode="nearest"),
        F.interpolate(prob, scale_factor=0.5, mode="bilinear", align_corners=False),
        sigma_xy=20.0,
        roi=F.interpolate(roi[:, None], scale_factor=0.5, mode="nearest"),
    )
    assert torch.equal(half, by_hand)
    boolean = wsfast.dense_crf_loss(image, prob, roi=roi.bool(), sigma_xy=40.0)
    assert torch.equal(boolean, wsfast.dense_crf_loss(image, prob, roi=roi, sigma_xy=40.0))
    zeroed = wsfast.dense_crf_loss(image, prob * roi[:, None], sigma_xy=40.0)
    torch.testing.assert_close(boolean, zeroed)
    x = prob.clone().requires_grad_()
    wsfast.dense_crf_loss(image, x, roi=roi).backward()
    assert not x.grad[:, :, :4].any()


def test_image_kinds_and_strides() -> None:
    whole = smooth_image(2, 15, 18).round()
    prob = soft(2, 2, 15, 18)
    plain = wsfast.dense_crf_loss(whole, prob)
    as_bytes = wsfast.dense_crf_loss(whole.to(torch.uint8), prob)
    torch.testing.assert_close(as_bytes, plain, rtol=1e-6, atol=0)
    last = whole.to(memory_format=torch.channels_last)
    assert torch.equal(wsfast.dense_crf_loss(last, prob.transpose(2, 3).contiguous().mT), plain)
    assert torch.equal(wsfast.dense_crf_loss(whole.double(), prob), plain)
    wider = wsfast.dense_crf_loss(whole, prob, sigma_rgb=[15.0, 15.0, 15.0])
    assert torch.equal(wider, plain)
    assert not torch.equal(wsfast.dense_crf_loss(whole, prob, sigma_rgb=[15.0, 15.0, 60.0]), plain)


def test_empty_batch() -> None:
    prob = torch.rand(0, 2, 4, 4, requires_grad=True)
    loss = wsfast.dense_crf_loss(torch.rand(0, 3, 4, 4), prob)
    assert float(loss) == 0
    loss.backward()
    assert prob.grad.shape == (0, 2, 4, 4)
    assert wsfast.mean_field(torch.rand(0, 2, 4, 4), torch.rand(0, 3, 4, 4)).shape == (0, 2, 4, 4)


def test_kept_lattice() -> None:
    image = smooth_image(2, 21, 16)
    lattice = wsfast.bilateral_lattice(image, sigma_rgb=15.0, sigma_xy=30.0)
    for options in (
        {}, {"form": "paper"}, {"normalize": "affinity"}, {"roi": torch.rand(2, 21, 16) > 0.5},
        {"symmetric": False},
    ):  # fmt: skip
        results = []
        for own in ({"lattice": lattice}, {"sigma_xy": 30.0}):
            prob = torch.rand(2, 3, 21, 16, generator=torch.Generator().manual_seed(3))
            prob.requires_grad_()
            loss = wsfast.dense_crf_loss(image, prob, **own, **options)
            results.append((loss, torch.autograd.grad(loss, prob)[0]))
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    without_image = wsfast.dense_crf_loss(None, prob, lattice=lattice)
    torch.testing.assert_close(without_image, wsfast.dense_crf_loss(image, prob, sigma_xy=30.0))


class Calls(TorchDispatchMode):
    """Counts the calls of a packet of operators."""

    def __init__(self, packet: object) -> None:
        super().__init__()
        self.packet, self.count = packet, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket is self.packet
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("symmetric", [True, False])
def test_kept_lattice_filters_once_for_value_and_gradient(symmetric: bool) -> None:
    lattice = wsfast.bilateral_lattice(smooth_image(1, 9, 8), sigma_rgb=15.0, sigma_xy=9.0)
    prob = soft(1, 2, 9, 8).requires_grad_()
    with Calls(OPS.lattice_energy) as energies, Calls(OPS.lattice_filter) as filters:
        wsfast.dense_crf_loss(None, prob, lattice=lattice, symmetric=symmetric).backward()
    assert (energies.count, filters.count) == (1, 0)


def test_second_gradient_of_the_known_one_with_and_without_a_kept_lattice() -> None:
    """The known gradient -2 A s is linear: its own gradient along v is -2 A' v."""
    image, prob = smooth_image(1, 9, 8).double(), soft(1, 2, 9, 8, torch.float64).requires_grad_()
    lattice = wsfast.bilateral_lattice(image, sigma_rgb=15.0, sigma_xy=9.0)
    along = torch.rand_like(prob)
    wanted = -2 * lattice.apply(along.flatten(2), "transpose").view_as(prob)
    for own in ({"lattice": lattice}, {"sigma_xy": 9.0}):
        loss = wsfast.dense_crf_loss(image, prob, symmetric=False, **own)
        (gradient,) = torch.autograd.grad(loss, prob, create_graph=True)
        (second,) = torch.autograd.grad(gradient, prob, along)
        torch.testing.assert_close(second, wanted)


def test_gradcheck(device: torch.device) -> None:
    image = smooth_image(1, 3, 4).to(device)
    prob = torch.rand(1, 2, 3, 4, dtype=torch.float64, device=device, requires_grad=True)
    roi = torch.rand(1, 3, 4, dtype=torch.float64, device=device)
    for options in (
        {}, {"form": "paper", "roi": roi}, {"normalize": "affinity", "scale_factor": 0.7},
        {"method": "dense", "normalize": "pixels"},
        {"lattice": wsfast.bilateral_lattice(image.double(), sigma_rgb=15.0, sigma_xy=5.0)},
    ):  # fmt: skip
        call = lambda x, o=options: wsfast.dense_crf_loss(image, x, sigma_xy=5.0, **o) ** 2  # noqa: E731
        assert torch.autograd.gradcheck(call, (prob,))
        assert torch.autograd.gradgradcheck(call, (prob,))
    roi.requires_grad_()
    for options in (
        {"normalize": "pixels"}, {"form": "paper", "normalize": "affinity"}, {"method": "exact"},
        {"lattice": wsfast.bilateral_lattice(image.double(), sigma_rgb=15.0, sigma_xy=5.0)},
    ):  # fmt: skip
        soft_roi = lambda x, r, o=options: wsfast.dense_crf_loss(  # noqa: E731
            image, x, sigma_xy=5.0, roi=r, **o
        )
        assert torch.autograd.gradcheck(soft_roi, (prob, roi))
        assert torch.autograd.gradcheck(soft_roi, (prob.detach(), roi))
    assert torch.autograd.gradgradcheck(soft_roi, (prob, roi))
    logits = torch.randn(1, 3, 2, 3, dtype=torch.float64, device=device, requires_grad=True)
    costs = torch.rand(3, 3, dtype=torch.float64, device=device, requires_grad=True)

    def infer(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        return wsfast.mean_field(
            x, image[:, :, :2, :3], iterations=2, compatibility=matrix, bilateral_weight=1.0
        )

    assert torch.autograd.gradcheck(infer, (logits, costs))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(device: torch.device, requires_grad: bool) -> None:
    image = smooth_image(2, 4, 5).to(device)
    values = torch.rand(2, 2, 4, 5, device=device, requires_grad=requires_grad)
    for roi in (None, torch.ones(2, 4, 5, device=device)):
        opcheck(
            OPS.dense_crf_energy.default,
            (image, values, roi, [15.0] * 3, 9.0, "symmetric", True),
        )


@pytest.mark.parametrize("weight", [2e-9, 1e-4])
def test_gradient_of_half_probabilities(weight: float) -> None:
    """Neither W s nor the weight of the loss fits float16; their product does."""
    image = torch.zeros(1, 3, 500, 500)
    gradients = []
    for dtype in (torch.float16, torch.float32):
        prob = torch.full((1, 2, 500, 500), 0.9, dtype=dtype, requires_grad=True)
        (weight * wsfast.dense_crf_loss(image, prob, sigma_xy=300.0)).backward()
        gradients.append(prob.grad.float())
    assert gradients[1].abs().min() > 1e-5
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=0)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("symmetric", [True, False])
def test_captured_without_a_gradient(symmetric: bool, kept: bool) -> None:
    """What a graph did not keep for the gradient is found again in its backward pass."""
    image, prob = smooth_image(1, 8, 9), soft(1, 2, 8, 9)
    lattice = wsfast.bilateral_lattice(image, sigma_rgb=15.0, sigma_xy=9.0) if kept else None

    class Loss(torch.nn.Module):
        def forward(self, image: torch.Tensor, prob: torch.Tensor) -> torch.Tensor:
            return wsfast.dense_crf_loss(
                image, prob, sigma_xy=9.0, symmetric=symmetric, lattice=lattice
            )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(Loss(), (image, prob))
    exported = torch.export.export(Loss(), (image, prob)).module()
    prob.requires_grad_()
    (wanted,) = torch.autograd.grad(Loss()(image, prob), prob)
    for captured in (traced, exported):
        (found,) = torch.autograd.grad(captured(image, prob), prob)
        assert torch.equal(found, wanted)


def every_op(image: torch.Tensor, prob: torch.Tensor) -> list[torch.Tensor]:
    return [
        wsfast.dense_crf_loss(image, prob, scale_factor=0.5),
        wsfast.dense_crf_loss(image, prob, form="paper", roi=prob[:, 0] > 0.4, reduction="none"),
    ]


def masked_loss(image: torch.Tensor, prob: torch.Tensor) -> torch.Tensor:
    return wsfast.dense_crf_loss(image, prob, form="paper", roi=prob[:, 0] > 0.4)


def test_compile_fullgraph(device: torch.device) -> None:
    compiled = torch.compile(masked_loss, fullgraph=True, dynamic=True)
    for n in (2, 3):
        image = smooth_image(n, 8, 9).to(device)
        prob = torch.rand(n, 2, 8, 9, device=device, requires_grad=True)
        expected, found = masked_loss(image, prob), compiled(image, prob)
        torch.testing.assert_close(found, expected)
        ours = torch.autograd.grad(found, prob)
        torch.testing.assert_close(ours, torch.autograd.grad(expected, prob))


def test_compile_with_what_scripts_cannot_take(device: torch.device) -> None:
    """Lists of sigmas and kept lattices are the public function's own arguments."""
    image, prob = smooth_image(2, 8, 9).to(device), soft(2, 2, 8, 9).to(device)
    lattice = wsfast.bilateral_lattice(image, sigma_rgb=15.0, sigma_xy=9.0)

    def losses(prob: torch.Tensor) -> list[torch.Tensor]:
        return [
            wsfast.dense_crf_loss(image, prob, sigma_rgb=[15, 20, 15], sigma_xy=9),
            wsfast.dense_crf_loss(None, prob, lattice=lattice),
        ]

    compiled = torch.compile(losses, fullgraph=True, backend="aot_eager")
    prob.requires_grad_()
    found, expected = compiled(prob), losses(prob)
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(sum(each), prob) for each in (found, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_captured_loss_of_other_sizes(device: torch.device, scale: float) -> None:
    """Neither the images of a captured graph nor their pixels are constants of it."""

    class Loss(torch.nn.Module):
        def forward(self, image: torch.Tensor, prob: torch.Tensor) -> torch.Tensor:
            options = {"sigma_xy": 5.0, "normalize": "pixels", "scale_factor": scale}
            return wsfast.dense_crf_loss(image, prob, **options)

    given = (smooth_image(2, 6, 6).to(device), soft(2, 2, 6, 6).to(device))
    sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(Loss(), given)
    exported = torch.export.export(Loss(), given, dynamic_shapes=(sizes, sizes)).module()
    image, prob = smooth_image(3, 5, 8).to(device), soft(3, 2, 5, 8).to(device)
    for captured in (traced, exported):
        torch.testing.assert_close(captured(image, prob), Loss()(image, prob))
        assert captured(image[:0], prob[:0]) == 0


class EveryOp(torch.nn.Module):
    def forward(self, image: torch.Tensor, prob: torch.Tensor) -> list[torch.Tensor]:
        return [*every_op(image, prob), wsfast.mean_field(prob.log(), image, iterations=2)]


def test_export(device: torch.device) -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        EveryOp().eval(),
        (smooth_image(2, 8, 9).to(device), soft(2, 2, 8, 9).to(device)),
        dynamic_shapes={"image": {0: batch}, "prob": {0: batch}},
    )
    image, prob = smooth_image(5, 8, 9).to(device), soft(5, 2, 8, 9).to(device)
    torch.testing.assert_close(program.module()(image, prob), EveryOp()(image, prob))


def scripted_ops(image: torch.Tensor, prob: torch.Tensor) -> list[torch.Tensor]:
    return [
        wsfast.dense_crf_loss(image, prob, scale_factor=0.5),
        wsfast.dense_crf_loss(image, prob, form="paper", normalize="affinity", reduction="none"),
        wsfast.dense_crf_loss(image, prob, roi=prob[:, 0] > 0.4, method="exact"),
        wsfast.mean_field(prob.log(), image, iterations=2),
    ]


def test_script_and_trace(device: torch.device) -> None:
    image, prob = smooth_image(2, 8, 9).to(device), soft(2, 2, 8, 9).to(device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(scripted_ops)
        traced = torch.jit.trace(scripted_ops, (image, prob))
    for found in (scripted(image, prob), traced(image, prob)):
        torch.testing.assert_close(found, scripted_ops(image, prob))


@pytest.mark.parametrize(
    "name",
    [
        "dense_crf_energy", "build_lattice", "build_bilateral_lattice", "lattice_filter",
        "lattice_energy", "gaussian_filter", "level_boxes", "level_best_iou",
        "non_maximum_suppression",
    ],
)  # fmt: skip
def test_ops_that_wait_for_the_device_stay_out_of_cuda_graphs(name: str) -> None:
    """torch.compile(mode="reduce-overhead") captures the work around them.

    Those of a kept lattice do not wait, but each number of vertices would get a graph of its own.
    """
    assert torch.Tag.cudagraph_unsafe in getattr(OPS, name).default.tags


def test_autocast(device: torch.device) -> None:
    image, prob = smooth_image(1, 8, 8).to(device), soft(1, 2, 8, 8, torch.bfloat16).to(device)
    prob.requires_grad_()
    with torch.autocast(device.type, torch.bfloat16):
        loss = wsfast.dense_crf_loss(image, prob)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, wsfast.dense_crf_loss(image, prob.detach().float()))
    loss.backward()
    assert prob.grad.dtype == torch.bfloat16


def test_deterministic() -> None:
    """Any number of threads, any batch: the same bits."""
    image, prob = smooth_image(3, 260, 210), soft(3, 2, 260, 210)
    image[1] = torch.rand(3, 260, 210) * 255
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        arguments = ([15.0] * 3, 100.0, "symmetric", True)
        results.append(OPS.dense_crf_energy(image, prob, None, *arguments))
    for energy, filtered in results[1:]:
        assert torch.equal(energy, results[0][0])
        assert torch.equal(filtered, results[0][1])
    for n in range(3):
        part = slice(n, n + 1)
        energy, filtered = OPS.dense_crf_energy(image[part], prob[part], None, *arguments)
        assert torch.equal(energy, results[0][0][part])
        assert torch.equal(filtered, results[0][1][part])


def test_scaled_classes_are_equal_for_any_number_of_threads() -> None:
    image, prob = smooth_image(1, 70, 70), soft(1, 3, 70, 70)  # torch resizes three in its own way
    gradients = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        scaled = prob.clone().requires_grad_()
        wsfast.dense_crf_loss(image, scaled, scale_factor=1.5).backward()
        gradients.append(scaled.grad)
    assert torch.equal(*gradients)


def test_every_instruction_set() -> None:
    code = """
import torch, wsfast
torch.manual_seed(0)
noise, flat = torch.rand(2, 3, 40, 41) * 255, torch.rand(2, 3, 1, 41).expand(-1, -1, 40, -1) * 9
for image, classes in ((noise, 5), (noise, 2), (flat, 2)):
    prob = torch.rand(2, classes, 40, 41).requires_grad_()
    loss = wsfast.dense_crf_loss(image, prob)
    loss.backward()
    print(float(loss.detach()), float(prob.grad.double().norm()))
"""
    values = []
    for level in ("scalar", "avx2", "avx512"):
        done = python("-c", code, WSFAST_SIMD=level)
        assert done.returncode == 0, done.stderr
        values.append([float(number) for number in done.stdout.split()])
    assert values[1] == pytest.approx(values[0], rel=1e-5)
    assert values[2] == pytest.approx(values[0], rel=1e-5)


def test_a_lattice_of_inference_mode_serves_training(device: torch.device) -> None:
    image, prob = smooth_image(1, 8, 9).to(device), soft(1, 2, 8, 9).to(device).requires_grad_()
    expected = wsfast.dense_crf_loss(image, prob, sigma_rgb=15.0, sigma_xy=40.0)
    with torch.inference_mode():
        lattices = [
            wsfast.bilateral_lattice(image, sigma_rgb=15.0, sigma_xy=40.0),
            wsfast.Lattice(torch.rand(1, 2, 8, 9, device=device)),
        ]
        lattices.append(lattices[1].to(torch.float64))
    loss = wsfast.dense_crf_loss(None, prob, lattice=lattices[0])
    torch.testing.assert_close(loss, expected)
    loss.backward()
    wsfast.lattice_filter(prob, lattices[1]).sum().backward()
    wsfast.lattice_filter(prob.double(), lattices[2]).sum().backward()
    assert prob.grad.isfinite().all()


def test_a_mask_of_bytes_is_inside_where_it_is_not_zero(device: torch.device) -> None:
    image, prob = smooth_image(1, 8, 9).to(device), soft(1, 2, 8, 9).to(device)
    inside = torch.rand(1, 8, 9, device=device) > 0.4
    losses = [
        wsfast.dense_crf_loss(
            image, prob, sigma_rgb=15.0, sigma_xy=40.0, roi=roi, normalize="pixels"
        )
        for roi in (inside, inside * torch.tensor(255, dtype=torch.uint8))
    ]
    assert torch.equal(*losses)


def test_one_channel_compiles(device: torch.device) -> None:
    image, prob = smooth_image(1, 8, 9).to(device), soft(1, 2, 8, 9).to(device)[:, :1]

    def loss(image: torch.Tensor, prob: torch.Tensor) -> torch.Tensor:
        return wsfast.dense_crf_loss(image, prob, sigma_rgb=15.0, sigma_xy=40.0)

    with pytest.warns(UserWarning, match="with one channel"):
        expected = loss(image, prob)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image, prob), expected)
