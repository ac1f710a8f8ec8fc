"""From a trained model to boxes on live pictures: one module, and its exports."""

from wsfast.deploy.cuda_graph import CapturedLocalizer, capture
from wsfast.deploy.export import ExportError, export_onnx, export_pt2, export_torchscript
from wsfast.deploy.gradient import GradientLocalizer
from wsfast.deploy.localizer import Localizer
from wsfast.deploy.programs import LoadedLocalizer, load
from wsfast.deploy.steps import LocalizerOutput, prepare_images, resize_cams

__all__ = [
    "CapturedLocalizer",
    "ExportError",
    "GradientLocalizer",
    "LoadedLocalizer",
    "Localizer",
    "LocalizerOutput",
    "capture",
    "export_onnx",
    "export_pt2",
    "export_torchscript",
    "load",
    "prepare_images",
    "resize_cams",
]
