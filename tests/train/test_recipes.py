"""The recipes on tiny synthetic defects: they run and resume bit for bit."""

import dataclasses
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch.utils.data import Subset

from tests.nn.test_losses import CalledOperators
from tests.train.tiny import assert_same_result, result
from wsfast import ops
from wsfast.cam import CAM, attention_map
from wsfast.data import SyntheticDefects
from wsfast.models import FCAMModel, UNetLocalizer, save_checkpoint
from wsfast.train import Draw, Interrupted
from wsfast.train.classifier import build_cam, poor_classifier
from wsfast.train.evaluation import RunMaps, evaluate_run
from wsfast.train.fcam import FCAMRecipe
from wsfast.train.images import ImageRecipe, images_at_once, pretrained_normalization
from wsfast.train.loading import read_batch
from wsfast.train.log import read_log
from wsfast.train.pseudo import without_small
from wsfast.train.runs import _BUILDERS, configure, load_run, run

SIZES = {"size": [32, 16], "images": 24, "channels": 1, "batch_size": 8, "holdout": 0.25}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("classifier")
    settings = {**SIZES, "epochs": 2, "select_on": "localization", "method": "ltgradcam"}
    run(configure("classifier", settings), out, progress=False)
    return str(out)


def settings_of(recipe, classifier, **others):
    found = {
        "fcam": {"preset": "small", "epochs": 2},
        "dips": {"preset": "small", "epochs": 2, "blur_kernel": 9},
        "pseudo": {"method": "ltgradcam", "epochs": 2, "rounds": 2},
    }[recipe]
    return {**SIZES, "classifier": classifier, **found, **others}


def test_a_classifier_is_validated_on_labels_and_maps(classifier):
    record = read_log(Path(classifier))[-1]
    assert 0 <= record["iou"] <= 1
    assert record["localization"] == record["iou"]
    saved = load_run(classifier)
    assert saved.class_names == ("good", "defect")
    assert saved.input_size == (32, 16)
    assert saved.extra["recipe"] == "classifier"
    assert "threshold" in saved.extra


def test_a_classifiers_validation_and_evaluate_say_the_same(classifier):
    """Of good images too, in which both look for what the class of defects sees."""
    logged = load_run(classifier).extra
    found = evaluate_run(Path(classifier), split="val", progress=False)
    assert found["threshold"] == logged["threshold"]
    assert found["at_threshold"]["iou"] == pytest.approx(logged["iou"])
    assert found["false_positives"] == pytest.approx(logged["false_positives"])
    assert found["balanced_accuracy"] == pytest.approx(logged["balanced_accuracy"])


@pytest.mark.parametrize("recipe", ["fcam", "dips", "pseudo"])
def test_a_recipe_stopped_and_resumed_ends_as_if_unbroken(tmp_path, classifier, recipe):
    config = configure(recipe, settings_of(recipe, classifier))
    run(config, tmp_path / "whole", progress=False)
    kind = {"fcam": FCAMModel}.get(recipe, UNetLocalizer)
    assert isinstance(load_run(tmp_path / "whole").model, kind)
    figures = result(tmp_path / "whole")[2][-1]
    assert np.isfinite(figures["loss"])
    assert figures["localization"] > 0

    for step in (1, 3):  # in the first epoch, then in the second
        stopping = _stopping_after(config, step)
        with pytest.raises(Interrupted), stopping:
            run(config, tmp_path / "broken", resume=True, progress=False)
    run(config, tmp_path / "broken", resume=True, progress=False)
    assert_same_result(result(tmp_path / "whole"), result(tmp_path / "broken"))


class _stopping_after:
    """Signals the process once, in the given step of the run."""

    def __init__(self, config, step):
        self.config, self.step = config, step

    def __enter__(self):
        self.plain = _BUILDERS[self.config.recipe]

        def build(*args):
            recipe = self.plain(*args)
            step = recipe.step

            def signalling(batch, epoch):
                if self.step == epoch * 3 + int(batch.draw.position.min()) // 8:
                    signal.raise_signal(signal.SIGTERM)
                return step(batch, epoch)

            recipe.step = signalling
            return recipe

        _BUILDERS[self.config.recipe] = build

    def __exit__(self, *_):
        _BUILDERS[self.config.recipe] = self.plain


