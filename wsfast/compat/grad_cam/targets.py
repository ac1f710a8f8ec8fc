"""What a map explains: callables from one image's logits (or a batch's) to scores."""

import torch
from torch import Tensor


class ClassifierOutputTarget:
    """The logit of one class; pytorch-grad-cam's class of that name serves as well.

    Args:
        category: class number.
    """

    def __init__(self, category: int) -> None:
        self.category = category

    def __call__(self, model_output: Tensor) -> Tensor:
        """The class's score in one image's (classes,) or in (N, classes) logits."""
        return model_output[..., self.category]


class ClassifierOutputSoftmaxTarget(ClassifierOutputTarget):
    """The probability of one class, see :class:`ClassifierOutputTarget`."""

    def __call__(self, model_output: Tensor) -> Tensor:
        """The class's probability."""
        return model_output.softmax(dim=-1)[..., self.category]


class ClassifierOutputReST(ClassifierOutputTarget):
    """The logit of one class plus its log-probability, see :class:`ClassifierOutputTarget`."""

    def __call__(self, model_output: Tensor) -> Tensor:
        """The sum of both."""
        return (model_output + model_output.log_softmax(dim=-1))[..., self.category]


class BinaryClassifierOutputTarget:
    """The one logit of a model of two classes, its sign turned for the class that is not 1.

    Args:
        category: 0 or 1.
    """

    def __init__(self, category: int) -> None:
        self.category = category

    def __call__(self, model_output: Tensor) -> Tensor:
        """The logit or minus it."""
        return model_output if self.category == 1 else -model_output


def finer_score(logits: Tensor, main: Tensor, others: Tensor, alpha: float) -> Tensor:
    r"""(N,) scores of one class against similar ones (Finer-CAM).

    .. math:: \frac{\sum_d p_d (y_c - \alpha y_d)}{\sum_d p_d + 10^{-9}}

    Args:
        logits: (N, classes).
        main: the classes c, (N, 1).
        others: the classes d, (N, D).
        alpha: strength of the comparison.
    """
    weights = torch.softmax(logits, dim=-1).gather(1, others)
    differences = logits.gather(1, main) - alpha * logits.gather(1, others)
    return (weights * differences).sum(dim=1) / (weights.sum(dim=1) + 1e-9)
