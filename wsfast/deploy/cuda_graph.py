"""A localizer as one CUDA graph: the launches of a batch cost one call."""

import torch
from torch import Tensor, nn

from wsfast._check import value_error
from wsfast.deploy.steps import LocalizerOutput

_WARM_UP = 3  # calls after which cuDNN has chosen its algorithms


class CapturedLocalizer:
    """A captured localizer; call it with images of the captured shape, dtype and device.

    What a call returns is overwritten by the next one: copy what is to stay.
    """

    def __init__(
        self,
        localizer: nn.Module,
        graph: torch.cuda.CUDAGraph,
        images: Tensor,
        found: LocalizerOutput,
    ) -> None:
        self._localizer = localizer  # the graph reads its weights where they lie
        self._graph = graph
        self._images = images
        self._found = found

    def __call__(self, images: Tensor) -> LocalizerOutput:
        """Localise a batch on the current stream.

        Raises:
            ValueError: images of another shape or dtype than the captured ones.
        """
        captured = self._images
        if images.shape != captured.shape or images.dtype != captured.dtype:
            expected = f"{captured.dtype} of shape {list(captured.shape)}, as captured"
            actual = f"{images.dtype} of shape {list(images.shape)}"
            value_error("deploy.CapturedLocalizer", "images", expected, actual)
        captured.copy_(images, non_blocking=True)
        self._graph.replay()
        return self._found


def capture(localizer: nn.Module, example: Tensor) -> CapturedLocalizer:
    """Capture a localizer's work on one shape of batch in a CUDA graph.

    Args:
        localizer: a :class:`wsfast.deploy.Localizer` on a CUDA device, in eager mode or compiled.
        example: images of the shape, dtype and device that are to come.

    Raises:
        ValueError: an example that is not on a CUDA device.
    """
    if example.device.type != "cuda":
        value_error("deploy.capture", "example", "on a CUDA device", f"on {example.device}")
    images = example.clone()
    with torch.cuda.device(example.device), torch.no_grad():
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # capture must not see the first calls' allocations
            for _ in range(_WARM_UP):
                localizer(images)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # On a stream of this device: torch's own is of the device first captured on.
        with torch.cuda.graph(graph, stream=aside):
            found = localizer(images)
    return CapturedLocalizer(localizer, graph, images, found)