def test_specks_go_and_regions_stay():
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, 1:4, 1:4] = True
    masks[0, 6, 6] = True
    masks[1, 0, :2] = True
    found = without_small(masks, 3)
    assert found[0].sum() == 9
    assert not found[0, 6, 6]
    assert not found[1].any()


def built(recipe, classifier, tmp_path, **others):
    config = configure(recipe, settings_of(recipe, classifier, **others))
    made = _BUILDERS[recipe](config, torch.device("cpu"), tmp_path, False)
    made.begin_epoch(0)
    return made


def batch_of(recipe, epoch=0, positions=range(8)):
    order = recipe.epoch_order(epoch)
    return read_batch(recipe, [Draw(epoch, at, order[at]) for at in positions])


@pytest.mark.parametrize("recipe", ["fcam", "dips", "pseudo"])
def test_no_more_images_are_explained_at_a_time_than_are_trained_on(
    tmp_path, classifier, recipe, monkeypatch
):
    few, many = ImageRecipe.read_whole, []
    monkeypatch.setattr(
        ImageRecipe, "read_whole", lambda self, rows: (many.append(len(rows)), few(self, rows))[1]
    )
    made = built(recipe, classifier, tmp_path, batch_size=6, accumulate=2)
    assert max(many) == 3
    assert max(len(samples) for samples in made.validation_batches()) == 3


def test_how_many_are_explained_at_a_time_changes_no_figure(classifier, monkeypatch):
    counts, plain = [], RunMaps.__call__
    monkeypatch.setattr(
        RunMaps,
        "__call__",
        lambda self, images, target: (counts.append(len(images)), plain(self, images, target))[1],
    )
    wanted = evaluate_run(Path(classifier), progress=False)
    monkeypatch.setattr(
        "wsfast.train.evaluation.images_at_once",
        lambda config: images_at_once(dataclasses.replace(config, batch_size=3)),
    )
    found = evaluate_run(Path(classifier), progress=False)
    assert (counts[0], counts[-2]) == (8, 3)
    assert found == wanted


def test_fcam_learns_from_seeds_of_its_map_and_from_background_of_clean_images(
    tmp_path, classifier, monkeypatch
):
    recipe = built("fcam", classifier, tmp_path, dilate=0, flips="none")
    drawn = []
    plain = ops.sample_seeds

    def keep(cams, **options):
        drawn.append((cams, plain(cams, **options)))
        return drawn[-1][1]

    monkeypatch.setattr(ops, "sample_seeds", keep)
    batch = batch_of(recipe)
    step = recipe.step(batch, 0)
    assert step.losses.keys() == {"ce", "crf", "size"}
    assert all(loss.requires_grad for loss in step.losses.values())
    cams, seeds = drawn[0]
    explain = build_cam(recipe.model.classifier, recipe.config)
    for cam, seed, label, item in zip(cams, seeds, batch.label, batch.draw.item, strict=True):
        whole = recipe.normalize(recipe.read_whole([int(item)]))
        wanted = explain(whole, 1).cams[0]
        torch.testing.assert_close(cam, wanted, atol=1.5 / 255, rtol=0)
        if label == 0:
            assert not (seed == 1).any()
            assert (seed == 0).any()
        elif cam.min() < cam.max():
            top = cam.flatten().topk(int(0.01 * cam.numel())).values.min()
            assert bool((cam[seed == 1] >= top).all())


