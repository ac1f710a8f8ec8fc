"""Localization scores as ``torchmetrics.Metric`` classes."""

from wsfast.metrics.segmentation import DefectSegmentation

__all__ = ["DefectSegmentation"]
