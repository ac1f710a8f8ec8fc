"""Modules around the ops, for training loops and saved models."""

from .crf import DenseCRFLoss

__all__ = ["DenseCRFLoss"]