@pytest.mark.filterwarnings("ignore:wsfast.KSDD2. .*is replaced by")
def test_an_image_that_replaces_an_unreadable_one_comes_with_its_own_map(tmp_path, classifier):
    SyntheticDefects(16, size=(32, 16)).write_ksdd2(tmp_path / "data")
    recipe = built(
        "fcam", classifier, tmp_path / "run", data=str(tmp_path / "data"), flips="none"
    )  # fmt: skip
    item = int(recipe.labels.nonzero()[0, 0])
    record = recipe.data.train.records[item]
    (recipe.data.train.root / record.image).write_bytes(b"torn")
    sample = recipe.read(Draw(0, 0, item))
    taken = sample.draw.item
    assert taken != item
    assert sample.label == recipe.labels[item] == 1
    assert torch.equal(sample.image, recipe.data.whole(taken))
    assert np.array_equal(sample.map[0], recipe.maps[taken])
    assert not np.array_equal(sample.map[0], recipe.maps[item])


def test_fcams_classifier_stays_as_it_was(tmp_path, classifier):
    config = configure("fcam", settings_of("fcam", classifier, epochs=1))
    run(config, tmp_path, progress=False)
    before = load_run(classifier).model.state_dict()
    after = load_run(tmp_path).model.classifier.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_maps_of_the_crop_are_the_closed_form_of_cam(tmp_path, classifier):
    recipe = built("fcam", classifier, tmp_path, preset="paper", maps="recompute", erode=0)
    images = recipe.normalize(batch_of(recipe).image)
    labels = torch.ones(8, dtype=torch.int64)
    found = recipe._cams(recipe.model.forward_features(images), torch.zeros(0), labels, images)
    wanted = CAM(recipe.model.classifier, relu=False)(images, labels).cams
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)


def test_the_classifiers_loss_reaches_dips_localizer_unless_detached(tmp_path, classifier):
    for detach in (False, True):
        recipe = built("dips", classifier, tmp_path, detach=detach)
        loss = recipe.step(batch_of(recipe), 0).losses["class"]
        assert loss.requires_grad is not detach
        assert loss.item() > 0


def test_dips_draws_foreground_inside_a_proposal_only(tmp_path, classifier, monkeypatch):
    recipe = built("dips", classifier, tmp_path, dilate=0)
    drawn = []
    plain = ops.sample_seeds
    monkeypatch.setattr(
        ops, "sample_seeds", lambda cams, **o: drawn.append(plain(cams, **o)) or drawn[-1]
    )
    batch = batch_of(recipe)
    recipe.step(batch, 0)
    inside = 0
    for seeds, (x0, y0, x1, y1), label in zip(drawn[0], batch.box, batch.label, strict=True):
        if label == 0:
            assert x1 <= x0
        inside += int((seeds[y0:y1, x0:x1] == 1).sum())
    assert inside == int((drawn[0] == 1).sum()) > 0


def test_proposals_are_ranked_by_the_classifier(tmp_path, classifier):
    recipe = built("dips", classifier, tmp_path, proposals=3)
    model = load_run(classifier).model
    checked = 0
    for item in range(24):
        kept = [row for row in recipe.proposals[item] if row[4] >= 0]
        if recipe.labels[item] == 0:
            assert not kept
            continue
        scores = [float(row[5]) for row in kept]
        assert scores == sorted(scores, reverse=True)
        image = recipe.normalize(recipe.read_whole([item]))
        for row in kept:
            box = torch.from_numpy(row[:4].astype(np.int32))[None]
            seen = ops.blur_outside_boxes(image, box, torch.tensor([0]), kernel=9, sigma=100.5)
            with torch.no_grad():
                wanted = model(seen).softmax(1)[0, 1].item()
            assert float(row[5]) == pytest.approx(wanted, abs=1e-5)
            checked += 1
    assert checked >= 12


def test_maps_without_a_box_have_no_proposals(tmp_path, classifier):
    recipe = built("dips", classifier, tmp_path, proposals=3)
    recipe.maps = np.zeros_like(recipe.maps)
    found = recipe._propose(load_run(classifier).model, [int(recipe.labels.nonzero()[0, 0])])
    assert bool((found == -1).all())


