"""CUDA graphs of the stand-in: operators are recorded, and called again on the same tensors."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITING = ("_local_scalar_dense", "nonzero")  # operators whose result the host waits for

_recording = 0


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class _Recorder(TorchDispatchMode):
    """Keeps each call; refuses what a GPU refuses while it captures."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = str(func)
        devices = {tensor.device for tensor in _tensors((args, kwargs, result)) if tensor.dim() > 0}
        if any(word in name for word in WAITING) or ("copy" in name and len(devices) > 1):
            raise RuntimeError(f"{name} waits for the device during a capture")
        self.calls.append((func, args, kwargs, result))
        return result


class CUDAGraph:
    """torch.cuda.CUDAGraph."""

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[..., Any], Any, Any, Any]] = []

    def replay(self) -> None:
        """Call every operator again; results go where those of the capture are."""
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(_tensors(result), _tensors(again), strict=True):
                if old.numel() > 0 and old.data_ptr() != new.data_ptr():
                    old.detach().copy_(new)

    def reset(self) -> None:
        """Forget the calls."""
        self.calls = []

    def pool(self) -> tuple[int, int]:
        """The memory pool, of which there is none."""
        return (0, 0)


@contextmanager
def graph(recorded: CUDAGraph, **_: Any) -> Iterator[None]:
    """torch.cuda.graph."""
    global _recording
    recorder = _Recorder()
    _recording += 1
    try:
        with recorder:
            yield
    finally:
        _recording -= 1
    recorded.calls = recorder.calls


def is_capturing() -> bool:
    """torch.cuda.is_current_stream_capturing."""
    return _recording > 0
