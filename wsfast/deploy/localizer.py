"""From a batch of pictures to boxes in one module of fixed shapes."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor, nn

from wsfast import ops
from wsfast._check import check_choice, type_error, value_error
from wsfast.deploy.base import Boxing, LocalizerBase, check_class_names, input_settings
from wsfast.deploy.networks import DecoderNetwork, PairNetwork, cam_network
from wsfast.deploy.steps import LocalizerOutput
from wsfast.models import (
    Checkpoint,
    DeepLabV3,
    FCAMModel,
    GAPClassifier,
    UNetLocalizer,
    load_checkpoint,
)
from wsfast.train.evaluation import RunMaps, classifier_of


class NeedsGradientsError(ValueError):
    """A run whose maps need gradients was to be opened as a :class:`Localizer`."""


class Localizer(LocalizerBase):
    """Pictures in, class scores, heat maps, masks and boxes out: one module to deploy.

    Resizes and normalises the images, runs the network once without gradients, fuses its maps, cuts
    them at a threshold and boxes what is left. All shapes depend on the images' shape alone and
    nothing waits for the device, so it compiles in one graph, is captured in CUDA graphs, and goes
    to TorchScript and AOTInductor by :mod:`wsfast.deploy.export`.

    Args:
        network: any module from normalised images (N, C, *input_size) to class scores (N, K) and
            heat maps: an (N, h, w) tensor or a list of them, one per layer, of any sizes.
        mean: per channel, of images in 0-1.
        std: per channel, of images in 0-1.
        input_size: height and width of the network's input.
        class_names: one per class; empty where they have no names.
        layer_norm: normalisation of each layer's map, see :func:`wsfast.fuse_cams`.
        reduce: fusion over layers, see :func:`wsfast.fuse_cams`.
        norm: normalisation of the fused map; with None for it and ``layer_norm``, maps are taken as
            they are (probabilities), within 0-1.
        threshold: t of ``map >= t``, or ``"otsu"`` or ``"otsu2"`` of each map (default ``"otsu"``).
        max_boxes: B, the largest components that get a box (default 16).
        connectivity: 4 or 8 neighbours (default 8).
        min_area: smallest component with a box, in pixels of the result (default 1).
        output_size: height and width of maps, masks and boxes; None for the images' own (default
            None).

    Attributes:
        input_size: height and width of the network's input.
        channels: of the images, 1 (grey) or 3 (RGB).
        class_names: one per class, or empty.

    Raises:
        ValueError: a setting out of its range.
        TypeError: a setting of another type, a network that is no module.

    Note:
        Always in eval mode and without gradients. An image whose scores or maps are not finite gets
        a zero map and, but for a threshold of 0, no box. :func:`torch.jit.script` takes it where it
        takes the network; the exporters take any network that can be traced.

    Example:
        >>> from wsfast.models import SmallVGG
        >>> localizer = Localizer.from_model(
        ...     SmallVGG(in_chans=1).eval(), mean=(0.5,), std=(0.2,), input_size=(64, 32))
        >>> found = localizer(torch.randint(256, (2, 1, 96, 48), dtype=torch.uint8))
        >>> [tuple(part.shape) for part in found]
        [(2, 2), (2, 96, 48), (2, 96, 48), (2, 16, 4), (2, 16), (2,)]
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        input_size: tuple[int, int],
        class_names: Sequence[str] = (),
        layer_norm: str | None = "minmax",
        reduce: str = "mean",
        norm: str | None = "minmax",
        **boxing: Unpack[Boxing],
    ) -> None:
        super().__init__(
            mean=mean, std=std, input_size=input_size, class_names=class_names, **boxing
        )
        if not isinstance(network, nn.Module):
            type_error(self.where, "network", "a torch.nn.Module", type(network).__name__)
        for name, mode in (("layer_norm", layer_norm), ("norm", norm)):
            if mode is not None:
                check_choice(self.where, name, mode, ["minmax", "max"])
        check_choice(self.where, "reduce", reduce, ["mean", "sum", "max", "prod"])
        self.network = network
        self._prepare_for(network)
        self.layer_norm = layer_norm
        self.reduce = reduce
        self.norm = norm
        self.eval()

    def forward(self, images: Tensor) -> LocalizerOutput:
        """Localise a batch.

        Args:
            images: (N, C, H, W), uint8 of 0-255 or floating point of 0-1, RGB or grey.

        Raises:
            ValueError: another shape than (N, channels, H, W); a network with another number of
                classes than ``class_names``.
            TypeError: neither uint8 nor floating point.

        Warns:
            UserWarning: floating-point images far above 1, where looking costs no device sync: on
                the CPU, in eager mode.
        """
        with torch.no_grad():
            logits, cams = self.heat_maps(self.prepare(images))
            found = self.finish(images, logits, cams)
        return found

    def heat_maps(self, prepared: Tensor) -> tuple[Tensor, Tensor]:
        """Class scores (N, K) and fused maps (N, *input_size) of normalised images."""
        logits, maps = self.network(prepared)
        layers = [maps] if isinstance(maps, Tensor) else maps
        return logits, self.fuse(logits, layers)

    def fuse(self, logits: Tensor, layers: list[Tensor]) -> Tensor:
        """One map (N, *input_size) of 0-1 from a network's maps."""
        return ops.fuse_cams(
            finite_layers(logits, layers),
            self.input_size,
            layer_norm=self.layer_norm,
            reduce=self.reduce,
            norm=self.norm,
        )

    def with_network(self, network: nn.Module) -> "Localizer":
        """The same localizer around another network, on the same device."""
        same = Localizer(
            network,
            mean=self.mean.flatten().tolist(),
            std=self.std.flatten().tolist(),
            input_size=self.input_size,
            class_names=self.class_names,
            layer_norm=self.layer_norm,
            reduce=self.reduce,
            norm=self.norm,
            threshold=self.threshold,
            max_boxes=self.max_boxes,
            connectivity=self.connectivity,
            min_area=self.min_area,
            output_size=self.output_size,
        )
        return same.to(self.mean)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | PathLike[str],
        *,
        method: str | None = None,
        classifier: str | PathLike[str] | None = None,
        target: int | None = None,
        input_size: tuple[int, int] | None = None,
        **boxing: Unpack[Boxing],
    ) -> "Localizer":
        """The localizer of what ``wsfast train`` wrote, as ``wsfast localize`` uses it.

        Args:
            path: a run's folder (its best model, and the threshold that validation chose on masks
                or boxes, 0.5 without any), or a checkpoint file (threshold ``"otsu"`` of a
                classifier, as its maps may be of any method).
            method: ``"cam"`` takes CAM's closed form for a classifier run of another method;
                the threshold then is ``"otsu"``. Left out for a model that learnt its maps.
            classifier: run or file of the classifier that gives the class scores of a DiPS or
                pseudo-label model, the one it was trained with, where that has been moved or
                ``path`` is a file; None takes it from where it was.
            target: class to explain; None takes the predicted one. Left out for a model that learnt
                its maps: they are its foreground probability, whatever the class.
            input_size: height and width of the network's input, the training images' by default.
            **boxing: ``threshold``, ``max_boxes`` and others of :class:`Localizer`.

        Raises:
            ValueError: no run or checkpoint, a run whose maps need gradients, a file that needs a
                ``classifier``, another one than the model was trained with, an argument without an
                effect on this model.
        """
        where = "deploy.Localizer.from_checkpoint"
        if method is not None:
            check_choice(where, "method", method, ["cam"])
        folder = Path(path)
        scorer = None if classifier is None else Path(classifier)
        if folder.is_dir():
            found = _open_run(where, folder, scorer, closed_form=method == "cam")
        else:
            found = _open_file(where, folder, scorer)
        saved = found.checkpoint
        boxing.setdefault("threshold", found.threshold)
        options: dict[str, Any] = {
            "mean": saved.mean,
            "std": saved.std,
            "input_size": input_size or saved.input_size,
            "class_names": saved.class_names,
            **boxing,
        }
        if not isinstance(saved.model, (FCAMModel, *_WITHOUT_SCORES)):
            return cls.from_model(saved.model, target=target, relu=found.relu, **options)
        for name, value in (("method", method), ("target", target)):
            if value is not None:
                value_error(where, name, "left out for a model that learnt its maps", f"{value}")
        network: nn.Module
        if isinstance(saved.model, FCAMModel):
            network = DecoderNetwork(saved.model)
        else:
            assert found.classifier is not None
            network = PairNetwork(saved.model, found.classifier)
        return cls(network, layer_norm=None, norm=None, **options)

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        *,
        target: int | None = None,
        relu: bool = True,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        input_size: tuple[int, int] | None = None,
        class_names: Sequence[str] = (),
        **boxing: Unpack[Boxing],
    ) -> "Localizer":
        """The localizer of a classifier by CAM's closed form: no gradients, no hooks.

        Args:
            model: a timm classifier that ends in global average pooling and one linear layer, or
                one of this package's. It is used as it is, not copied, and put in eval mode: a
                model that is being trained goes back to training mode by you, and to eval mode
                before the next call.
            target: class to explain; None takes the predicted one of each image.
            relu: drop the negative parts, as ``wsfast.cam.CAM`` does.
            mean: per channel; None takes timm's for the model.
            std: per channel; None takes timm's for the model.
            input_size: height and width of its input; None takes timm's for the model.
            class_names: one per class; empty where they have no names.
            **boxing: ``threshold``, ``max_boxes`` and others of :class:`Localizer`.

        Raises:
            ValueError: a classifier without that closed form, a missing argument.
        """
        where = "deploy.Localizer.from_model"
        feed = input_settings(where, model, mean=mean, std=std, input_size=input_size)
        shape = (len(feed["mean"]), *feed["input_size"])
        network = cam_network(where, model, shape, target=target, relu=relu)
        check_class_names(where, class_names, network.head.out_features)
        return cls(network, class_names=class_names, **feed, **boxing)