def test_every_box_of_the_maps_is_scored_however_small(tmp_path, classifier):
    recipe = built("dips", classifier, tmp_path, proposals=20)
    levels = np.zeros_like(recipe.maps)
    for cell in range(32):  # 31 boxes of 2 x 2 pixels and one of a single one
        y, x = divmod(cell, 4)
        side = 1 if cell == 17 else 2
        levels[:, 0, 4 * y + 1 : 4 * y + 1 + side, 4 * x + 1 : 4 * x + 1 + side] = 255
    recipe.maps = levels
    item = int(recipe.labels.nonzero()[0, 0])
    image = recipe.normalize(recipe.read_whole([item]))

    def likes_little(seen):
        sharp = (seen == image).flatten(1).sum(1).float()
        return torch.stack([torch.zeros_like(sharp), -sharp], 1)

    (best,) = recipe._propose(likes_little, [item])
    assert best.shape == (20, 6)
    assert best[0, :5].tolist() == [5, 17, 6, 18, 0]
    assert bool((best[:, 4] == 0).all())


def test_attention_of_a_transformer_gives_maps_and_proposals(tmp_path, classifier):
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=0)
    torch.save(model.state_dict(), tmp_path / "vit.pt")
    recipe = built(
        "dips", classifier, tmp_path, maps="attention", transformer="test_vit",
        transformer_checkpoint=str(tmp_path / "vit.pt"), size=[64, 32],
    )  # fmt: skip
    patch = model.patch_embed.patch_size[0]
    heads = min(4, model.blocks[-1].attn.num_heads)
    assert recipe.maps.shape == (24, 1 + heads, 64 // patch, 32 // patch)
    assert torch.isfinite(recipe.step(batch_of(recipe), 0).losses["ce"])
    raw = recipe.read_whole([0])
    seen = recipe.normalize(raw) * recipe.sources._scale + recipe.sources._shift
    mean, std = (
        torch.tensor(model.pretrained_cfg[name])[:, None, None] for name in ("mean", "std")
    )
    torch.testing.assert_close(seen, (raw / 255 - mean) / std)


def test_attention_of_images_of_no_whole_patches_stays_in_place(tmp_path, classifier):
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=0)
    torch.save(model.state_dict(), tmp_path / "vit.pt")
    settings = {
        "maps": "attention", "transformer": "test_vit", "size": [64, 40],
        "transformer_checkpoint": str(tmp_path / "vit.pt"),
    }  # fmt: skip
    recipe = built("dips", classifier, tmp_path, **settings)
    assert recipe.maps.shape[2:] == (64, 40)  # the last patch of 16 ends at 32
    seen = recipe.normalize(recipe.read_whole([0])) * recipe.sources._scale + recipe.sources._shift
    model = recipe.sources.transformer
    expected = attention_map(model, seen.expand(-1, 3, -1, -1), norm="max")
    found = torch.from_numpy(recipe.maps[0, 0]).float() / 255
    torch.testing.assert_close(found, expected[0], rtol=0, atol=0.02)


def test_a_classifier_that_starts_from_a_run_sees_images_as_that_did(tmp_path, classifier):
    start = f"{classifier}/best.safetensors"
    config = configure("classifier", {**SIZES, "checkpoint": start, "split_seed": 5})
    data = _BUILDERS["classifier"](config, torch.device("cpu"), tmp_path, False).data
    saved = load_run(classifier)
    assert (data.mean, data.std) == (saved.mean, saved.std)


def test_pseudo_masks_are_the_maps_above_otsu_and_empty_for_clean_images(tmp_path, classifier):
    recipe = built("pseudo", classifier, tmp_path, min_area=0.0)
    explain = build_cam(recipe.classifier, recipe.config)
    for item in range(24):
        image = recipe.normalize(recipe.data.whole(item)[None])
        map = explain(image, 1).cams
        wanted = (map >= ops.otsu_threshold(map)[:, None, None])[0] & bool(recipe.labels[item])
        assert np.mean(recipe.masks[item] != wanted.numpy()) < 0.01


