"""Room `seeds`: sets as defined, and native kernels bit for bit the reference."""

import contextlib
import math
import warnings

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

import wsfast
from tests.op_errors import check_error
from wsfast.ops.seeds import reference
from wsfast.ops.seeds.keys import image_keys
from wsfast.testing import FLOATING_DTYPES

FAMILIES = ("noise", "smooth", "relu", "few", "flat", "outside", "tiny")
DIPS = {"region": "top", "foreground_weights": "activation"}


def make_map(family: str, height: int, width: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).random((height, width), np.float32)
    return {
        "noise": noise,
        "smooth": cv2.GaussianBlur(noise, (0, 0), 2),
        "relu": np.maximum(noise - 0.6, 0) / 0.4,
        "few": np.round(noise * 4) / 4,
        "flat": np.full_like(noise, 0.4),
        "outside": noise * 3 - 1,
        "tiny": noise * 1e-3,
    }[family].astype(np.float32)


def batch(height: int, width: int) -> torch.Tensor:
    return torch.stack(
        [torch.from_numpy(make_map(family, height, width, 7)) for family in FAMILIES]
    )


def points(cams: torch.Tensor, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """Foreground and background pixels as drawn, before dilation."""
    seeds = wsfast.sample_seeds(cams, dilate=0, **options)
    both = {"dilate": 0, "seed": 0, **options}
    front = wsfast.sample_seeds(cams, **{**both, "background": 0}) == 1
    back = wsfast.sample_seeds(cams, **{**both, "foreground": 0}) == 0
    assert torch.equal(seeds == 1, front & ~back)
    assert torch.equal(seeds == 0, back & ~front)
    return front, back


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(FAMILIES),
    st.integers(1, 24),
    st.integers(1, 24),
    st.integers(0, 40),
    st.integers(0, 40),
    st.sampled_from([0.0, 0.1, 0.35, 1.0]),
    st.sampled_from([0.0, 0.3, 0.95, 1.0]),
    st.sampled_from([0, 1, 3, 11]),
    st.integers(0, 2**31 - 1),
)
def test_sets_against_opencv_and_sorting(
    family: str,
    height: int,
    width: int,
    foreground: int,
    background: int,
    top_share: float,
    low_share: float,
    erode: int,
    seed: int,
) -> None:
    image = make_map(family, height, width, seed)
    x0, y0, x1, y1 = np.random.default_rng(seed).integers(-2, 26, 4).tolist()
    inside = np.zeros((height, width), bool)
    inside[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
    options = {
        "foreground": foreground,
        "background": background,
        "foreground_share": top_share,
        "background_share": low_share,
        "roi": torch.tensor([[x0, y0, x1, y1]]),
        "seed": seed,
    }
    cam = torch.from_numpy(image)[None]
    clean = np.clip(image, 0, 1)
    levels = (clean * np.float32(255)).astype(np.uint8)
    constant = levels.min() == levels.max()

    # Otsu: OpenCV's erosion, whose outside counts for nothing.
    level = int((wsfast.otsu_threshold(cam) * 255).round()) - 1
    region = ((levels > min(max(level, 1), 254)) & inside).astype(np.uint8)
    if erode > 1:
        shrunk = cv2.erode(region, np.ones((erode, erode), np.uint8))
        region = shrunk if shrunk.any() else region
    region = region.astype(bool) & ~constant
    front, back = points(cam, erode=erode, **options)
    drawn = front[0].numpy()
    assert not (drawn & ~region).any()
    assert drawn.sum() == min(foreground, region.sum())

    # The lowest share, at ties any of the equals.
    wanted = 0 if constant else int(low_share * image.size)
    ordered = np.sort(clean.ravel())
    low = clean <= ordered[max(wanted - 1, 0)] if wanted else np.zeros_like(inside)
    drawn = back[0].numpy()
    assert not (drawn & ~low).any()
    assert drawn.sum() == min(background, wanted)

    # The highest share of the ROI; weights never take zeros.
    front, back = points(cam, **DIPS, background_outside_roi=True, **options)
    wanted = 0 if constant else int(top_share * inside.sum())
    ordered = -np.sort(-clean[inside])
    high = inside & (clean >= ordered[max(wanted - 1, 0)]) if wanted else np.zeros_like(inside)
    drawn = front[0].numpy()
    assert not (drawn & ~high).any()
    assert not (clean[drawn] == 0).any()
    assert drawn.sum() == min(foreground, min(wanted, int((clean[inside] > 0).sum())))
    drawn = back[0].numpy()
    assert not (drawn & inside).any()
    assert drawn.sum() == min(background, 0 if constant else int(low_share * (~inside).sum()))


def test_known_values() -> None:
    cam = torch.tensor([[[0.0, 0.1, 0.2, 0.3], [0.9, 1.0, 0.8, 0.4]]])
    options = {"foreground": 8, "background": 8, "dilate": 0}
    found = wsfast.sample_seeds(cam, background_share=0.5, **options)
    assert found.tolist() == [[[0, 0, 0, 0], [1, 1, 1, -255]]]
    found = wsfast.sample_seeds(cam, region="top", foreground_share=0.25, **options)
    assert found.tolist() == [[[0, 0, -255, -255], [1, 1, -255, -255]]]
    roi = torch.tensor([[2, 0, 4, 2]])
    found = wsfast.sample_seeds(
        cam, region="top", foreground_share=0.5, background_outside_roi=True,
        background_share=0.5, roi=roi, **options,
    )  # fmt: skip
    assert found.tolist() == [[[0, 0, -255, -255], [-255, -255, 1, 1]]]
    both = wsfast.sample_seeds(cam, background_share=1.0, **options)
    assert both.tolist() == [[[0, 0, 0, 0], [-255, -255, -255, 0]]]  # claimed twice
    assert found.dtype == torch.int64


def test_dilation_grows_squares_and_ignores_conflicts() -> None:
    cams = torch.zeros(1, 9, 9)
    cams[0, 4, 6] = 1.0
    options = {"roi": torch.tensor([[4, 0, 9, 9]]), "background_outside_roi": True, "seed": 3}
    for dilate in (1, 3, 5, 31):
        small = wsfast.sample_seeds(cams, dilate=0, **options)[0].numpy()
        grown = wsfast.sample_seeds(cams, dilate=dilate, **options)[0].numpy()
        square = np.ones((dilate, dilate), np.uint8)
        front, back = (cv2.dilate((small == k).astype(np.uint8), square) > 0 for k in (1, 0))
        np.testing.assert_array_equal(grown == 1, front & ~back)
        np.testing.assert_array_equal(grown == 0, back & ~front)
        assert (small == 1).sum() == (small == 0).sum() == 1


def test_constant_maps_and_background_only(device: torch.device) -> None:
    cams = torch.rand(4, 12, 13, device=device)
    cams[1] = 0.7
    cams[2] = 0.7
    clean = torch.tensor([False, False, True, True], device=device)
    boxes = torch.tensor([[2, 2, 9, 9]] * 4, device=device)
    seeds = wsfast.sample_seeds(
        cams, background=200, roi=boxes, background_outside_roi=True, background_only=clean, seed=1
    )
    assert (seeds[0] == 1).any()
    assert (seeds[1] == -255).all()
    assert (seeds[2:] == 0).all()  # 200 is more than there is, whatever the share and the ROI
    few = wsfast.sample_seeds(cams, background=5, dilate=0, background_only=clean, seed=1)
    assert (few == 0).flatten(1).sum(1).tolist() == [5, 0, 5, 5]
    assert not (few[2:] == 1).any()


def test_a_box_without_pixels_leaves_background() -> None:
    cams = torch.rand(3, 10, 10)
    boxes = torch.tensor([[4, 4, 4, 8], [-9, -9, 0, 5], [-1, -1, -1, -1]])
    seeds = wsfast.sample_seeds(cams, roi=boxes, region="top", seed=0)
    assert not (seeds == 1).any()
    assert (seeds == 0).flatten(1).any(1).all()


# ---- the same everywhere ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint32, torch.int64, torch.uint64])
def test_boxes_beyond_int32(device: torch.device, dtype: torch.dtype) -> None:
    cams = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)).to(device)
    options = {"foreground": 9, "seed": 1}
    expected = wsfast.sample_seeds(cams, roi=torch.tensor([[2, 0, 8, 8]], device=device), **options)
    high = 2**32 + 1 if dtype != torch.uint32 else 2**32 - 1
    roi = torch.tensor([[2, 0, high, 8]], dtype=dtype, device=device)
    assert torch.equal(wsfast.sample_seeds(cams, roi=roi, **options), expected)