def finite_layers(logits: Tensor, layers: list[Tensor]) -> list[Tensor]:
    """Maps in float32, zero where the scores or a map of an image are not finite."""
    keep = logits.isfinite().all(dim=1)
    for layer in layers:
        keep = keep & layer.isfinite().flatten(1).all(dim=1)
    return [layer.to(torch.float32).masked_fill(~keep[:, None, None], 0.0) for layer in layers]


class _Opened(NamedTuple):
    """A trained model, what scores classes where it does not, and how its maps are used."""

    checkpoint: Checkpoint
    classifier: nn.Module | None
    threshold: float | str
    relu: bool


_WITHOUT_SCORES = (UNetLocalizer, DeepLabV3)  # of classes: these are the classifier's


def _open_run(where: str, folder: Path, classifier: Path | None, *, closed_form: bool) -> _Opened:
    run = RunMaps(folder, torch.device("cpu"), classifier=classifier)
    threshold: float | str = run.threshold
    if isinstance(run.model, GAPClassifier):
        config: Any = run.config
        if config.method != "cam" or config.layers not in ("", "last"):
            if not closed_form:
                raise NeedsGradientsError(
                    f"wsfast.{where}: path must be a run whose maps need no gradients "
                    "(GradientLocalizer takes others; method='cam' takes the closed form of CAM "
                    f"instead), got {folder} of method '{config.method}'"
                )
            threshold = "otsu"  # validation chose the run's for other maps
        # A run of CAM is trained with the negative parts of its maps.
        return _Opened(run.checkpoint, None, threshold, relu=config.method != "cam")
    return _Opened(run.checkpoint, run.classifier, threshold, relu=False)


def _open_file(where: str, file: Path, classifier: Path | None) -> _Opened:
    saved = load_checkpoint(file)
    threshold = float(saved.extra.get("threshold", 0.5))
    if isinstance(saved.model, _WITHOUT_SCORES):
        if classifier is None:
            expected = "given for a localizer without its run's folder"
            value_error(where, "classifier", expected, "None")
        assert classifier is not None
        scorer = classifier_of(where, saved, classifier, None)
        return _Opened(saved, scorer, threshold, relu=False)
    if classifier is not None:
        expected = "left out for a model with class scores of its own"
        value_error(where, "classifier", expected, f"{classifier}")
    if isinstance(saved.model, FCAMModel):
        return _Opened(saved, None, threshold, relu=False)
    return _Opened(saved, None, "otsu", relu=True)
