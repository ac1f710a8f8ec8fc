"""Room `seeds`: how often pixels are drawn, by chi-square against exact probabilities."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch

import wsfast

stats = pytest.importorskip("scipy.stats")

DIPS = {"region": "top", "foreground_weights": "activation"}


def frequencies(cam: torch.Tensor, label: int, epochs: int, **options) -> np.ndarray:
    """How often each pixel got the label in so many epochs, all in one batch."""
    cams = cam[None].expand(epochs, -1, -1)
    ids = torch.arange(epochs)
    seeds = wsfast.sample_seeds(cams, dilate=0, image_ids=ids, seed=11, **options)
    return (seeds == label).sum(0).numpy().ravel()


def assert_inclusion(counts: np.ndarray, expected: np.ndarray, epochs: int) -> None:
    """Chi-square of inclusion counts against exact inclusion probabilities."""
    inside = expected > 0
    assert not counts[~inside].any()
    certain = expected >= 1 - 1e-12
    assert (counts[certain] == epochs).all()
    open_ = inside & ~certain
    p = expected[open_]
    score = ((counts[open_] - epochs * p) ** 2 / (epochs * p * (1 - p))).sum()
    free = len(p) - 1  # the counts have a fixed sum, which also spreads them a little
    assert stats.chi2.sf(score * free / len(p), free) > 1e-4


def successive_inclusion(weights: np.ndarray, n: int) -> np.ndarray:
    """Probability that each item is among n draws in proportion to what is left, exactly."""
    chosen = {frozenset(): 1.0}
    for _ in range(n):
        following: dict[frozenset[int], float] = {}
        for taken, probability in chosen.items():
            left = [i for i in range(len(weights)) if i not in taken]
            total = weights[left].sum()
            for i in left:
                key = taken | {i}
                following[key] = following.get(key, 0) + probability * weights[i] / total
        chosen = following
    inclusion = np.zeros(len(weights))
    for taken, probability in chosen.items():
        inclusion[list(taken)] += probability
    return inclusion


@pytest.mark.parametrize("n", [1, 3])
def test_uniform_draws(n: int) -> None:
    cam = torch.linspace(0, 1, 60).view(6, 10)
    epochs = 20000
    region = (cam.view(-1) * 255).int() > (wsfast.otsu_threshold(cam[None]) * 255).round() - 1
    share = region.numpy() / int(region.sum())
    assert_inclusion(frequencies(cam, 1, epochs, foreground=n), n * share, epochs)
    low = (np.arange(60) < 18) / 18
    counts = frequencies(cam, 0, epochs, background=n, foreground=0)
    assert_inclusion(counts, n * low, epochs)


def test_uniform_draws_of_pairs() -> None:
    """All pairs of six pixels come equally often: draws of one image are independent."""
    cam = torch.arange(8.0).view(2, 4) / 7
    epochs = 15000
    cams = cam[None].expand(epochs, -1, -1)
    seeds = wsfast.sample_seeds(
        cams, background=2, foreground=0, background_share=0.75, dilate=0, seed=5
    )
    drawn = (seeds == 0).flatten(1)
    counts = [int((drawn[:, a] & drawn[:, b]).sum()) for a, b in combinations(range(6), 2)]
    assert sum(counts) == epochs
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("n", [1, 2, 4])
def test_weighted_draws(n: int) -> None:
    """In proportion to the activation without replacement: torch.multinomial's distribution."""
    weights = np.array([0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 0.0, 0.3], np.float32)
    epochs = 20000
    counts = frequencies(
        torch.from_numpy(weights).view(2, 4), 1, epochs, foreground=n, foreground_share=1.0,
        background=0, **DIPS,
    )  # fmt: skip
    expected = successive_inclusion(weights.astype(np.float64), n)
    assert_inclusion(counts, expected, epochs)
    torch.manual_seed(3)
    rows = torch.from_numpy(weights).expand(epochs, -1)
    peer = torch.bincount(torch.multinomial(rows, n).flatten(), minlength=8)
    table = np.stack([counts[expected > 0], peer.numpy()[expected > 0]])
    assert stats.chi2_contingency(table).pvalue > 1e-4


def test_weighted_draws_from_a_large_region() -> None:
    """Where the race is filtered before logarithms: the mean activation of what is drawn."""
    torch.manual_seed(5)
    cam = torch.rand(64, 80)
    counts = frequencies(cam, 1, 400, foreground=20, foreground_share=1.0, background=0, **DIPS)
    drawn = float((counts * cam.flatten().numpy()).sum() / counts.sum())
    weights = cam.flatten().double()
    mean = float((weights**2).sum() / weights.sum())
    deviation = math.sqrt(float((weights**3).sum() / weights.sum()) - mean**2)
    assert abs(drawn - mean) < 4 * deviation / math.sqrt(counts.sum())


def test_ties_are_broken_at_random() -> None:
    """The cut falls in the middle of 24 equals: none is favoured, nor are they over the lower 8."""
    cam = torch.full((8, 8), 0.2)
    cam[0] = torch.linspace(0.0, 0.15, 8)
    cam[4:] = torch.linspace(0.5, 1, 32).view(4, 8)
    options = {"background_share": 20 / 64, "foreground": 0}
    counts = frequencies(cam, 0, 20000, background=2, **options)
    assert_inclusion(counts, np.repeat([2 / 20, 1 / 20, 0.0], [8, 24, 32]), 20000)


def test_images_and_epochs_are_independent() -> None:
    """Neighbouring ids, epochs and seeds draw the same pixel no more often than chance."""
    cam = torch.rand(1, 10, 10)
    cams = cam.expand(4000, -1, -1)
    options = {"foreground": 0, "background_share": 1.0, "dilate": 0}
    drawn = [
        (wsfast.sample_seeds(cams, seed=seed, epoch=epoch, **options) == 0).flatten(1).int()
        for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]
    places = torch.stack([d.argmax(1) for d in drawn])
    for a, b in combinations(range(4), 2):
        table = torch.zeros(10, 10)
        table.index_put_((places[a] // 10, places[b] // 10), torch.ones(4000), accumulate=True)
        assert stats.chisquare(table.flatten().numpy()).pvalue > 1e-4
    table = torch.zeros(10, 10)
    table.index_put_((places[0, 1:] // 10, places[0, :-1] // 10), torch.ones(3999), accumulate=True)
    assert stats.chisquare(table.flatten().numpy()).pvalue > 1e-4
