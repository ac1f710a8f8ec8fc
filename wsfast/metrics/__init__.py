"""Localization scores as ``torchmetrics.Metric`` classes."""

from .errors import LocalizationErrors
from .localization import MaxBoxAcc, MaxBoxAccV2, TopKLocalization
from .pixels import PxAP
from .segmentation import DefectSegmentation

__all__ = [
    "DefectSegmentation",
    "LocalizationErrors",
    "MaxBoxAcc",
    "MaxBoxAccV2",
    "PxAP",
    "TopKLocalization",
]
