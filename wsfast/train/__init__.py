"""Training on image labels alone."""

from wsfast.train.classifier import (
    ClassifierConfig,
    ClassifierRecipe,
    TrainedClassifier,
    evaluate_classifier,
    train_classifier,
)
from wsfast.train.config import TrainConfig
from wsfast.train.dips import DiPSConfig, DiPSRecipe
from wsfast.train.engine import fit
from wsfast.train.evaluation import RunMaps, evaluate_run
from wsfast.train.fcam import FCAMConfig, FCAMRecipe
from wsfast.train.interrupt import Interrupted
from wsfast.train.pseudo import PseudoConfig, PseudoRecipe
from wsfast.train.recipe import Draw, Recipe, Step
from wsfast.train.runs import configure, load_run, run
from wsfast.train.sampling import BalancedSampler

__all__ = [
    "BalancedSampler",
    "ClassifierConfig",
    "ClassifierRecipe",
    "DiPSConfig",
    "DiPSRecipe",
    "Draw",
    "FCAMConfig",
    "FCAMRecipe",
    "Interrupted",
    "PseudoConfig",
    "PseudoRecipe",
    "Recipe",
    "RunMaps",
    "Step",
    "TrainConfig",
    "TrainedClassifier",
    "configure",
    "evaluate_classifier",
    "evaluate_run",
    "fit",
    "load_run",
    "run",
    "train_classifier",
]
