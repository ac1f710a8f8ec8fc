"""What every test of wsfast_infer runs, reads and compares."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.deploy.small import INPUT, small_model
from wsfast import native
from wsfast.deploy import Localizer, LocalizerOutput
from wsfast.deploy.programs import METADATA_FILE

SIZE = (96, 48)
IMAGES = 50
MAX_BOXES = 2
THRESHOLD = 0.37  # no map has a value within 1e-5 of it, so rounding cannot move a box
CLASS_NAMES = ("good", "défaut")

MARKS = [
    pytest.mark.timeout(600),  # the first build
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
]


def localizer(channels: int = 3) -> Localizer:
    """Random weights, whose maps have several components; both classes are predicted."""
    model = small_model(channels=channels)
    with torch.no_grad():
        model.fc.bias[1] += 0.4093
    return Localizer.from_model(
        model, relu=False, mean=(0.5,) * channels, std=(0.25,) * channels,
        input_size=INPUT, class_names=CLASS_NAMES, threshold=THRESHOLD, max_boxes=MAX_BOXES,
    )  # fmt: skip


def eagerly(images: NDArray[np.uint8]) -> LocalizerOutput:
    return localizer()(batch_of(images))


def batch_of(images: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def ops() -> list[str]:
    """The op library of the CPU; loading the CUDA one takes seconds and is not needed here."""
    library = native.library_path("_C")
    assert library is not None
    return ["--ops", str(library)]


def run(command: Sequence[object], *words: object) -> subprocess.CompletedProcess[str]:
    whole = [str(word) for word in (*command, *words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(whole, capture_output=True, text=True, timeout=120, env=environment)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def check_same(found: list[dict[str, Any]], expected: LocalizerOutput) -> None:
    """Every line is the image's row of the eager outputs; boxes to the bit."""
    assert len(found) == len(expected.counts)
    probabilities, classes = expected.logits.softmax(dim=1).max(dim=1)
    for i, line in enumerate(found):
        count = int(expected.counts[i])
        kept = min(count, MAX_BOXES)
        assert line["count"] == count
        assert line["boxes"] == expected.boxes[i, :kept].tolist()
        assert line["scores"] == pytest.approx(expected.scores[i, :kept].tolist(), abs=1e-5)
        assert line["class"] == int(classes[i])
        assert line["class_name"] == CLASS_NAMES[line["class"]]
        assert line["probability"] == pytest.approx(float(probabilities[i]), abs=1e-5)
        assert line["milliseconds"] > 0


def check_error(done: subprocess.CompletedProcess[str], message: str) -> None:
    assert done.returncode == 2
    assert done.stdout == ""
    said = done.stderr.splitlines()
    assert len(said) == 1, done.stderr
    assert said[0].startswith("wsfast_infer: error: ")
    assert message in said[0]


def write_program(file: Path, module: torch.nn.Module, facts: dict[str, str]) -> None:
    extra = {METADATA_FILE: json.dumps(facts)} if facts else {}
    torch.jit.save(torch.jit.script(module), file, _extra_files=extra)
