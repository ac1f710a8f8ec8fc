"""wsfast_infer, its pictures and a program for it to run: made once for this folder's tests."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from wsfast.data import SyntheticDefects
from wsfast.deploy import LocalizerOutput, export_torchscript

from .program import Unavailable, build_program
from .runs import IMAGES, SIZE, eagerly, localizer, ops


@pytest.fixture(scope="package")
def program() -> Path:
    try:
        return build_program()
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="package")
def images() -> NDArray[np.uint8]:
    """RGB pictures whose channels differ, so that a swap would show: (50, 96, 48, 3)."""
    data = SyntheticDefects(IMAGES, size=SIZE)
    grey = np.stack([data[i].image[0].numpy() for i in range(IMAGES)])
    return np.stack([grey, 255 - grey, grey[:, ::-1]], axis=-1)


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory, images: NDArray[np.uint8]) -> Path:
    """The pictures as PNG files in pictures/, and the TorchScript program net.ts."""
    root = tmp_path_factory.mktemp("cpp")
    (root / "pictures").mkdir()
    for i, image in enumerate(images):
        cv2.imwrite(str(root / "pictures" / f"{i:02d}.png"), image[:, :, ::-1])
    export_torchscript(localizer(), root / "net.ts", image_size=SIZE)
    return root


@pytest.fixture(scope="package")
def eager(images: NDArray[np.uint8]) -> LocalizerOutput:
    return eagerly(images)


@pytest.fixture(scope="package")
def command(program: Path, folder: Path) -> list[str]:
    """The program with its network and operators; what it reads comes behind."""
    return [str(program), "--model", str(folder / "net.ts"), *ops()]
