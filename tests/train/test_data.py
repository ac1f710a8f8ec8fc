"""Which images a run trains, is validated and tested on, and what its models say of it."""

import dataclasses
import os
import shutil
import warnings
from pathlib import Path

import cv2
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.data.pictures import picture
from tests.train.tiny import assert_same_result, result
from wsfast.data import SyntheticDefects
from wsfast.models import save_checkpoint
from wsfast.train.config import CONFIG
from wsfast.train.data import check_classes, open_split
from wsfast.train.evaluation import RunMaps, evaluate_run
from wsfast.train.log import read_log
from wsfast.train.runs import _BUILDERS, configure, load_run, run
from wsfast.train.state import STATE, save_learnt

TINY = {"size": [32, 16], "channels": 1, "batch_size": 8, "epochs": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twenty images of each of two classes, without splits."""
    root = tmp_path_factory.mktemp("data")
    for number in range(20):
        picture(root / "good" / f"{number}.png", size=(32, 16), value=40 + number)
        picture(root / "crack" / f"{number}.png", size=(32, 16), value=140 + number)
    return root


@pytest.fixture(scope="module")
def classifier(folder, tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "classifier"
    run(configure("classifier", {**TINY, "data": str(folder)}), out, progress=False)
    return out


def pseudo(classifier, folder, **settings):
    """The recipe of a run that starts from the classifier."""
    told = {**TINY, "data": str(folder), "classifier": str(classifier), "select_on": "last"}
    config = configure("pseudo", {**told, **settings})
    return _BUILDERS["pseudo"](config, torch.device("cpu"), folder.parent / "none", False)


def names(config, split):
    return set(open_split(config, split, channels=1, size=None).names)


def test_no_seed_of_a_run_lets_its_classifier_learn_from_held_out_images(folder, classifier):
    learnt = names(RunMaps(classifier, torch.device("cpu")).config, "train")
    assert len(learnt) == 26
    for seed in (0, 1, 7):
        recipe = pseudo(classifier, folder, seed=seed)
        assert set(recipe.names) == learnt
        assert not learnt & set(recipe.data.validation.names)
        test = names(recipe.config, "test")
        assert len(test) == 8
        assert not learnt & test


def test_another_split_seed_is_another_split(folder):
    parts = [
        names(configure("classifier", {"data": str(folder), "split_seed": seed}), "test")
        for seed in (0, 1)
    ]
    assert parts[0] != parts[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split_seed": 1}, r"split_seed must be the classifier's \(0\), .*, got 1$"),
        ({"holdout": 0.5}, r"holdout must be the classifier's \(0\.2\), .*, got 0\.5$"),
        ({"holdout": 0}, r"holdout must be the classifier's \(0\.2\), .*, got 0\.0$"),
    ],
)
@pytest.mark.parametrize("place", ["run", "file of the run", "moved file"])
def test_a_run_with_another_split_than_its_classifier_is_refused(
    folder, classifier, tmp_path, settings, message, place
):
    path = classifier if place == "run" else classifier / "best.safetensors"
    if place == "moved file":
        path = shutil.copy(path, tmp_path)
    with pytest.raises(ValueError, match=rf"^wsfast\.train: {message}"):
        pseudo(path, folder, **settings)


def test_data_that_were_moved_may_be_the_same_and_other_data_may_be_split_otherwise(
    folder, classifier, tmp_path
):
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert pseudo(classifier, moved, split_seed=1).config.split_seed == 1  # two data sets
    here = shutil.copytree(classifier, tmp_path / "classifier")
    settings = yaml.safe_load((here / CONFIG).read_text())
    (here / CONFIG).write_text(yaml.safe_dump({**settings, "data": str(tmp_path / "gone")}))
    with pytest.raises(ValueError, match="split_seed must be the classifier's"):
        pseudo(here, moved, split_seed=1)
    lines = [f"good/{n}.png,good\ncrack/{n}.png,crack" for n in range(20)]
    table = folder / "list.csv"
    table.write_text("\n".join(["path,label", *lines]))
    try:
        with pytest.raises(ValueError, match=r"format must be the classifier's \(folder\)"):
            pseudo(_of_folder(classifier, tmp_path), table)
    finally:
        table.unlink()


def _of_folder(classifier, tmp_path):
    """The classifier's run as one whose format was given."""
    here = shutil.copytree(classifier, tmp_path / "given")
    settings = yaml.safe_load((here / CONFIG).read_text())
    (here / CONFIG).write_text(yaml.safe_dump({**settings, "format": "folder"}))
    return here


@pytest.fixture(scope="module")
def unnamed(tmp_path_factory):
    """A data set whose class without an object is not called so, and a classifier that knows it."""
    root = tmp_path_factory.mktemp("unnamed")
    for number in range(10):
        picture(root / "data" / "surface" / f"{number}.png", size=(32, 16), value=40 + number)
        picture(root / "data" / "crack" / f"{number}.png", size=(32, 16), value=140 + number)
    settings = {**TINY, "data": str(root / "data"), "normal": "surface"}
    run(configure("classifier", settings), root / "classifier", progress=False)
    return root


def test_a_run_takes_the_class_without_an_object_from_its_classifier(unnamed, tmp_path):
    for path in (unnamed / "classifier", unnamed / "classifier" / "best.safetensors"):
        recipe = pseudo(path, unnamed / "data")
        assert recipe.data.class_names == ("surface", "crack")
        assert (recipe.data.clean_class, recipe.config.normal) == (0, "surface")
    moved = shutil.copy(unnamed / "classifier" / "best.safetensors", tmp_path)
    assert pseudo(moved, unnamed / "data", normal="surface").data.clean_class == 0


@pytest.mark.parametrize("place", ["run", "moved file"])
def test_classes_in_another_order_than_the_classifiers_are_refused(unnamed, tmp_path, place):
    path, settings = unnamed / "classifier", {"normal": "crack"}
    if place == "moved file":
        path, settings = shutil.copy(path / "best.safetensors", tmp_path), {}
    message = r"--data must be .* in their order \(surface, crack\), got 2 \(crack, surface\); name"
    with pytest.raises(ValueError, match=message):
        pseudo(path, unnamed / "data", **settings)


def test_a_run_without_its_classifiers_class_without_an_object_is_refused(unnamed):
    data = shutil.copytree(unnamed / "data", unnamed / "renamed")
    (data / "surface").rename(data / "a surface")  # sorts first whatever it is
    settings = {**TINY, "data": str(data)}
    first = configure("classifier", {**settings, "normal": "a surface"})
    run(first, unnamed / "first", progress=False)
    second = configure("pseudo", {**settings, "classifier": str(unnamed / "first")})
    assert second.normal == "a surface"
    with pytest.raises(
        ValueError, match=r"normal must be the classifier's \(a surface\), got noth"
    ):
        run(dataclasses.replace(second, normal=""), unnamed / "second", progress=False)


def test_a_run_is_scored_on_its_own_classes_only(unnamed):
    other = shutil.copytree(unnamed / "data", unnamed / "other")
    shutil.copytree(other / "crack", other / "hole")
    with pytest.raises(
        ValueError, match=r"order \(surface, crack\), got 3 \(surface, crack, hole\); name"
    ):
        evaluate_run(unnamed / "classifier", data=str(unnamed / "other"), progress=False)


def test_the_one_class_with_an_object_may_have_any_name():
    check_classes(("good", "crack"), ("good", "defect"), 0)
    for data, normal in ((("ok", "crack"), 0), (("good", "defect"), None)):
        with pytest.raises(ValueError, match="classes in their order"):
            check_classes(("good", "crack"), data, normal)


def test_many_classes_are_told_from_where_they_differ():
    names = [str(number) for number in range(200)]
    with pytest.raises(ValueError, match=r"200 .* \(5, 6, 7, 8, \.\.\.\), got 199 \(5, 6, 8, 9, "):
        check_classes(names, [*names[:7], *names[8:]], None)
    with pytest.raises(ValueError, match=r"200 .* \(197, 198, 199\), got 199 \(197, 198\)"):
        check_classes(names, names[:199], 0)


@pytest.fixture
def grown(folder, classifier, tmp_path):
    """Run and data of the classifier, to which an image has been added since."""
    data = shutil.copytree(folder, tmp_path / "data")
    here = shutil.copytree(classifier, tmp_path / "classifier")
    set_in_run(here, data=str(data))
    picture(data / "crack" / "new.png", size=(32, 16), value=200)
    return here, data


def set_in_run(folder, **settings):
    saved = yaml.safe_load((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(yaml.safe_dump({**saved, **settings}))


@pytest.mark.parametrize("place", ["run", "file of the run", "moved data"])
def test_images_held_out_anew_must_not_be_those_the_classifier_learnt_from(grown, place):
    run, data = grown
    if place == "moved data":
        data = data.rename(data.parent / "elsewhere")
    path = run / "best.safetensors" if place == "file of the run" else run
    message = r"classifier must be one that learnt from no image of val, got .* \d of 6 \(\w+/\d"
    with pytest.raises(ValueError, match=message):
        pseudo(path, data)
    set_in_run(run, holdout=0.0)
    with pytest.raises(ValueError, match=r"learnt from no image of test, got .* \d of 8 \(\w+/\d"):
        pseudo(path, data, holdout=0)


def test_data_that_changed_harmlessly_or_are_others_are_taken(grown, folder, tmp_path):
    run, data = grown
    assert pseudo(run, folder).learnt_before == set()  # two data sets with the same names
    (data / "crack" / "new.png").unlink()
    learnt = run / "learnt.txt"
    learnt.write_text(learnt.read_text() + "\ncrack/since gone.png")
    recipe = pseudo(run, data)
    images = [f"{name}.png" for name in recipe.names]
    assert recipe.learnt_before == {*images, "crack/since gone.png"}
    save_learnt(tmp_path, recipe)
    assert (tmp_path / "learnt.txt").read_text().split("\n") == [*images, "crack/since gone.png"]
    learnt.unlink()  # as before there was one
    picture(data / "crack" / "new.png", size=(32, 16), value=200)
    assert pseudo(run, data).learnt_before == set()


def test_scoring_warns_of_images_that_were_learnt_from(grown, folder):
    run, _ = grown
    with pytest.warns(UserWarning, match=r"has learnt from images of test: \d of 8 \("):
        evaluate_run(run, progress=False)
    for options in ({"data": str(folder)}, {"split": "train"}):  # other data, and no wonder
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            evaluate_run(run, **options, progress=False)


def test_splits_in_folders_may_have_images_of_the_same_names(tmp_path):
    data = tmp_path / "data"
    for split in ("train", "val", "test"):
        for number in range(8):
            for name, value in (("good", 40), ("crack", 140)):
                picture(data / split / name / f"{number}.png", size=(32, 16), value=value + number)
    first = tmp_path / "first"
    run(configure("classifier", {**TINY, "data": str(data)}), first, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for split in ("val", "test"):
            evaluate_run(first, split=split, progress=False)
    (data / "train" / "crack" / "3.png").unlink()  # another is still there for the test
    assert pseudo(first, data).learnt_before


def test_crops_are_taken_at_the_classifiers_size(folder, tmp_path):
    first, settings = tmp_path / "first", {"size": [24, 12], "crop": [8, 8], "data": str(folder)}
    run(configure("classifier", {**TINY, **settings}), first, progress=False)
    for options, size in (({}, (24, 12)), ({"crop": None}, (8, 8)), ({"size": [16, 8]}, (16, 8))):
        recipe = pseudo(first, folder, **{"size": None, "crop": [8, 8], **options})
        assert recipe.data.size == size
    bare = tmp_path / "bare.safetensors"  # outside of its run
    shutil.copy(first / "best.safetensors", bare)
    assert pseudo(bare, folder, size=None, crop=[8, 8]).data.size == (24, 12)
    set_in_run(first, size=None)  # as of a run that took the size of its first image
    assert pseudo(first, folder, size=None, crop=[8, 8]).data.size == (24, 12)
    told = load_run(bare)._asdict()
    save_checkpoint(told.pop("model"), bare, **{**told, "extra": None})
    message = "size must be given with a crop, as the classifier's file does not say whether"
    with pytest.raises(ValueError, match=message):
        pseudo(bare, folder, size=None, crop=[8, 8])


def test_maps_of_other_synthetic_images_are_made_anew(classifier):
    made = [pseudo(classifier, Path("synthetic"), images=16, split_seed=seed) for seed in (0, 0, 1)]
    assert made[0].fingerprint() == made[2].fingerprint()
    assert made[0].key == made[1].key
    assert made[0].key != made[2].key


def test_maps_of_files_that_were_replaced_are_made_anew(classifier, folder, tmp_path):
    data = shutil.copytree(folder, tmp_path / "data")
    recipe = pseudo(classifier, data)
    first = recipe.image_key()
    assert first == pseudo(classifier, folder).image_key()  # moved, or copied with its times
    file = data / f"{recipe.names[0]}.png"
    os.utime(file, (0, 0))  # another picture of as many bytes
    second = recipe.image_key()
    file.unlink()
    third = recipe.image_key()
    assert len({key["files"] for key in (first, second, third)}) == 3


def test_a_run_from_before_there_was_a_split_seed_was_split_by_its_seed(folder, tmp_path):
    settings = {**TINY, "data": str(folder), "split_seed": 3, "seed": 3}
    run(configure("classifier", settings), tmp_path / "old", progress=False)
    file, state = tmp_path / "old" / CONFIG, tmp_path / "old" / STATE
    old = {k: v for k, v in yaml.safe_load(file.read_text()).items() if k != "split_seed"}
    file.write_text(yaml.safe_dump(old))
    saved = torch.load(state, weights_only=True)
    del saved["config"]["split_seed"], saved["config"]["clip_gradients"]  # nor that
    torch.save(saved, state)

    assert RunMaps(tmp_path / "old", torch.device("cpu")).config.split_seed == 3
    with pytest.raises(ValueError, match=r"split_seed must be the classifier's \(3\)"):
        pseudo(tmp_path / "old", folder)
    more = configure("classifier", {"epochs": 2}, out=tmp_path / "old", resume=True)
    assert more.split_seed == 3
    run(more, tmp_path / "old", resume=True, progress=False)
    assert len(read_log(tmp_path / "old")) == 2


def test_a_run_is_resumed_with_data_and_classifier_in_other_places(classifier, folder, tmp_path):
    data, first, out = tmp_path / "data", tmp_path / "first", tmp_path / "pseudo"
    settings = {**TINY, "method": "cam", "select_on": "last", "schedule": "constant"}

    def train(out, data, first, epochs, **resumed):
        given = {**settings, "data": str(data), "classifier": str(first), "epochs": epochs}
        return run(configure("pseudo", given), out, progress=False, **resumed)

    shutil.copytree(folder, data)
    shutil.copytree(classifier, first)
    train(out, data, first, 1)
    masks = sorted((out / "cache").glob("*.npy"))
    data.rename(data := tmp_path / "elsewhere")
    first.rename(first := tmp_path / "renamed")
    train(out, data, first, 2, resume=True)
    assert sorted((out / "cache").glob("*.npy")) == masks  # none is made again
    train(tmp_path / "whole", folder, classifier, 2)
    assert_same_result(result(out), result(tmp_path / "whole"))
    assert configure("pseudo", {}, out=out, resume=True).data == str(data)

    (data / "crack" / "0.png").rename(data / "crack" / "other.png")
    with pytest.raises(ValueError, match=r"--resume must be given the run's own images"):
        train(out, data, first, 3, resume=True)


def test_a_resumed_run_needs_the_classifier_it_was_begun_with(classifier, folder, tmp_path):
    first = shutil.copytree(classifier, tmp_path / "first")
    settings = {**TINY, "data": str(folder), "classifier": str(first),
                "method": "cam", "select_on": "last"}  # fmt: skip
    out = tmp_path / "pseudo"
    run(configure("pseudo", settings), out, progress=False)
    more = configure("pseudo", {"epochs": 2}, out=out, resume=True)
    weights = load_file(first / "best.safetensors")
    with safe_open(first / "best.safetensors", "pt") as file:
        save_file({n: w + 1 for n, w in weights.items()}, first / "best.safetensors",
                  file.metadata())  # fmt: skip
    with pytest.raises(ValueError, match=r"--resume must be given the classifier that .* weights"):
        run(more, out, resume=True, progress=False)
    state = torch.load(out / STATE, weights_only=True)
    del state["classifier"]  # as before it was saved
    torch.save(state, out / STATE)
    run(more, out, resume=True, progress=False)
    assert len(read_log(out)) == 2


@pytest.mark.parametrize("recipe", ["classifier", "pseudo"])
def test_a_run_without_validation_trains_on_all_and_keeps_its_last_model(folder, tmp_path, recipe):
    settings = {**TINY, "data": str(folder), "holdout": 0, "select_on": "last"}
    first = tmp_path / "classifier"
    run(configure("classifier", {**settings, "epochs": 2}), first, progress=False)
    if recipe == "pseudo":
        more = {"classifier": str(first), "method": "cam", "epochs": 2}
        run(configure(recipe, {**settings, **more}), tmp_path / recipe, progress=False)
    out = tmp_path / recipe
    assert not {"balanced_accuracy", "masked_accuracy"} & read_log(out)[-1].keys()
    extra = load_run(out).extra
    assert (extra["epoch"], extra["holdout"]) == (2, 0)
    maps = RunMaps(out, torch.device("cpu"))
    assert maps.threshold == 0.5
    train, test = names(maps.config, "train"), names(maps.config, "test")
    assert (len(train), len(test), len(train & test)) == (32, 8, 0)
    assert evaluate_run(out, progress=False)["images"] == 8
    with pytest.raises(ValueError, match="with images for val"):
        evaluate_run(out, split="val", progress=False)


def test_what_validation_would_choose_needs_validation(folder, tmp_path):
    settings = {**TINY, "data": str(folder), "holdout": 0}
    with pytest.raises(ValueError, match="select_on must be last for this data, got class"):
        run(configure("classifier", settings), tmp_path / "run", progress=False)


def test_one_class_alone_is_not_trained_on(folder, tmp_path):
    shutil.copytree(folder / "crack", tmp_path / "data" / "images")
    settings = {**TINY, "data": str(tmp_path / "data")}
    with pytest.raises(ValueError, match="--data must be of at least 2 classes, got images of ima"):
        run(configure("classifier", settings), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_mask_among_many_validation_images_can_choose(folder, classifier, tmp_path):
    data = shutil.copytree(folder, tmp_path / "data")
    images = [(f"{name}/{n}.png", name, n) for name in ("good", "crack") for n in range(20)]
    lines = [f"{path},{name},,{'val' if n else 'train'}" for path, name, n in images]
    lines[-1] = "crack/19.png,crack,crack/19.png,val"
    (data / "few.csv").write_text("\n".join(["path,label,mask,split", *lines]))
    recipe = pseudo(classifier, data / "few.csv", select_on="localization")
    assert set(recipe.selections) == {"localization"}


@pytest.mark.parametrize(
    ("recipe", "choices"),
    [("fcam", "classification, last"), ("dips", "classification, last"), ("pseudo", "last")],
)
def test_without_masks_to_choose_by_no_maps_are_made(folder, classifier, tmp_path, recipe, choices):
    settings = {**TINY, "data": str(folder), "classifier": str(classifier)}
    with pytest.raises(ValueError, match=f"select_on must be {choices} for this data, got local"):
        run(configure(recipe, settings), tmp_path / "run", progress=False)
    assert not list(tmp_path.rglob("*.npy"))


def test_a_run_on_synthetic_images_is_scored_on_those_it_had(tmp_path):
    settings = {**TINY, "images": 16, "holdout": 0.25, "split_seed": 5}
    run(configure("classifier", settings), tmp_path / "run", progress=False)
    for split, images in (("train", 16), ("val", 4)):
        assert evaluate_run(tmp_path / "run", split=split, progress=False)["images"] == images
    config = RunMaps(tmp_path / "run", torch.device("cpu")).config
    assert len(open_split(config, "test", channels=1, size=(32, 16))) == 600
    drawn = SyntheticDefects(16, size=(32, 16), seed=5)
    assert torch.equal(open_split(config, "train", channels=1, size=(32, 16))[9].image,
                       drawn[9].image)  # fmt: skip


def test_synthetic_images_of_a_run_without_validation_have_no_such_split():
    config = configure("classifier", {**TINY, "images": 16, "holdout": 0})
    with pytest.raises(ValueError, match=r"holdout must be above 0 for validation images, got 0$"):
        open_split(config, "val", channels=1, size=(32, 16))


def test_all_of_other_data_without_splits_is_scored(folder, classifier, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    config = RunMaps(classifier, torch.device("cpu")).config

    def opened(split, config=config, **options):
        return open_split(config, split, channels=1, size=None, data=str(other), **options)

    assert len(opened("test")) == 40
    assert (len(opened("train")), len(opened("val"))) == (26, 6)
    moved = dataclasses.replace(config, data=str(tmp_path / "gone"))
    assert set(opened("test", moved).names) == names(config, "test")  # it may be the same
    assert evaluate_run(classifier, data=str(other), progress=False)["images"] == 40


def test_other_data_have_masks_of_their_own(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    for number in range(20):
        mask = picture(tmp_path / "truth" / "crack" / f"{number}.png", size=(32, 16), value=0)
        pixels = cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE)
        pixels[:, :4], pixels[0] = 3, 255
        cv2.imwrite(str(mask), pixels)
    config = configure("classifier", {**TINY, "data": str(folder), "mask_kind": "index"})
    options = {"channels": 1, "size": None, "data": str(other)}
    assert all(sample.mask is None for sample in open_split(config, "test", **options))
    masks = [s.mask for s in open_split(config, "test", masks=str(tmp_path / "truth"), **options)]
    found = [mask.unique().tolist() for mask in masks]
    assert sorted(map(tuple, found)) == [(0,)] * 20 + [(0, 1, 255)] * 20


def test_a_kind_of_masks_is_refused_where_data_have_theirs(tmp_path):
    config = configure("classifier", {**TINY, "mask_kind": "index"})
    with pytest.raises(ValueError, match="mask_kind"):
        open_split(config, "train", channels=1, size=None)
    with pytest.raises(ValueError, match="mask_kind must be"):
        configure("classifier", {"mask_kind": "grey"})
