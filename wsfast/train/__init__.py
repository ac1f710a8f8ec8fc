"""Training on image labels alone."""

from wsfast.train.classifier import TrainedClassifier, evaluate_classifier, train_classifier
from wsfast.train.sampling import BalancedSampler

__all__ = ["BalancedSampler", "TrainedClassifier", "evaluate_classifier", "train_classifier"]
