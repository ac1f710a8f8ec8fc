"""Dense CRF: the permutohedral lattice, filtering, the loss of weak supervision and inference.

The lattice and its blur are those of Adams et al. (2010) and Kraehenbuehl and Koltun (2011); the
loss is that of Tang et al., "On Regularized Losses for Weakly-supervised CNN Segmentation"
(ECCV 2018), as F-CAM (eq. 3) and DiPS (eq. A1) train with it.
"""

from . import reference, registration  # noqa: F401
from .lattice import Lattice, bilateral_lattice, lattice_filter
from .loss import dense_crf_loss
from .mean_field import mean_field

__all__ = ["Lattice", "bilateral_lattice", "dense_crf_loss", "lattice_filter", "mean_field"]
