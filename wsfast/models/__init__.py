"""Classifiers, encoders, decoders and segmenters, their weights and their checkpoints."""

from wsfast.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from wsfast.models.classifier import WSOLClassifier
from wsfast.models.decoder import UNetDecoder
from wsfast.models.deeplab import DeepLabV3
from wsfast.models.encoders import create_encoder
from wsfast.models.interface import Encoder, GAPClassifier
from wsfast.models.localizers import FCAMModel, LocalizationOutput, UNetLocalizer
from wsfast.models.registry import build_model, config_differences
from wsfast.models.small_vgg import SmallVGG, SmallVGGEncoder
from wsfast.models.timm_encoder import TimmEncoder
from wsfast.models.weights import load_weights
from wsfast.models.wsol_encoders import InceptionV3Encoder, ResNet50Encoder, VGG16Encoder

__all__ = [
    "Checkpoint",
    "DeepLabV3",
    "Encoder",
    "FCAMModel",
    "GAPClassifier",
    "InceptionV3Encoder",
    "LocalizationOutput",
    "ResNet50Encoder",
    "SmallVGG",
    "SmallVGGEncoder",
    "TimmEncoder",
    "UNetDecoder",
    "UNetLocalizer",
    "VGG16Encoder",
    "WSOLClassifier",
    "build_model",
    "config_differences",
    "create_encoder",
    "load_checkpoint",
    "load_weights",
    "save_checkpoint",
]
