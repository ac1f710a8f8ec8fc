"""Fast ops, CAM methods and training for weakly supervised localisation.

>>> import torch, wsfast
>>> grads = torch.tensor([[[[-1.0, 1.0], [2.0, 3.0]]]])
>>> wsfast.truncate_gradients(grads, 50)
tensor([[[[0., 0.],
          [2., 3.]]]])
"""

from . import nn, ops
from ._version import __version__
from .native import NativeFallbackWarning, info
from .ops import *  # noqa: F403

__all__ = ["NativeFallbackWarning", "__version__", "info", "nn", "ops", *ops.__all__]
