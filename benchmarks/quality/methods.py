"""What the tables compare: every way from uint8 images to maps of the class "defect"."""

from collections.abc import Callable

from torch import Tensor

from benchmarks.quality.models import Models
from wsfast import ops
from wsfast.cam import (
    METHODS,
    MSCA,
    CAMMethod,
    attention_map,
    attention_rollout,
    crf_cams,
    filtered_backprop,
    multiscale,
    slic_cams,
)
from wsfast.train import TrainedClassifier

DEFECT = 1
PERCENTILE = 50.0
SCALES = (0.25, 0.5, 1.0)  # MS-CA's

Explain = Callable[[Tensor], Tensor]  # (N, 1, H, W) uint8 to (N, H, W)


def all_methods(models: Models) -> dict[str, Explain]:
    """Every method with its own default layers, and what is made around and beside them.

    Grad-CAM on filtered gradients is RA-CAM.
    """
    trained = models.classifier
    plain = {kind.__name__: explained_by(trained, name) for name, kind in METHODS.items()}
    return {
        **plain,
        "GradCAM, last layer": explained_by(trained, "gradcam", layers="last"),
        "LayerCAM, last layer": explained_by(trained, "layercam", layers="last"),
        "GradCAMPlusPlus, filtered": filtered(trained, "gradcamplusplus"),
        "LayerCAM, filtered": filtered(trained, "layercam"),
        "FullGrad, filtered": filtered(trained, "fullgrad"),
        "GradCAM, last layer, 3 scales": at_scales(trained, "gradcam", layers="last"),
        "LTGradCAM, 3 scales": at_scales(trained, "ltgradcam"),
        "MSCA of GradCAM, last layer": fused_with_attention(models, "gradcam", layers="last"),
        "MSCA of LTGradCAM": fused_with_attention(models, "ltgradcam"),
        "LTGradCAM, CRF": lambda images: crf_cams(images, plain["LTGradCAM"](images)),
        "LTGradCAM, superpixels": lambda images: slic_cams(
            images.float() / 255, plain["LTGradCAM"](images), segments=100
        ),
        "attention": attended(models.transformer),
        "attention rollout": rolled_out(models.transformer),
        "TSCAM": coupled(models.tscam),
    }


def build(trained: TrainedClassifier, name: str, **options: object) -> CAMMethod:
    """A method of :data:`wsfast.cam.METHODS` on a classifier."""
    method: Callable[..., CAMMethod] = METHODS[name]
    return method(trained.model, **options)


def explained_by(trained: TrainedClassifier, name: str, **options: object) -> Explain:
    """A method as it is."""
    method = build(trained, name, **options)
    return lambda images: method(trained.normalize(images), DEFECT).cams


def filtered(trained: TrainedClassifier, name: str) -> Explain:
    """A method on RA-CAM's filtered gradients."""
    explain = explained_by(trained, name)

    def maps(images: Tensor) -> Tensor:
        with filtered_backprop(trained.model, PERCENTILE):
            return explain(images)

    return maps


def at_scales(trained: TrainedClassifier, name: str, **options: object) -> Explain:
    """A method's maps at several sizes, fused (MS-CA eq. 4)."""
    method = build(trained, name, **options)
    return lambda images: multiscale(method, trained.normalize(images), DEFECT, scales=SCALES).cams


def fused_with_attention(models: Models, name: str, **options: object) -> Explain:
    """MS-CA, with the transformer's attention at the images' own size."""
    fuse = MSCA(
        build(models.classifier, name, **options),
        models.transformer.model,
        scales=SCALES,
        attention_scale=1.0,
    )

    def maps(images: Tensor) -> Tensor:
        seen = models.transformer.normalize(images)
        return fuse(models.classifier.normalize(images), DEFECT, attention_images=seen).scores

    return maps


def attended(trained: TrainedClassifier) -> Explain:
    """The last block's attention of the class token, the same for every class."""
    return lambda images: attention_map(trained.model, trained.normalize(images))


def rolled_out(trained: TrainedClassifier) -> Explain:
    """Attention through all blocks, the same for every class."""

    def maps(images: Tensor) -> Tensor:
        patches = attention_rollout(trained.model, trained.normalize(images))
        return ops.fuse_cams([patches], image_size(images))

    return maps


def coupled(trained: TrainedClassifier) -> Explain:
    """TS-CAM."""
    return lambda images: trained.model.explain(trained.normalize(images), DEFECT).cams


def image_size(images: Tensor) -> tuple[int, int]:
    """Height and width."""
    return images.shape[-2], images.shape[-1]
