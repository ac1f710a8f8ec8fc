"""A run from its settings: data, models, recipe and the engine in one call."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wsfast._check import check_choice, value_error
from wsfast._device import parse_device
from wsfast._files import made_folder
from wsfast.models import (
    Checkpoint,
    DeepLabV3,
    FCAMModel,
    GAPClassifier,
    SmallVGG,
    UNetDecoder,
    UNetLocalizer,
    WSOLClassifier,
    load_checkpoint,
)
from wsfast.train import distributed
from wsfast.train.classifier import (
    ClassifierConfig,
    ClassifierRecipe,
    poor_classifier,
    seeded_weights,
)
from wsfast.train.config import TrainConfig, read_run_settings, read_settings
from wsfast.train.data import (
    OpenedData,
    check_classes,
    check_shared_split,
    check_unseen,
    learnt_before,
    settings_around,
)
from wsfast.train.dips import DiPSConfig, DiPSRecipe
from wsfast.train.engine import fit
from wsfast.train.fcam import FCAMConfig, FCAMRecipe
from wsfast.train.images import TrainingSample, image_statistics, pretrained_normalization
from wsfast.train.loading import read_batch, to_device
from wsfast.train.localizer import LocalizerRecipe, Preview
from wsfast.train.log import Record
from wsfast.train.pseudo import PseudoConfig, PseudoRecipe
from wsfast.train.recipe import Draw, Recipe
from wsfast.train.state import check_out, only_run_in
from wsfast.train.store import weights_digest

CONFIGS: dict[str, type[TrainConfig]] = {
    config.recipe: config for config in (ClassifierConfig, FCAMConfig, DiPSConfig, PseudoConfig)
}


def configure(
    recipe: str,
    settings: Mapping[str, Any],
    *,
    file: Path | None = None,
    out: Path | None = None,
    resume: bool = False,
) -> TrainConfig:
    """Settings of a recipe: those given, then a file's, then those of the run that is resumed.

    Which class has no object, and whether the others are one, is then as in the run of the
    classifier that the recipe starts from.

    Args:
        recipe: ``"classifier"``, ``"fcam"``, ``"dips"`` or ``"pseudo"``.
        settings: by name.
        file: YAML file of more settings.
        out: folder of the run to resume.
        resume: take what is not given from the run in ``out``, where there is one.

    Raises:
        ValueError: an unknown recipe or setting, a value out of range, an unreadable file, a value
            given in vain (see :meth:`wsfast.train.config.TrainConfig.idle`).
        TypeError: a value of another type.
    """
    check_choice("train", "recipe", recipe, list(CONFIGS))
    saved = read_run_settings(out, recipe) if resume and out is not None else {}
    given = {**(read_settings(file, recipe) if file is not None else {}), **settings}
    known = {**saved, **given}
    classifier = known.get("classifier")
    around = settings_around(Path(str(classifier))) if classifier else {}
    inherited = {name: value for name, value in around.items() if name in ("normal", "merge")}
    config = CONFIGS[recipe].build({**inherited, **known})
    config.check_effect(given)
    return config


def run(
    config: TrainConfig, out: Path, *, resume: bool = False, progress: bool = True
) -> list[Record]:
    """Train as a configuration says, alone or as one of ``torchrun``'s processes.

    Args:
        config: of one of the recipes, see :func:`configure`.
        out: the run's folder, see :func:`wsfast.train.fit`.
        resume: continue the run in ``out``.
        progress: show bars.

    Returns:
        One record per epoch.

    Raises:
        ValueError: data, models or settings that do not fit; another run that is training in
            ``out``; as :func:`wsfast.train.fit`.
        Interrupted: the run was asked to stop and is saved.
    """
    if config.deterministic:
        # Without this cuBLAS is not, and torch raises; it looks once, at the first product.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    wanted = parse_device("train", "device", config.device)
    with distributed.process_group(wanted) as device, made_folder(out), only_run_in(out):
        check_out(out, resume=resume)  # before maps are made, which may take hours
        recipe = _BUILDERS[config.recipe](config, device, out, progress)
        return fit(recipe, out=out, resume=resume, progress=progress)


def preview(
    config: TrainConfig, out: Path, *, count: int = 8, progress: bool = True
) -> tuple[TrainingSample, Preview]:
    """What the first images with an object are learnt from in a run's first epoch.

    Args:
        config: of a recipe that starts from a classifier.
        out: the run's folder; maps made for this are kept there for the run.
        count: images, at most.
        progress: show bars.

    Returns:
        The augmented images with their boxes, and their maps and seeds.

    Raises:
        ValueError: the recipe ``classifier``, which has none; a run that is training in ``out``;
            as :func:`run`.
    """
    device = parse_device("train", "device", config.device)
    if config.recipe == ClassifierConfig.recipe:
        value_error("train", "--preview", "of a recipe that learns from maps", config.recipe)
    with made_folder(out), only_run_in(out):  # the first epoch of some recipes makes their maps
        recipe = _BUILDERS[config.recipe](config, device, out, progress)
        assert isinstance(recipe, LocalizerRecipe)
        recipe.model.to(device)
        recipe.begin_epoch(0)
    order = recipe.epoch_order(0)
    objects = [at for at, item in enumerate(order) if recipe.has_object(item)][:count]
    batch = to_device(read_batch(recipe, [Draw(0, at, order[at]) for at in objects]), device)
    with torch.no_grad():
        return batch, recipe.preview(batch, 0)


def load_run(path: str | Path) -> Checkpoint:
    """The best model of a run's folder, or the model of a checkpoint file.

    Raises:
        ValueError: there is none, or it is no checkpoint of this package.
    """
    path = Path(path)
    return load_checkpoint(path / "best.safetensors" if path.is_dir() else path)


def _build_classifier(
    config: ClassifierConfig, device: torch.device, out: Path, progress: bool
) -> Recipe:
    data = OpenedData(config)
    classes = len(data.class_names)
    with seeded_weights(config.seed):
        model = _new_classifier(config, classes)
    if config.pretrained or config.checkpoint:
        channels = config.channels or 3
        seen = pretrained_normalization(config.model, config.checkpoint, channels)
        images = data.images(*seen)
    else:
        images = data.images(*image_statistics(data.train))
    return ClassifierRecipe(config, model, device, images)


def _new_classifier(config: ClassifierConfig, classes: int) -> nn.Module:
    channels = config.channels or 3
    if config.model == "small_vgg" and not config.checkpoint:
        if config.pretrained:
            value_error("train", "pretrained", "false for small_vgg", "true")
        return SmallVGG(channels, classes)
    return WSOLClassifier(
        config.model,
        classes,
        in_chans=channels,
        pretrained=config.pretrained,
        checkpoint=config.checkpoint or None,
    )


def _open_classifier(config: Any) -> tuple[GAPClassifier, Checkpoint, OpenedData]:
    """The classifier that a recipe starts from, and images for it.

    Raises:
        ValueError: none given, one for other classes, another order of them or other channels, or
            one that has been trained, or may have been, on images held out from this run.
    """
    path: str = config.classifier
    if not path:
        value_error("train", "classifier", "a run of `wsfast train classifier`", "nothing")
    saved = load_run(path)
    model = saved.model
    if not isinstance(model, GAPClassifier):
        value_error("train", "classifier", "a classifier", f"{path}, a {type(model).__name__}")
    assert isinstance(model, GAPClassifier)
    if config.channels not in (None, model.in_chans):
        expected = f"the classifier's ({model.in_chans})"
        value_error("train", "channels", expected, f"{config.channels}")
    known = settings_around(Path(path)) or saved.extra
    check_shared_split(config, known)
    data = OpenedData(config, saved)
    check_classes(saved.class_names, data.class_names, data.train.normal_label)
    if known.get("normal") and data.clean_class < 0:
        value_error("train", "normal", f"the classifier's ({known['normal']})", "nothing")
    check_unseen(config, data)
    return model, saved, data


def _noted(recipe: LocalizerRecipe, classifier: Checkpoint) -> Recipe:
    """With what is known of the classifier that all rests on, and a warning where it is poor."""
    recipe.classifier_digest = weights_digest(classifier.model)
    recipe.learnt_before = learnt_before(recipe.config)
    accuracy = classifier.extra.get("balanced_accuracy")
    recipe.notes += poor_classifier(accuracy, len(classifier.class_names))
    return recipe


def _normalized_otherwise(name: str, classifier: Checkpoint) -> list[str]:
    """A warning where pretrained weights, which share the classifier's images, know others."""
    own = pretrained_normalization(name, "", len(classifier.mean))
    if own == (classifier.mean, classifier.std):
        return []
    return [
        f"images are normalised for the classifier, not as {name}'s pretrained weights know them; "
        "a classifier that starts from such weights brings their normalisation"
    ]


