"""From a trained model to boxes on live pictures: one module, its exports, and the live loop."""

from wsfast.deploy.cuda_graph import CapturedLocalizer, capture
from wsfast.deploy.export import ExportError, export_onnx, export_pt2, export_torchscript
from wsfast.deploy.gradient import GradientLocalizer
from wsfast.deploy.latency import LatencyHistogram, LiveStatistics
from wsfast.deploy.localizer import Localizer, NeedsGradientsError
from wsfast.deploy.matroska import MatroskaWriter
from wsfast.deploy.programs import LoadedLocalizer, load
from wsfast.deploy.sources import FrameSource, LiveFrame, VideoSource
from wsfast.deploy.steps import LocalizerOutput, prepare_images, resize_cams
from wsfast.deploy.stream import LiveLoop, LocalizedFrame

__all__ = [
    "CapturedLocalizer",
    "ExportError",
    "FrameSource",
    "GradientLocalizer",
    "LatencyHistogram",
    "LiveFrame",
    "LiveLoop",
    "LiveStatistics",
    "LoadedLocalizer",
    "LocalizedFrame",
    "Localizer",
    "LocalizerOutput",
    "MatroskaWriter",
    "NeedsGradientsError",
    "VideoSource",
    "capture",
    "export_onnx",
    "export_pt2",
    "export_torchscript",
    "load",
    "prepare_images",
    "resize_cams",
]
