"""What every metric promises: devices, merging, processes, refused batches, casts, plots."""

import pytest
import torch
import torch.multiprocessing
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from tests.metrics.batches import as_tensors, make_batch
from wsfast.metrics import (
    DefectSegmentation,
    LocalizationErrors,
    MaxBoxAcc,
    MaxBoxAccV2,
    PxAP,
    TopKLocalization,
)
from wsfast.metrics.localization import BoxAccuracy


def every_metric() -> list[Metric]:
    return [
        MaxBoxAcc(), MaxBoxAccV2(), TopKLocalization(k=2), PxAP(), LocalizationErrors(),
        DefectSegmentation(),
    ]  # fmt: skip


def count(metric: Metric, share: slice, device: torch.device | str = "cpu") -> None:
    """Count some of ten images."""
    maps, boxes = as_tensors(*make_batch(10, 4))
    masks = objects_in_the_last(maps)[share].to(device)
    maps, boxes = maps[share].to(device), [b.to(device) for b in boxes[share]]
    target = (torch.arange(10)[share] % 3).to(device)
    if isinstance(metric, TopKLocalization):
        metric.update(maps, boxes, maps[:, 0, :4], target)
    elif isinstance(metric, PxAP):
        metric.update(maps, masks)
    elif isinstance(metric, LocalizationErrors):
        metric.update(torch.stack([b[0] for b in boxes]) // 2, boxes, target // 2, target)
    elif isinstance(metric, DefectSegmentation):
        metric.update(maps > 0.5, masks.bool())
    else:
        metric.update(maps, boxes)


def of_all(metric: Metric) -> list:
    """All results of a metric, to be compared between processes."""
    results: list = [metric.compute()]
    if isinstance(metric, BoxAccuracy | PxAP):
        results += metric.curve()
    if isinstance(metric, BoxAccuracy):
        results.append(metric.best_thresholds())
    told = [r.values() if isinstance(r, dict) else [r] for r in results]
    return [value.tolist() for values in told for value in values]


@pytest.mark.parametrize("at", range(6))
def test_every_device_counts_alike(at: int, device: torch.device) -> None:
    here, there = every_metric()[at], every_metric()[at].to(device)
    count(here, slice(0, 10))
    count(there, slice(0, 10), device)
    assert of_all(there) == of_all(here)


@pytest.mark.parametrize("at", range(6))
def test_merge_state_equals_one_metric(at: int) -> None:
    whole, first, second = (every_metric()[at] for _ in range(3))
    count(whole, slice(0, 10))
    count(first, slice(0, 3))
    before = first.compute()
    count(second, slice(3, 10))
    first.merge_state(second)
    for name, value in whole.metric_state.items():
        assert torch.equal(first.metric_state[name], value)
    assert of_all(first) == of_all(whole)
    assert at == 4 or first.compute() != before  # not what compute had kept


def test_merge_state_refuses_other_settings() -> None:
    metric = MaxBoxAcc(thresholds=[0.1, 0.2])
    count(metric, slice(0, 3))
    before = metric.num_correct
    for other in (MaxBoxAcc(thresholds=[0.8, 0.9]), MaxBoxAccV2(thresholds=[0.1, 0.2])):
        with pytest.raises(ValueError, match=r"MaxBoxAcc\.merge_state: incoming_state must be of"):
            metric.merge_state(other)
    with pytest.raises(ValueError, match="incoming state to be a dict or an instance of Metric"):
        metric.merge_state(5)
    assert torch.equal(metric.num_correct, before)


@pytest.mark.parametrize("at", range(4))
def test_a_batch_that_is_refused_costs_no_counts(at: int) -> None:
    metric, expected = every_metric()[at], every_metric()[at]
    count(metric, slice(0, 3))
    for share in (slice(0, 3), slice(3, 10)):
        count(expected, share)
    bad = torch.full((1, 8, 8), torch.nan)
    arguments = {2: (torch.ones(1, 3), torch.tensor([0]))}.get(at, ())
    truth = torch.zeros(1, 8, 8, dtype=torch.bool) if at == 3 else WHOLE
    with pytest.raises(ValueError, match="free of NaN"):
        metric(bad, truth, *arguments)
    assert metric._to_sync
    count(metric, slice(3, 10))
    assert of_all(metric) == of_all(expected)


def test_curves_and_thresholds_are_copies() -> None:
    mine = torch.tensor([0.1, 0.5], dtype=torch.float64)
    metric = MaxBoxAcc(thresholds=mine)
    count(metric, slice(0, 3))
    mine *= 100
    metric.curve()[0].mul_(100)
    assert metric.curve()[0].tolist() == [0.1, 0.5]


def test_of_equal_thresholds_the_lowest_is_best() -> None:
    metric = MaxBoxAccV2(thresholds=[0.9, 0.1, 0.5])
    metric.update(torch.ones(1, 8, 8), torch.tensor([[0, 0, 7, 7]]))
    assert metric.best_thresholds().tolist() == [0.1, 0.1, 0.1]


def assert_as_alone(metrics: dict, *batches: tuple) -> None:
    """In a collection, metrics give what each gives alone."""
    found = MetricCollection({name: metric.clone() for name, metric in metrics.items()})
    for batch in batches:
        found.update(*batch)
        for metric in metrics.values():
            metric.update(*batch)
    assert len(found.compute_groups) == len(metrics)
    assert found.compute() == {name: metric.compute() for name, metric in metrics.items()}


def test_a_collection_keeps_metrics_apart_that_start_alike() -> None:
    """The first batch, without a hit, leaves the same counts in each of them."""
    maps = torch.full((1, 8, 8), 0.5)
    maps[0, 1:4, 1:5] = 1.0
    inside, elsewhere = torch.tensor([[1, 1, 5, 4]]), torch.tensor([[7, 7, 7, 7]])
    logits, second = torch.tensor([[3.0, 2, 1]]), torch.tensor([1])
    metrics = {f"top{k}": TopKLocalization(k=k) for k in (1, 2)}
    assert_as_alone(metrics, (maps, elsewhere, logits, second), (maps, inside, logits, second))
    assert metrics["top1"].compute() < metrics["top2"].compute()
    low, high = [0.1, 0.2], [0.8, 0.9]
    metrics = {"low": MaxBoxAcc(thresholds=low), "high": MaxBoxAcc(thresholds=high)}
    assert_as_alone(metrics, (maps, elsewhere), (maps, inside))
    assert metrics["low"].compute() < metrics["high"].compute()
    metrics = {"low": PxAP(thresholds=[0, *low]), "high": PxAP(thresholds=[0, *high])}
    masks = torch.ones(1, 8, 8, dtype=torch.bool)
    assert_as_alone(metrics, (torch.zeros_like(maps), ~masks), (maps / 2, masks))
    same = MetricCollection({"one": MaxBoxAcc(), "other": MaxBoxAcc()})
    same.update(maps, inside)
    assert len(same.compute_groups) == 1


def _count_share(rank: int, port: int, results) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    found = []
    for metric in every_metric():
        count(metric, slice(0, 4) if rank == 0 else slice(4, 10))
        kept = {name: value.clone() for name, value in metric.metric_state.items()}
        found.append(of_all(metric))
        for name, value in kept.items():
            assert torch.equal(metric.metric_state[name], value)  # its own again
    results[rank] = found
    torch.distributed.destroy_process_group()


def objects_in_the_last(maps: Tensor) -> Tensor:
    """Masks of which the first four, one process's share, have no object."""
    masks = (maps > 0.6).byte()
    masks[:4] = 0
    return masks


def test_two_processes_equal_one() -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    expected = []
    for metric in every_metric():
        count(metric, slice(0, 10))
        expected.append(of_all(metric))
    with torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(_count_share, args=(port, results), nprocs=2)
        assert results[0] == results[1] == expected


@pytest.mark.parametrize(
    "cast",
    [
        nn.Module.half,
        lambda modules: modules.to(torch.bfloat16),
        lambda modules: [metric.set_dtype(torch.float16) for metric in modules],
    ],
)
def test_casts_change_no_count(cast) -> None:
    maps, boxes = as_tensors(*make_batch(7, 6))
    masks = (maps > 0.5).byte()
    plain, modules = (nn.ModuleList([MaxBoxAcc(), PxAP()]) for _ in range(2))
    cast(modules)
    for box, pixel in (plain, modules):
        box.update(maps, boxes)
        pixel.update(maps, masks)
    assert torch.equal(modules[0].num_correct, plain[0].num_correct)
    assert torch.equal(modules[1].histograms, plain[1].histograms)
    assert modules[0].num_correct.dtype == modules[1].histograms.dtype == torch.int64
    assert modules[0].curve()[0].dtype == torch.float64


MASK = torch.zeros(1, 6, 6, dtype=torch.bool)
MASK[0, 1:4, 1:4] = True
WHOLE = torch.tensor([[0, 0, 3, 3]])


@pytest.mark.parametrize(
    ("metric", "batch"),
    [
        (MaxBoxAccV2(), (MASK.float(), WHOLE)),
        (TopKLocalization(), (MASK.float(), WHOLE, torch.ones(1, 2), torch.tensor([0]))),
        (PxAP(), (MASK.float(), MASK)),
        (LocalizationErrors(), (WHOLE, WHOLE, torch.tensor([0]), torch.tensor([0]))),
        (DefectSegmentation(), (MASK, MASK)),
    ],
)
def test_counts_made_in_inference_mode_go_on_outside(metric, batch: tuple) -> None:
    expected = metric.clone()
    for _ in range(2):
        expected.update(*batch)
    for start in (lambda: metric(*batch), lambda: (metric.reset(), metric.update(*batch))):
        with torch.inference_mode():
            start()
        metric.update(*batch)
        for name, value in expected.metric_state.items():
            assert torch.equal(metric.metric_state[name], value)


def test_reset_and_state_dict() -> None:
    metric, loaded = MaxBoxAcc(), MaxBoxAcc()
    maps, boxes = as_tensors(*make_batch(4, 6))
    metric.update(maps, boxes)
    metric.persistent(True)
    loaded.load_state_dict(metric.state_dict())
    assert torch.equal(loaded.num_correct, metric.num_correct)
    assert torch.equal(loaded.fingerprint, metric.fingerprint)
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
    figures = MetricCollection({"box": metric, "pixel": pixel}).plot()
    assert len(figures) == 2
    for each in every_metric():
        count(each, slice(0, 10))
        assert each.plot()[1].has_data()
    _, axes = metric.plot([metric.compute()] * 3)  # values of three epochs
    assert len(axes.lines[0].get_ydata()) == 3
