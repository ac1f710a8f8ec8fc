"""Modules around the ops, for training loops and saved models."""

from .crf import DenseCRFLoss
from .masked import MaskedClassifierLoss
from .partial import partial_cross_entropy
from .size import SizeConstraintLoss, log_barrier

__all__ = [
    "DenseCRFLoss",
    "MaskedClassifierLoss",
    "SizeConstraintLoss",
    "log_barrier",
    "partial_cross_entropy",
]
