"""Training on image labels alone."""

from wsfast.train.classifier import (
    ClassifierConfig,
    ClassifierRecipe,
    TrainedClassifier,
    evaluate_classifier,
    train_classifier,
)
from wsfast.train.config import TrainConfig
from wsfast.train.engine import fit
from wsfast.train.interrupt import Interrupted
from wsfast.train.recipe import Draw, Recipe, Step
from wsfast.train.sampling import BalancedSampler

__all__ = [
    "BalancedSampler",
    "ClassifierConfig",
    "ClassifierRecipe",
    "Draw",
    "Interrupted",
    "Recipe",
    "Step",
    "TrainConfig",
    "TrainedClassifier",
    "evaluate_classifier",
    "fit",
    "train_classifier",
]