def test_the_loss_on_pseudo_masks_is_cross_entropy_in_deterministic_operators(tmp_path, classifier):
    recipe = built("pseudo", classifier, tmp_path, foreground_weight=3.0)
    recipe.begin_epoch(0)
    batch = batch_of(recipe)
    recipe.model.eval()
    with CalledOperators() as called:
        loss = recipe.step(batch, 0).losses["pixels"]
    assert not [name for name in called.names if "nll_loss2d" in name]
    logits = recipe.model(recipe.normalize(batch.image))
    wanted = torch.nn.functional.cross_entropy(
        logits, batch.map[:, 0].long(), torch.tensor([1.0, 3.0])
    )
    torch.testing.assert_close(loss, wanted)


def test_a_second_round_learns_from_the_segmenter(tmp_path, classifier):
    recipe = built("pseudo", classifier, tmp_path)
    first = np.array(recipe.masks)
    with torch.no_grad():
        recipe.model.decoder.head.weight.zero_()
        recipe.model.decoder.head.bias.copy_(torch.tensor([0.0, 1.0]))
    assert recipe.changes_data(1)
    recipe.begin_epoch(1)
    objects = recipe.labels.bool().numpy()
    assert recipe.masks[objects].all()  # the segmenter now says foreground everywhere
    assert not recipe.masks[~objects].any()
    with torch.no_grad():
        recipe.model.decoder.head.bias.copy_(torch.tensor([1.0, 0.0]))
    other = built("pseudo", classifier, tmp_path / "other")
    other.model.load_state_dict(recipe.model.state_dict())
    other.begin_epoch(1)
    assert np.array_equal(other.masks, first)  # nothing found: the former masks stay


def test_later_rounds_masks_are_not_made_by_another_segmenter(tmp_path, classifier):
    SyntheticDefects(16, size=(32, 16)).write_ksdd2(tmp_path / "data")
    settings = {"data": str(tmp_path / "data"), "epochs": 6, "rounds": 3}
    recipe = built("pseudo", classifier, tmp_path, **settings)
    for epoch in (2, 4):  # the first ones of their rounds
        recipe.begin_epoch(epoch)
    record = recipe.data.train.records[0]
    os.utime(recipe.data.train.root / record.image, (0, 0))  # as in a copy of the data set
    resumed = built("pseudo", classifier, tmp_path, **settings)
    resumed.begin_epoch(5)
    assert np.array_equal(resumed.masks, recipe.masks)
    other = built("pseudo", classifier, tmp_path, **{**settings, "epochs": 9})
    with pytest.raises(ValueError, match="masks of round 2"):  # those are of shorter rounds
        other.begin_epoch(4)
    for path in tmp_path.glob("cache/masks-round3*"):
        path.unlink()
    resumed = built("pseudo", classifier, tmp_path, **settings)
    with pytest.raises(ValueError, match=r"--resume must be given with the masks of round 3, "):
        resumed.begin_epoch(5)
    resumed.resumed_inside = True  # the round's first epoch, a few steps of which were done
    resumed.round = -1
    with pytest.raises(ValueError, match="masks of round 3, "):
        resumed.begin_epoch(4)
    assert not list(tmp_path.glob("cache/masks-round3*"))


def test_a_round_begins_with_the_masks_before_it_or_not_at_all(tmp_path, classifier):
    recipe = built("pseudo", classifier, tmp_path, epochs=6, rounds=3)
    for path in tmp_path.glob("cache/masks-round1*"):
        path.unlink()
    recipe.begin_epoch(2)  # the classifier's maps make the first round's again
    for path in tmp_path.glob("cache/masks-round2*"):
        path.unlink()
    with pytest.raises(ValueError, match="masks of round 2"):
        recipe.begin_epoch(4)


