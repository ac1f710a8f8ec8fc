"""The recipes on tiny synthetic defects: they run and resume bit for bit."""

import signal

import numpy as np
import pytest
import torch

from tests.train.tiny import assert_same_result, result
from wsfast.models import FCAMModel, UNetLocalizer
from wsfast.train import Interrupted
from wsfast.train.log import read_log
from wsfast.train.pseudo import without_small
from wsfast.train.runs import _BUILDERS, configure, load_run, run

SIZES = {"size": [32, 16], "images": 24, "channels": 1, "batch_size": 8, "holdout": 0.25}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("classifier")
    settings = {**SIZES, "epochs": 2, "select_on": "localization", "method": "ltgradcam"}
    run(configure("classifier", settings), out, progress=False)
    return str(out)


def settings_of(recipe, classifier, **others):
    found = {
        "fcam": {"preset": "small", "epochs": 2},
        "dips": {"preset": "small", "epochs": 2, "blur_kernel": 9},
        "pseudo": {"method": "ltgradcam", "epochs": 2, "rounds": 2},
    }[recipe]
    return {**SIZES, "classifier": classifier, **found, **others}


def test_a_classifier_is_validated_on_labels_and_maps(classifier):
    record = read_log(load_path(classifier))[-1]
    assert 0 <= record["iou"] <= 1
    assert record["localization"] == record["iou"]
    saved = load_run(classifier)
    assert saved.class_names == ("good", "defect")
    assert saved.input_size == (32, 16)
    assert saved.extra["recipe"] == "classifier"
    assert "threshold" in saved.extra


def load_path(text):
    from pathlib import Path

    return Path(text)


@pytest.mark.parametrize("recipe", ["fcam", "dips", "pseudo"])
def test_a_recipe_stopped_and_resumed_ends_as_if_unbroken(tmp_path, classifier, recipe):
    config = configure(recipe, settings_of(recipe, classifier))
    run(config, tmp_path / "whole", progress=False)
    kind = {"fcam": FCAMModel}.get(recipe, UNetLocalizer)
    assert isinstance(load_run(tmp_path / "whole").model, kind)
    figures = result(tmp_path / "whole")[2][-1]
    assert np.isfinite(figures["loss"])
    assert figures["localization"] > 0

    for step in (1, 3):  # in the first epoch, then in the second
        stopping = _stopping_after(config, step)
        with pytest.raises(Interrupted), stopping:
            run(config, tmp_path / "broken", resume=True, progress=False)
    run(config, tmp_path / "broken", resume=True, progress=False)
    assert_same_result(result(tmp_path / "whole"), result(tmp_path / "broken"))


class _stopping_after:
    """Signals the process once, in the given step of the run."""

    def __init__(self, config, step):
        self.config, self.step = config, step

    def __enter__(self):
        self.plain = _BUILDERS[self.config.recipe]

        def build(*args):
            recipe = self.plain(*args)
            step = recipe.step

            def signalling(batch, epoch):
                if self.step == epoch * 3 + int(batch.draw.position.min()) // 8:
                    signal.raise_signal(signal.SIGTERM)
                return step(batch, epoch)

            recipe.step = signalling
            return recipe

        _BUILDERS[self.config.recipe] = build

    def __exit__(self, *_):
        _BUILDERS[self.config.recipe] = self.plain


def test_specks_go_and_regions_stay():
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, 1:4, 1:4] = True
    masks[0, 6, 6] = True
    masks[1, 0, :2] = True
    found = without_small(masks, 3)
    assert found[0].sum() == 9
    assert not found[0, 6, 6]
    assert not found[1].any()
