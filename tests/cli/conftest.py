"""A classifier and a clip that several commands are tried on."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from wsfast.data import SyntheticDefects
from wsfast.models import SmallVGG, save_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("live") / "net.safetensors"
    save_checkpoint(
        SmallVGG(), path, class_names=("good", "defect"), mean=(0.5,), std=(0.2,),
        input_size=(48, 64),
    )  # fmt: skip
    return path


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty frames of metal with scratches."""
    path = tmp_path_factory.mktemp("clip") / "belt.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for sample in SyntheticDefects(30, size=(48, 64), channels=3):
        writer.write(np.ascontiguousarray(sample.image.permute(1, 2, 0).numpy()))
    writer.release()
    return path
