"""Images in, samples out: defect data sets and whatever pictures a user points at."""

from wsfast.data.images import SkippedFile, UnreadableImageError, read_image
from wsfast.data.inputs import ImageFiles, expand_inputs
from wsfast.data.ksdd2 import KSDD2
from wsfast.data.sample import DefectSample
from wsfast.data.synthetic import SyntheticDefects

__all__ = [
    "KSDD2",
    "DefectSample",
    "ImageFiles",
    "SkippedFile",
    "SyntheticDefects",
    "UnreadableImageError",
    "expand_inputs",
    "read_image",
]
