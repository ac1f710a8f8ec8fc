"""From a trained model to boxes on live pictures: one module, and its exports."""

from wsfast.deploy.gradient import GradientLocalizer
from wsfast.deploy.localizer import Localizer
from wsfast.deploy.steps import LocalizerOutput, prepare_images, resize_cams

__all__ = [
    "GradientLocalizer",
    "Localizer",
    "LocalizerOutput",
    "prepare_images",
    "resize_cams",
]
