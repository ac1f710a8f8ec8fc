"""Settings of the CAM tests."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread(_seed_and_threads: None) -> None:
    """The networks are too small to share: a second thread would mostly wait."""
    torch.set_num_threads(1)
