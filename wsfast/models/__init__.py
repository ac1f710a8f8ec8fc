"""A small classifier to start with, and loading of weights into any classifier."""

from wsfast.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from wsfast.models.small_vgg import SmallVGG
from wsfast.models.weights import load_weights

__all__ = ["Checkpoint", "SmallVGG", "load_checkpoint", "load_weights", "save_checkpoint"]
