"""What is trained, on what, with which settings: fixed here, none of them looks at test images."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from benchmarks.quality.data import SIDE

SYNTHETIC = "synthetic"
_VALIDATION = 1 / 3  # of the number of generated training images; as many are for testing
_HELD_OUT = 0.25  # of a folder's training images, which are four fifths of all

Settings = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """A data set, and how much is trained on it.

    Attributes:
        data: ``"synthetic"`` or a folder that :func:`wsfast.data.open_dataset` opens.
        images: generated training images.
        epochs: of the classifier.
        map_epochs: of every method that learns maps.
        size: height and width of the images; None for the generated images' own.
    """

    data: str = SYNTHETIC
    images: int = 600
    epochs: int = 10
    map_epochs: int = 4
    size: tuple[int, int] | None = None

    @property
    def generated(self) -> bool:
        """Whether the images are drawn instead of read."""
        return self.data == SYNTHETIC

    @property
    def held_out(self) -> int | None:
        """Generated images for validation, and as many for testing; None for a folder."""
        return max(2, round(self.images * _VALIDATION)) if self.generated else None

    def settings(self, seed: int) -> Settings:
        """What all recipes are told of the data."""
        return {
            "data": self.data,
            "images": self.images,
            "holdout": _VALIDATION if self.generated else _HELD_OUT,
            "merge": not self.generated,
            "channels": 1,
            "size": self.size or (None if self.generated else (SIDE, SIDE)),
            "flips": "both",
            "batch_size": 32,
            "channels_last": True,
            "device": "cpu",
            "seed": seed,
            "split_seed": seed,
        }


class Training(NamedTuple):
    """A recipe with the settings of one row."""

    recipe: str
    settings: Settings


CLASSIFIER = Training(
    "classifier",
    {"learning_rate": 0.1, "schedule": "onecycle", "select_on": "last", "validate_every": 1000},
)

# Optimizer, rate and schedule are the recipes' own. The epoch of highest IoU on the validation
# masks is kept.
TRAININGS: dict[str, Training] = {
    "F-CAM, paper preset": Training("fcam", {"preset": "paper"}),
    "F-CAM, small-object preset": Training("fcam", {"preset": "small"}),
    "DiPS, small-object preset": Training("dips", {"preset": "small"}),
    "Pseudo-labels of RA-CAM": Training("pseudo", {"method": "racam", "threshold": "otsu"}),
}

CAMS: dict[str, tuple[str, Settings]] = {
    "Grad-CAM, last stage": ("gradcam", {"layers": "last"}),
    "Grad-CAM, all stages": ("gradcam", {"layers": "stages"}),
    "LayerCAM": ("layercam", {}),
    "LTGrad-CAM": ("ltgradcam", {}),
    "RA-CAM": ("racam", {}),
}
