"""The classifiers whose maps are measured: a small VGG and two small vision transformers."""

import copy
from itertools import pairwise
from typing import NamedTuple

import torch
from timm.models import VisionTransformer
from torch import nn

from benchmarks.quality.data import Samples
from wsfast.cam import TSCAM
from wsfast.models import SmallVGG
from wsfast.train import TrainedClassifier, train_classifier
from wsfast.train.classifier import seeded_weights

PATCH = 8
WIDTHS = (24, 48, 96)


class Models(NamedTuple):
    """Trained on the same labels.

    Attributes:
        classifier: what the methods of convolutional networks explain.
        tscam: a transformer that classifies by its patches.
        transformer: a copy of that one, trained on to classify by its class token, whose attention
            MS-CA takes. In a trial from scratch the class token stayed at chance.
    """

    classifier: TrainedClassifier
    tscam: TrainedClassifier
    transformer: TrainedClassifier


def train_models(samples: Samples, seed: int, epochs: int) -> Models:
    """All three."""
    height, width = samples[0].image.shape[1:]
    with seeded_weights(seed):
        vgg = SmallVGG().to(memory_format=torch.channels_last)
        vit = small_transformer((height, width))
        tscam = TSCAM(vit, 2)
    classifier = train_classifier(samples, model=vgg, epochs=epochs, seed=seed)
    by_patches = train_transformer(tscam, samples, seed, epochs)  # and with it vit
    by_token = train_transformer(copy.deepcopy(vit), samples, seed, epochs)
    return Models(classifier, by_patches, by_token)


def small_transformer(size: tuple[int, int]) -> VisionTransformer:
    """A vision transformer of the classifier's order of cost.

    Three convolutions of stride 2 make its patches (Xiao et al. 2021): with one of stride 8, trials
    of 20 epochs ended anywhere between chance and 96 % of accuracy.
    """
    model = VisionTransformer(
        size, PATCH, in_chans=1, num_classes=2, embed_dim=WIDTHS[-1], depth=4, num_heads=3
    )
    stem: list[nn.Module] = []
    for before, after in pairwise((1, *WIDTHS)):
        convolution = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
        stem += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
    model.patch_embed.proj = nn.Sequential(*stem, nn.Conv2d(WIDTHS[-1], WIDTHS[-1], 1))
    return model


def train_transformer(
    model: nn.Module, samples: Samples, seed: int, epochs: int
) -> TrainedClassifier:
    """With the optimizer that transformers need."""
    return train_classifier(
        samples,
        model=model,
        epochs=epochs,
        optimizer="adamw",
        learning_rate=1e-3,
        weight_decay=0.05,
        seed=seed,
    )
