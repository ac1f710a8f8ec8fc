"""Box accuracies, PxAP and error kinds against the protocol in plain OpenCV and NumPy."""

import cv2
import numpy as np
import pytest
import torch
import torch.multiprocessing
from torch import Tensor

from benchmarks import opencv_protocol as protocol
from wsfast.metrics import LocalizationErrors, MaxBoxAcc, MaxBoxAccV2, PxAP, TopKLocalization

THRESHOLDS = np.arange(0, 1, 0.001)
BOX_METRICS = (MaxBoxAcc, MaxBoxAccV2)
FAMILIES = ("smooth", "noisy", "few", "binary", "zero", "dim", "rings")
HEIGHT, WIDTH = 33, 41


def make_map(family: str, rng: np.random.Generator) -> np.ndarray:
    coarse = rng.random((5, 6))
    smooth = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    maps = {
        "smooth": smooth,
        "noisy": np.clip(0.7 * smooth + 0.3 * rng.random(smooth.shape), 0, 1),
        "few": np.round(smooth * 4) / 4,
        "binary": (smooth > 0.5).astype(np.float64),
        "zero": np.zeros_like(smooth),
        "dim": 0.37 * smooth,
        "rings": 0.5 + 0.5 * np.sin(np.hypot(y - 16, x - 20)),
    }
    return maps[family]


def make_boxes(rng: np.random.Generator) -> np.ndarray:
    corners = rng.integers(0, [WIDTH, HEIGHT], size=(rng.integers(1, 4), 2, 2))
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


