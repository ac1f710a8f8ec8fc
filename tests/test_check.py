"""What the shared checks accept and refuse, through public functions of several rooms."""

import numpy as np
import pytest
import torch
from torch.func import jvp

import wsfast


def test_numbers_of_numpy() -> None:
    """What np.percentile, np.random and data frames give counts as a number."""
    grads, cams = torch.randn(2, 3, 8, 8), torch.rand(2, 8, 8)
    image, prob = torch.rand(2, 3, 8, 8) * 255, torch.rand(2, 2, 8, 8)
    pairs = [
        (wsfast.truncate_gradients(grads, np.float32(50)), wsfast.truncate_gradients(grads, 50)),
        (
            wsfast.cam_boxes(cams, np.float32(0.5), max_boxes=np.int64(4)).boxes,
            wsfast.cam_boxes(cams, 0.5, max_boxes=4).boxes,
        ),
        (
            wsfast.fuse_cams([cams], (np.int64(9), np.int32(7)), eps=np.float32(0)),
            wsfast.fuse_cams([cams], (9, 7), eps=0),
        ),
        (
            wsfast.sample_seeds(cams, foreground=np.int32(2), seed=np.int64(3), epoch=np.int16(1)),
            wsfast.sample_seeds(cams, foreground=2, seed=3, epoch=1),
        ),
        (
            wsfast.dense_crf_loss(image, prob, sigma_rgb=np.float32(15), sigma_xy=np.int64(9)),
            wsfast.dense_crf_loss(image, prob, sigma_rgb=15, sigma_xy=9),
        ),
        (
            wsfast.mean_field(prob, image, iterations=np.int64(2), sigma_xy=np.float32(9)),
            wsfast.mean_field(prob, image, iterations=2, sigma_xy=9),
        ),
    ]
    for found, expected in pairs:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("value", [True, "50", None, np.bool_(True), torch.tensor(50.0), [50]])
def test_what_is_no_number(value: object) -> None:
    with pytest.raises(TypeError, match=r"^wsfast.truncate_gradients: percentile must be a number"):
        wsfast.truncate_gradients(torch.rand(1, 1, 2, 2), value)
    with pytest.raises(TypeError, match=r"^wsfast.cam_boxes: max_boxes must be a whole number"):
        wsfast.cam_boxes(torch.rand(1, 2, 2), 0.5, max_boxes=value)


IMAGE = torch.rand(1, 3, 4, 4) * 255
COMPLEX = [
    (lambda x: wsfast.cam_boxes(torch.rand(2, 4, 4), x), "cam_boxes: threshold"),
    (lambda x: wsfast.fuse_cams([CAMS, CAMS], (4, 4), weights=x), "fuse_cams: weights"),
    (
        lambda x: wsfast.dense_crf_loss(IMAGE, CAMS[None], roi=x[:1].expand(1, 4, 4)),
        "dense_crf_loss: roi",
    ),
    (
        lambda x: wsfast.mean_field(
            CAMS.expand(1, 2, 4, 4), IMAGE, compatibility=x[None].expand(2, 2)
        ),
        "mean_field: compatibility",
    ),
]


@pytest.mark.parametrize(("call", "argument"), COMPLEX)
def test_what_is_not_real(call, argument) -> None:
    with pytest.raises(TypeError, match=f"^wsfast.{argument} must be a torch.Tensor of real"):
        call(torch.ones(2) * 1j)


CAMS, MASK = torch.rand(1, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool)
WHOLE = [
    (lambda x: wsfast.connected_components(MASK, connectivity=x), "connectivity"),
    (lambda x: wsfast.component_boxes(MASK, connectivity=x), "connectivity"),
    (lambda x: wsfast.component_boxes(MASK, max_boxes=x), "max_boxes"),
    (lambda x: wsfast.cam_boxes(CAMS, connectivity=x), "connectivity"),
    (lambda x: wsfast.cam_boxes(CAMS, min_area=x), "min_area"),
    (lambda x: wsfast.propose_boxes(CAMS[None], connectivity=x), "connectivity"),
    (lambda x: wsfast.label_boxes(MASK.int(), max_labels=x), "max_labels"),
    (lambda x: wsfast.otsu_threshold(CAMS, repeat=x), "repeat"),
    (lambda x: wsfast.fuse_cams([CAMS], (8, x)), "size"),
    (lambda x: wsfast.sample_seeds(CAMS, foreground=x), "foreground"),
    (lambda x: wsfast.sample_seeds(CAMS, erode=x), "erode"),
    (lambda x: wsfast.sample_seeds(CAMS, epoch=x), "epoch"),
    (lambda x: wsfast.sample_seeds(CAMS, seed=x), "seed"),
    (lambda x: wsfast.mean_field(torch.rand(1, 2, 4, 4), IMAGE, iterations=x), "iterations"),
]


@pytest.mark.parametrize("case", range(len(WHOLE)))
def test_whole_numbers_of_64_bits(case: int) -> None:
    call, argument = WHOLE[case]
    with pytest.raises(TypeError, match=rf"^wsfast\.\w+: {argument} must be a whole number"):
        call(8.0)
    with pytest.raises(ValueError, match=rf"^wsfast\.\w+: {argument} must be between -2\^63"):
        call(2**63)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch announces its prototypes
def test_only_dense_tensors() -> None:
    maps = torch.rand(2, 4, 4)
    nested = torch.nested.nested_tensor([maps[0], maps[1]])
    for other in (maps.to_sparse(), maps.to_mkldnn(), nested):
        with pytest.raises(TypeError, match=r"^wsfast.cam_boxes: cams must be a dense torch.Ten"):
            wsfast.cam_boxes(other)


IMAGE = torch.rand(1, 3, 4, 4) * 255
FORWARD = [
    (lambda x: wsfast.truncate_gradients(x, 50), "grads"),
    (lambda x: wsfast.truncated_gradcam(x, torch.rand_like(IMAGE), 50), "activations"),
    (lambda x: wsfast.truncated_layercam(torch.rand_like(IMAGE), x, 50), "grads"),
    (lambda x: wsfast.normalize_cams(x[0]), "cams"),
    (lambda x: wsfast.fuse_cams([x[0]], (8, 8)), "cams"),
    (lambda x: wsfast.fuse_cams([IMAGE[0]], (8, 8), weights=x[0, 0, 0, :1]), "weights"),
    (lambda x: wsfast.dense_crf_loss(IMAGE, x), "prob"),
    (lambda x: wsfast.mean_field(x, IMAGE), "logits"),
    (
        lambda x: wsfast.lattice_filter(
            x, wsfast.bilateral_lattice(IMAGE, sigma_rgb=9.0, sigma_xy=9.0)
        ),
        "values",
    ),
]


@pytest.mark.parametrize("case", range(len(FORWARD)))
@pytest.mark.filterwarnings("ignore::FutureWarning")  # jvp scripts its decompositions
def test_forward_mode_is_an_error_and_not_a_zero(case: int) -> None:
    """torch's custom ops drop a forward-mode tangent without a word."""
    call, argument = FORWARD[case]
    x = torch.rand(1, 3, 4, 4)
    with pytest.raises(ValueError, match=f"{argument} must be differentiated in reverse mode"):
        jvp(call, (x,), (torch.ones_like(x),))
    jvp(lambda y: wsfast.sample_seeds(y[0]) * y, (x,), (x,))  # nothing to lose: no derivative
