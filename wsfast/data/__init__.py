"""Images in, samples out: data sets of many formats and whatever pictures a user points at."""

from wsfast.data.folder import ImageFolder
from wsfast.data.images import SkippedFile, UnreadableImageError, read_image
from wsfast.data.inputs import ImageFiles, expand_inputs
from wsfast.data.ksdd import KSDD
from wsfast.data.ksdd2 import KSDD2
from wsfast.data.opening import FORMATS, LabelledDataset, detect_format, open_dataset
from wsfast.data.records import ImageDataset, Record
from wsfast.data.sample import DefectSample, Sample, inclusive_corners
from wsfast.data.splits import held_out
from wsfast.data.synthetic import SyntheticDefects
from wsfast.data.table import ImageTable
from wsfast.data.transforms import Augmented, JointTransform
from wsfast.data.video import VideoFrames
from wsfast.data.wsol import MetadataError
from wsfast.data.wsol_images import WSOLImages

__all__ = [
    "FORMATS",
    "KSDD",
    "KSDD2",
    "Augmented",
    "DefectSample",
    "ImageDataset",
    "ImageFiles",
    "ImageFolder",
    "ImageTable",
    "JointTransform",
    "LabelledDataset",
    "MetadataError",
    "Record",
    "Sample",
    "SkippedFile",
    "SyntheticDefects",
    "UnreadableImageError",
    "VideoFrames",
    "WSOLImages",
    "detect_format",
    "expand_inputs",
    "held_out",
    "inclusive_corners",
    "open_dataset",
    "read_image",
]