def _build_fcam(config: FCAMConfig, device: torch.device, out: Path, progress: bool) -> Recipe:
    classifier, saved, data = _open_classifier(config)
    with seeded_weights(config.seed):
        model = FCAMModel(classifier, UNetDecoder.of(classifier, input_skip=config.input_skip))
    images = data.images(saved.mean, saved.std)
    recipe = FCAMRecipe(config, model, device, images, folder=out / "cache", progress=progress)
    return _noted(recipe, saved)


def _build_dips(config: DiPSConfig, device: torch.device, out: Path, progress: bool) -> Recipe:
    classifier, saved, data = _open_classifier(config)
    with seeded_weights(config.seed):
        if config.encoder == "classifier":
            model = UNetLocalizer(classifier.copy_encoder())
        else:
            model = UNetLocalizer(
                config.encoder, in_chans=classifier.in_chans, pretrained=config.pretrained
            )
    images = data.images(saved.mean, saved.std)
    recipe = DiPSRecipe(
        config, model, device, images,
        classifier=classifier, folder=out / "cache", progress=progress,
    )  # fmt: skip
    if config.pretrained and config.encoder != "classifier":
        recipe.notes += _normalized_otherwise(config.encoder, saved)
    return _noted(recipe, saved)


def _build_pseudo(config: PseudoConfig, device: torch.device, out: Path, progress: bool) -> Recipe:
    classifier, saved, data = _open_classifier(config)
    model: nn.Module
    with seeded_weights(config.seed):
        if config.segmenter == "deeplabv3":
            model = DeepLabV3(in_chans=classifier.in_chans, pretrained=config.pretrained)
        elif config.segmenter == "classifier":
            model = UNetLocalizer(classifier.copy_encoder())
        else:
            model = UNetLocalizer("small_vgg", {"input_skip": True}, in_chans=classifier.in_chans)
    images = data.images(saved.mean, saved.std)
    recipe = PseudoRecipe(
        config, model, device, images,
        classifier=classifier, folder=out / "cache", progress=progress,
    )  # fmt: skip
    if config.pretrained and config.segmenter == "deeplabv3":
        recipe.notes += _normalized_otherwise("resnet50", saved)  # DeepLabV3's backbone
    return _noted(recipe, saved)


_BUILDERS: dict[str, Callable[[Any, torch.device, Path, bool], Recipe]] = {
    "classifier": _build_classifier,
    "fcam": _build_fcam,
    "dips": _build_dips,
    "pseudo": _build_pseudo,
}