@pytest.mark.parametrize(
    ("figures", "word"),
    [({"covered": 0.0}, "collapsed to nothing"), ({"covered": 1.0}, "collapsed to everything"),
     ({"foreground_seeds": 0.0}, "no image had a foreground seed")],
)  # fmt: skip
def test_warnings_that_matter(tmp_path, classifier, figures, word):
    recipe = built("fcam", classifier, tmp_path)
    assert word in " ".join(recipe.warnings(figures))
    assert not recipe.warnings({"covered": 0.1, "foreground_seeds": 12.0})


def test_constant_maps_and_a_poor_classifier_are_told_with_the_first_epoch(tmp_path, classifier):
    recipe = built("fcam", classifier, tmp_path)
    recipe.maps = np.zeros_like(recipe.maps)
    recipe.notes = recipe._constant_maps()
    assert "12 of 12 maps looked at are constant" in recipe.warnings({"epoch": 1})[0]
    assert not recipe.warnings({"epoch": 2})
    assert "(chance: 0.50)" in poor_classifier(0.55, 2)[0]
    assert not poor_classifier(0.9, 2)


@pytest.mark.parametrize("recipe", ["fcam", "dips", "pseudo"])
def test_recipes_run_on_the_device_in_half_precision(tmp_path, classifier, recipe, device):
    settings = settings_of(recipe, classifier, amp="bf16", channels_last=True, device=str(device))
    config = configure(recipe, {**settings, "accumulate": 2, "optimizer": "adamw"})
    history = run(config, tmp_path, progress=False)
    assert all(np.isfinite(record["loss"]) for record in history)
    assert len(history) == 2


def test_what_is_seen_through_the_maps_is_counted_of_images_with_the_object(tmp_path, classifier):
    recipe = built("fcam", classifier, tmp_path)
    recipe.masked.logits = lambda images, maps: torch.tensor([0.0, 1.0]).expand(len(images), 2)
    assert recipe.validate()["masked_accuracy"] == 1.0  # of others an empty map shows nothing
    validation = recipe.data.validation
    clean = Subset(validation, torch.nonzero(validation.labels == 0)[:, 0].tolist())
    clean.labels = torch.zeros(len(clean), dtype=torch.int64)
    data = dataclasses.replace(recipe.data, validation=clean)
    config = dataclasses.replace(recipe.config, select_on="last")
    without = FCAMRecipe(config, recipe.model, recipe.device, data, folder=tmp_path, progress=False)
    assert without.validate() == {}


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [("dips", {"encoder": "resnet50"}), ("pseudo", {"segmenter": "deeplabv3"})],
)
def test_pretrained_weights_that_know_other_images_are_told_of(
    tmp_path, classifier, recipe, settings, monkeypatch
):
    for name in ("UNetLocalizer", "DeepLabV3"):  # nothing is downloaded
        small = UNetLocalizer("small_vgg", in_chans=1)
        monkeypatch.setattr(f"wsfast.train.runs.{name}", lambda *_, model=small, **__: model)
    known = load_run(classifier)._asdict()
    mean, std = pretrained_normalization("resnet50", "", 1)
    alike = tmp_path / "alike.safetensors"
    save_checkpoint(known.pop("model"), alike, **{**known, "mean": mean, "std": std})

    def told(classifier, **more):
        made = built(recipe, str(classifier), tmp_path, **settings, **more)
        return "normalised for the classifier, not as resnet50's" in " ".join(made.notes)

    assert told(classifier, pretrained=True)
    assert not told(classifier)
    assert not told(alike, pretrained=True)


def test_a_deterministic_run_tells_cublas_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    seen = []

    def build(*_):
        seen.append(os.environ.get("CUBLAS_WORKSPACE_CONFIG"))
        raise InterruptedError

    monkeypatch.setitem(_BUILDERS, "classifier", build)
    for wanted in (False, True):
        with pytest.raises(InterruptedError):
            run(configure("classifier", {"deterministic": wanted}), tmp_path, progress=False)
    assert seen == [None, ":4096:8"]