def test_independent_of_the_batch() -> None:
    cams = batch(20, 21)
    ids = torch.tensor([5, 0, 999_999_999_999, 3, -4, 8, 7])
    options = {"foreground": 4, "background": 9, "seed": 42, "epoch": 3, **DIPS}
    whole = wsfast.sample_seeds(cams, image_ids=ids, **options)
    order = torch.randperm(len(cams))
    assert torch.equal(
        wsfast.sample_seeds(cams[order], image_ids=ids[order], **options), whole[order]
    )
    for n in range(len(cams)):
        one = wsfast.sample_seeds(cams[n : n + 1], image_ids=ids[n : n + 1], **options)
        assert torch.equal(one[0], whole[n])
    shards = [wsfast.sample_seeds(cams[r::3], image_ids=ids[r::3], **options) for r in range(3)]
    for rank, shard in enumerate(shards):
        assert torch.equal(shard, whole[rank::3])
    other = wsfast.sample_seeds(cams, image_ids=ids, **{**options, "epoch": 4})
    assert not torch.equal(other, whole)


def test_seeds_without_a_seed_follow_the_generator() -> None:
    cams = torch.rand(3, 30, 31)
    torch.manual_seed(7)
    first, second = wsfast.sample_seeds(cams), wsfast.sample_seeds(cams)
    assert not torch.equal(first, second)
    torch.manual_seed(7)
    assert torch.equal(wsfast.sample_seeds(cams), first)
    own = [wsfast.sample_seeds(cams, generator=torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(own[0], own[1])
    state = torch.get_rng_state()
    wsfast.sample_seeds(cams, seed=3)
    assert torch.equal(torch.get_rng_state(), state)


def test_keys_are_splitmix64() -> None:
    """Against Python's own integers."""

    def mix(word: int) -> int:
        word &= 2**64 - 1
        word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
        return word ^ word >> 31

    ids = [0, 1, 2**40, -3]
    for seed, epoch in ((0, 0), (-1, 5), (2**63 - 1, 10**6), (-(2**63), 2**63 - 1)):
        golden = 0x9E3779B97F4A7C15
        expected = [mix(mix(mix(seed + golden) + image) + epoch) for image in ids]
        for keys_of in (image_keys, torch.ops.wsfast.seed_keys):
            found = keys_of(torch.tensor([seed]), torch.tensor(ids), epoch)
            assert [word % 2**64 for word in found.tolist()] == expected


def test_keys_match_reference(device: torch.device) -> None:
    seed = torch.randint(-(2**62), 2**62, (1,), device=device)
    for n in (0, 1, 257, 5000):
        ids = torch.randint(-(2**62), 2**62, (2 * n,), device=device)
        for strided in (ids, ids[::2]):
            found = torch.ops.wsfast.seed_keys(seed, strided, 3)
            assert torch.equal(found, image_keys(seed, strided, 3))
    for wrong in ((seed[:0], ids), (seed, ids[None]), (seed, ids.int()), (ids, ids)):
        with pytest.raises(RuntimeError, match="wsfast::seed_keys: "):
            torch.ops.wsfast.seed_keys(*wrong, 0)


def test_exponentials_are_logarithms() -> None:
    hashes = torch.cat(
        [torch.arange(50), 2**31 + torch.arange(-50, 50), 2**32 - 1 - torch.arange(50),
         torch.randint(2**32, (5000,))]
    )  # fmt: skip
    exact = -torch.log1p(-(hashes.double() + 0.5) / 2**32)
    torch.testing.assert_close(reference.exponentials(hashes), exact, rtol=1e-7, atol=0)
    ordered = reference.exponentials(hashes.unique())
    assert bool((ordered.diff() > 0).all())


RANDOM_SETTINGS = [
    (1, 1, False, 0.1, 0.3, False, False, 11, 3),
    (10, 60, True, 0.01, 0.95, False, False, 0, 3),
    (300, 240, True, 0.938, 0.906, True, False, 0, 3),
    (5, 5, False, 0.1, 0.5, True, True, 3, 7),
    (100_000, 100_000, True, 1.0, 1.0, True, False, 0, 1),
    (0, 0, True, 0.0, 0.0, False, True, 0, 0),
]


@pytest.mark.parametrize("settings_", RANDOM_SETTINGS)
def test_forward_matches_reference(device: torch.device, settings_: tuple) -> None:
    for shape in ((1, 1), (1, 130), (47, 65), (128, 129)):
        cams = batch(*shape).to(device)
        keys = torch.randint(-(2**62), 2**62, (len(cams),), device=device)
        boxes = torch.randint(-3, 80, (len(cams), 4), dtype=torch.int32, device=device)
        for roi in (None, boxes, torch.rand(cams.shape, device=device) < 0.5):
            clean = None if roi is None else torch.rand(len(cams), device=device) < 0.3
            arguments = [cams, keys, roi, clean, *settings_]
            found, valid = torch.ops.wsfast.sample_seeds(*arguments)
            assert torch.equal(found, reference.sample_seeds(*arguments))
            assert valid.all()


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
def test_dtypes_and_strides(device: torch.device, dtype: torch.dtype) -> None:
    cams = torch.rand(3, 19, 23, device=device).to(dtype)
    options = {"foreground": 7, "background": 9, "seed": 1, **DIPS}
    expected = wsfast.sample_seeds(cams.float(), **options)
    assert torch.equal(wsfast.sample_seeds(cams, **options), expected)
    turned = cams.transpose(1, 2).contiguous().transpose(1, 2)
    sliced = torch.stack([cams, cams], dim=3)[..., 0]
    for strided in (turned, sliced):
        assert not strided.is_contiguous()
        assert torch.equal(wsfast.sample_seeds(strided, **options), expected)
    wide = torch.rand(1, 19, 23, device=device).to(dtype).expand(3, -1, -1)
    same_id = torch.zeros(3, dtype=torch.int32)
    seeds = wsfast.sample_seeds(wide, image_ids=same_id, **options)
    assert torch.equal(seeds[0], seeds[2])


def test_empty_batch_and_single_pixel(device: torch.device) -> None:
    empty = wsfast.sample_seeds(torch.rand(0, 4, 5, device=device), seed=0)
    assert empty.shape == (0, 4, 5)
    assert empty.dtype == torch.int64
    one = wsfast.sample_seeds(torch.rand(2, 1, 1, device=device), seed=0)
    assert one.tolist() == [[[-255]], [[-255]]]  # constant
    large = torch.rand(1, 1500, 1400, device=device)  # more pixels than 2^20
    assert int((wsfast.sample_seeds(large, foreground=9, dilate=0, seed=0) == 1).sum()) == 9


def test_deterministic() -> None:
    cams = batch(150, 160)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(wsfast.sample_seeds(cams, foreground=20, background=500, seed=9, **DIPS))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_not_differentiable() -> None:
    cams = torch.rand(2, 9, 8, requires_grad=True)
    assert not wsfast.sample_seeds(cams).requires_grad


def test_loss_ignores_the_rest() -> None:
    """The labels are what cross_entropy(ignore_index=-255) takes."""
    seeds = wsfast.sample_seeds(torch.rand(2, 9, 8), seed=0)
    logits = torch.zeros(2, 2, 9, 8, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(logits, seeds, ignore_index=-255)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert torch.equal(logits.grad[:, 0] != 0, seeds != -255)


# ---- compilers ----------------------------------------------------------------------------------


def every_use(cams: torch.Tensor, roi: torch.Tensor) -> list[torch.Tensor]:
    plain = wsfast.sample_seeds(cams, seed=3, epoch=2)
    boxed = wsfast.sample_seeds(
        cams,
        foreground=4,
        region="top",
        foreground_weights="activation",
        roi=roi,
        background_outside_roi=True,
        background_only=cams[:, 0, 0] > 0.5,
        seed=5,
    )
    return [plain, boxed]


class EveryUse(torch.nn.Module):
    def forward(self, cams: torch.Tensor, roi: torch.Tensor) -> list[torch.Tensor]:
        return every_use(cams, roi)


def inputs(n: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    boxes = torch.tensor([[1, 2, 7, 9]], device=device).expand(n, -1)
    return torch.rand(n, 9, 8, device=device), boxes.contiguous()


def assert_all_equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_opcheck(device: torch.device) -> None:
    cams, boxes = inputs(2, device)
    keys = torch.tensor([1, 2], device=device)
    for roi, clean in ((None, None), (boxes.int(), keys > 1), (cams > 0.5, None)):
        arguments = (cams, keys, roi, clean, 2, 3, True, 0.1, 0.3, True, False, 3, 3)
        opcheck(torch.ops.wsfast.sample_seeds.default, arguments)
    for n in (0, 3):
        ids = torch.arange(n, device=device)
        opcheck(torch.ops.wsfast.seed_keys.default, (keys[:1], ids, 7))


def test_compile_fullgraph(device: torch.device) -> None:
    compiled = torch.compile(every_use, fullgraph=True, dynamic=True)
    for n in (2, 3):
        arguments = inputs(n, device)
        assert_all_equal(compiled(*arguments), every_use(*arguments))
    epochs = torch.compile(
        lambda cams, epoch: wsfast.sample_seeds(cams, seed=1, epoch=epoch),
        fullgraph=True,
        backend="eager",
    )
    cams = torch.rand(2, 9, 8, device=device)
    for epoch in range(3):
        assert torch.equal(epochs(cams, epoch), wsfast.sample_seeds(cams, seed=1, epoch=epoch))


@pytest.mark.parametrize("kind", ["meta", "cuda"])
def test_tensors_without_values(kind: str) -> None:
    """Meta tensors and fake ones of a device that need not be there."""
    with FakeTensorMode() if kind == "cuda" else contextlib.nullcontext():
        seeds = wsfast.sample_seeds(torch.empty(2, 5, 6, device=kind), seed=1)
    assert seeds.shape == (2, 5, 6)
    assert seeds.device.type == kind


def test_export(device: torch.device) -> None:
    shapes = {"cams": {0: torch.export.Dim("n", min=1, max=64)}}
    shapes["roi"] = shapes["cams"]
    program = torch.export.export(EveryUse().eval(), inputs(2, device), dynamic_shapes=shapes)
    arguments = inputs(5, device)
    assert_all_equal(program.module()(*arguments), every_use(*arguments))


def test_script_and_trace(device: torch.device) -> None:
    arguments = inputs(2, device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(every_use)
        traced = torch.jit.trace(every_use, arguments, check_trace=False)
    for found in (scripted(*arguments), traced(*arguments)):
        assert_all_equal(found, every_use(*arguments))


# ---- bad input ----------------------------------------------------------------------------------

CAMS = torch.rand(2, 5, 6)
BOXES = torch.tensor([[0, 0, 3, 3]] * 2)
NAN = CAMS.clone()
NAN[1, 2, 3] = math.nan
ERRORS = [
    ({"generator": 3}, TypeError, "generator must be None or a torch.Generator, got int"),
    ({"cams": CAMS[0]}, ValueError, "cams must be a tensor of 3"),
    ({"cams": CAMS[:, :0]}, ValueError, "cams must be maps with H, W >= 1"),
    ({"cams": CAMS.int()}, TypeError, "cams must be float32"),
    ({"cams": NAN}, ValueError, "cams must be free of NaN, got NaN in image 1"),
    ({"cams": [1.0]}, TypeError, "cams must be a torch.Tensor"),
    ({"foreground": -1}, ValueError, "foreground must be at least 0"),
    ({"background": 1.5}, TypeError, "background must be a whole number"),
    ({"region": "all"}, ValueError, "region must be one of otsu, top"),
    ({"foreground_share": 1.1}, ValueError, "foreground_share must be between"),
    ({"background_share": math.nan}, ValueError, "background_share must be between"),
    ({"foreground_weights": "cam"}, ValueError, "foreground_weights must be one of uniform"),
    ({"erode": 2}, ValueError, "erode must be 0 or odd, got 2"),
    ({"erode": 2**40 + 1}, ValueError, "erode must be below 2^31, got 1099511627777"),
    ({"dilate": 4}, ValueError, "dilate must be 0 or odd, got 4"),
    ({"roi": BOXES[:1]}, ValueError, "roi must be boxes of shape (2, 4)"),
    ({"roi": BOXES.float()}, TypeError, "roi must be integer boxes (N, 4) or a bool or uint8 mask"),
    ({"roi": CAMS[:, :4] > 0}, ValueError, "roi must be of the maps' shape"),
    ({"background_outside_roi": True}, ValueError, "must be False without a roi"),
    ({"background_only": torch.ones(3) > 0}, ValueError, "background_only must be of shape (2,)"),
    ({"background_only": torch.ones(2)}, TypeError, "background_only must be bool"),
    ({"image_ids": torch.arange(3)}, ValueError, "image_ids must be of shape (2,)"),
    ({"image_ids": torch.ones(2)}, TypeError, "image_ids must be integers"),
    ({"seed": 2**63}, ValueError, "seed must be between"),
    ({"seed": 0.5}, TypeError, "seed must be a whole number"),
    ({"epoch": -1}, ValueError, "epoch must be at least 0"),
]


@pytest.mark.parametrize("case", range(len(ERRORS)))
def test_errors(case: int) -> None:
    arguments, kind, message = ERRORS[case]
    arguments = {"cams": CAMS, **arguments}
    check_error((lambda: wsfast.sample_seeds(**arguments), kind, message), "sample_seeds")


@pytest.mark.parametrize("place", [0, 63, 64, 129, 70 * 130 - 1])
def test_nan_is_found_anywhere(place: int) -> None:
    cams = torch.rand(3, 70, 130)
    cams[1].view(-1)[place] = math.nan
    with pytest.raises(ValueError, match="free of NaN, got NaN in image 1"):
        wsfast.sample_seeds(cams)


def test_a_mask_of_bytes_is_inside_where_it_is_not_zero(device: torch.device) -> None:
    cams = torch.rand(2, 9, 8, device=device)
    inside = torch.rand(2, 9, 8, device=device) > 0.4
    found = [
        wsfast.sample_seeds(cams, seed=1, roi=roi)
        for roi in (inside, inside * torch.tensor(255, dtype=torch.uint8))
    ]
    assert torch.equal(*found)