def make_batch(n: int, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    maps = [make_map(FAMILIES[i % len(FAMILIES)], rng) for i in range(n)]
    return maps, [make_boxes(rng) for _ in range(n)]


def as_tensors(maps, boxes, dtype=torch.float64) -> tuple[Tensor, list[Tensor]]:
    return torch.from_numpy(np.stack(maps)).to(dtype), [torch.from_numpy(b) for b in boxes]


@pytest.mark.parametrize("metric_type", BOX_METRICS)
@pytest.mark.parametrize("seed", range(3))
def test_counts_equal_the_protocol(metric_type, seed: int, device: torch.device) -> None:
    maps, boxes = make_batch(14, seed)
    metric = metric_type().to(device)
    tensors, truth = as_tensors(maps, boxes)
    for part in (slice(0, 5), slice(5, 14)):
        metric.update(tensors[part].to(device), [b.to(device) for b in truth[part]])
    expected = protocol.num_correct(
        maps, boxes, THRESHOLDS, metric.iou_levels, every_contour=metric.every_contour,
        collapse=True,
    )  # fmt: skip
    np.testing.assert_array_equal(metric.num_correct.cpu().numpy(), expected)
    assert metric.compute().item() == (expected / 14).max(axis=1).mean()


@pytest.mark.parametrize("metric_type", BOX_METRICS)
def test_float32_maps_count_alike(metric_type) -> None:
    maps, boxes = make_batch(14, 9)
    maps = [m.astype(np.float32).astype(np.float64) for m in maps]
    wide, narrow = metric_type(), metric_type()
    wide.update(*as_tensors(maps, boxes))
    narrow.update(*as_tensors(maps, boxes, torch.float32))
    assert torch.equal(wide.num_correct, narrow.num_correct)


def test_curve_and_best_threshold() -> None:
    maps = torch.zeros(1, 10, 10)
    maps[0, :, :] = 0.2
    maps[0, 2:6, 3:8] = 1.0
    metric = MaxBoxAcc()
    metric.update(maps, [torch.tensor([[3, 2, 8, 6]])])
    thresholds, accuracies = metric.curve()
    assert accuracies.shape == (1, 1000)
    assert metric.best_thresholds().item() == thresholds[int(accuracies[0].argmax())].item()
    assert accuracies[0, thresholds < 0.19].sum() == 0
    assert accuracies[0, thresholds > 0.21].min() == 1
    assert metric.compute().item() == 1


def test_top_k_needs_the_class() -> None:
    maps = torch.ones(4, 6, 6)
    boxes = [torch.tensor([[0, 0, 5, 5]])] * 4
    logits = torch.tensor([[3.0, 2, 1], [3, 2, 1], [3, 2, 1], [1, 1, 1]])
    target = torch.tensor([0, 1, 2, 0])
    for k, expected in ((1, 0.5), (2, 0.75), (3, 1.0)):
        metric = TopKLocalization(k=k)
        metric.update(maps, boxes, logits, target)
        assert metric.compute().item() == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_pxap_equals_the_protocol(dtype: torch.dtype) -> None:
    maps, _ = make_batch(14, 3)
    rng = np.random.default_rng(1)
    masks = [
        rng.choice([0, 1, 255], size=m.shape, p=[0.6, 0.3, 0.1]).astype(np.uint8) for m in maps
    ]
    tensor = torch.from_numpy(np.stack(maps)).to(dtype)
    metric = PxAP()
    metric.update(tensor, torch.from_numpy(np.stack(masks)))
    expected = protocol.pixel_average_precision(list(tensor.double().numpy()), masks, THRESHOLDS)
    assert metric.compute().item() == pytest.approx(expected, abs=1e-15)


def test_pxap_known_values() -> None:
    masks = torch.tensor([[[1, 1, 0, 0]]], dtype=torch.uint8)
    perfect, constant = PxAP(), PxAP()
    perfect.update(masks.float(), masks)
    assert perfect.compute().item() == 1
    constant.update(torch.full((1, 1, 4), 0.5), masks)
    assert constant.compute().item() == 0.5
    assert PxAP().compute().isnan()
    with pytest.raises(RuntimeError, match="masks must hold a foreground pixel"):
        PxAP().curve()
    assert constant(masks.float(), torch.zeros_like(masks)).isnan()  # a batch without an object
    assert 0 < constant.compute() < 0.5  # counts with those before


def test_every_kind_of_error() -> None:
    truth = [torch.tensor([[0, 0, 9, 9]])] * 6
    truth[2] = torch.tensor([[0, 0, 9, 9], [20, 0, 29, 9]])
    preds = torch.tensor(
        [[0, 0, 9, 9], [0, 0, 9, 9], [0, 0, 29, 39], [0, 0, 4, 4], [0, 0, 19, 19], [8, 8, 30, 30]]
    )
    classes, target = torch.tensor([1, 0, 1, 1, 1, 1]), torch.ones(6, dtype=torch.int64)
    metric = LocalizationErrors()
    metric.update(preds, truth, classes, target)
    found = metric.compute()
    kinds = ("correct", "class", "multi_instance", "part", "more", "other")
    assert {name: value.item() for name, value in found.items()} == dict.fromkeys(kinds, 1 / 6)


def test_merge_state_equals_one_metric() -> None:
    maps, boxes = as_tensors(*make_batch(10, 4))
    whole, first, second = MaxBoxAccV2(), MaxBoxAccV2(), MaxBoxAccV2()
    whole.update(maps, boxes)
    first.update(maps[:3], boxes[:3])
    second.update(maps[3:], boxes[3:])
    first.merge_state(second)
    assert torch.equal(first.num_correct, whole.num_correct)
    assert first.compute() == whole.compute()


def _count_share(rank: int, port: int, results) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    maps, boxes = as_tensors(*make_batch(10, 5))
    share = slice(0, 4) if rank == 0 else slice(4, 10)
    box, pixel = MaxBoxAccV2(), PxAP()
    box.update(maps[share], boxes[share])
    pixel.update(maps[share], (maps[share] > 0.6).byte())
    results[rank] = (box.compute().item(), pixel.compute().item())
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one() -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    maps, boxes = as_tensors(*make_batch(10, 5))
    box, pixel = MaxBoxAccV2(), PxAP()
    box.update(maps, boxes)
    pixel.update(maps, (maps > 0.6).byte())
    with torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(_count_share, args=(port, results), nprocs=2)
        assert results[0] == results[1] == (box.compute().item(), pixel.compute().item())


def test_reset_half_and_state_dict() -> None:
    metric = MaxBoxAcc().half()
    assert metric.thresholds.dtype == torch.float64
    maps, boxes = as_tensors(*make_batch(4, 6))
    metric.update(maps, boxes)
    metric.reset()
    assert metric.total == 0
    assert not metric.num_correct.any()
    metric.update(maps[:0], [])
    assert metric.total == 0


def test_plot(tmp_path) -> None:
    pytest.importorskip("matplotlib").use("agg")
    maps, boxes = as_tensors(*make_batch(4, 7))
    metric, pixel = MaxBoxAccV2(), PxAP()
    metric.update(maps, boxes)
    pixel.update(maps, (maps > 0.5).byte())
    for drawn in (metric, pixel):
        figure, _ = drawn.plot()
        figure.savefig(tmp_path / "curve.png")
        assert (tmp_path / "curve.png").stat().st_size > 0


MAPS, BOX = torch.rand(2, 5, 5), torch.tensor([[0, 0, 2, 2]])
BAD_UPDATES = (
    (MaxBoxAcc, (MAPS * 2, [BOX, BOX]), ValueError, "MaxBoxAcc.update: maps must be free of NaN"),
    (MaxBoxAcc, (MAPS / 0 * 0, [BOX, BOX]), ValueError, "maps must be free of NaN and within 0-1"),
    (MaxBoxAcc, (MAPS, [BOX]), ValueError, "boxes must be one tensor per map (2), got 1"),
    (MaxBoxAcc, (MAPS, [BOX, BOX[:0]]), ValueError, "boxes must be (G, 4) with G >= 1 each"),
    (MaxBoxAcc, (MAPS, [BOX, BOX.float()]), TypeError, "boxes must be integers, got torch.float32"),
    (MaxBoxAccV2, (MAPS, [BOX, -BOX]), ValueError, "boxes must be 0 <= x0 <= x1"),
    (MaxBoxAcc, (MAPS, [BOX, -BOX]), ValueError, "MaxBoxAcc.update: boxes must be 0 <= x0 <= x1"),
    (MaxBoxAcc, (MAPS[0], [BOX]), ValueError, "maps must be"),
    (MaxBoxAcc, (MAPS.byte(), [BOX, BOX]), TypeError, "maps must be"),
    (PxAP, (MAPS, MAPS), TypeError, "masks must be bool or uint8"),
    (PxAP, (MAPS, MAPS[:1].byte()), ValueError, "masks must be of the maps' shape"),
    (TopKLocalization, (MAPS, [BOX, BOX], torch.rand(3, 4), torch.tensor([0, 1])), ValueError,
     "logits must be of shape (2, classes)"),
    (TopKLocalization, (MAPS, [BOX, BOX], torch.rand(2, 4), torch.tensor([0.0, 1])), TypeError,
     "target must be int64"),
    (TopKLocalization, (MAPS, [BOX, BOX], torch.rand(2, 4), torch.tensor([0, 4])), ValueError,
     "target must be class numbers from 0 to 3, got 4"),
    (TopKLocalization, (MAPS, [BOX, BOX], torch.rand(2, 4), torch.tensor([-1, 3])), ValueError,
     "target must be class numbers from 0 to 3, got -1"),
    (TopKLocalization, (MAPS, [BOX, BOX], torch.rand(2, 4), [0, 1]), TypeError,
     "target must be a torch.Tensor"),
    (LocalizationErrors, (BOX[0], [BOX], BOX[0], BOX[0]), ValueError, "preds must be of shape"),
    (LocalizationErrors, (BOX, [BOX], torch.tensor([-1]), torch.tensor([1])), ValueError,
     "classes must be class numbers of 0 or more, got -1"),
    (LocalizationErrors, (BOX, [BOX], torch.tensor([1]), torch.tensor([1.0])), TypeError,
     "target must be integer class numbers, got torch.float32"),
)  # fmt: skip


@pytest.mark.parametrize("case", range(len(BAD_UPDATES)))
def test_errors(case: int) -> None:
    metric_type, arguments, error, message = BAD_UPDATES[case]
    metric = metric_type()
    with pytest.raises(error) as caught:
        metric.update(*arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="thresholds must be between 0 and 1"):
        MaxBoxAcc(thresholds=[0.5, 1.5])
    with pytest.raises(ValueError, match="k must be"):
        TopKLocalization(k=0)
