import json

import pytest
import torch

from wsfast.models import (
    DeepLabV3,
    FCAMModel,
    SmallVGG,
    UNetDecoder,
    UNetLocalizer,
    WSOLClassifier,
    build_model,
    config_differences,
)


def fcam(encoder, **decoder):
    classifier = WSOLClassifier(encoder, 4)
    return FCAMModel(classifier, UNetDecoder.of(classifier, **decoder))


MODELS = {
    "SmallVGG": lambda: SmallVGG(3, 5, (4, 8)),
    "WSOL vgg16": lambda: WSOLClassifier("vgg16", 7, in_chans=1),
    "WSOL inception_v3": lambda: WSOLClassifier("inception_v3", 7),
    "WSOL timm": lambda: WSOLClassifier("timm/resnet10t", 2, output_stride=8),
    "WSOL bare timm name": lambda: WSOLClassifier("resnet10t", 2, in_chans=1),
    "F-CAM": lambda: fcam("resnet50", parity=True),
    "F-CAM of SmallVGG": lambda: FCAMModel(SmallVGG()),
    "F-CAM, other widths": lambda: fcam("vgg16", widths=(64, 32), center=False),
    "U-Net": lambda: UNetLocalizer("small_vgg", {"input_skip": True}, in_chans=1, channels=(4, 8)),
    "DiPS": lambda: UNetLocalizer("resnet50"),
    "DeepLabV3": lambda: DeepLabV3(3, backbone="mobilenet_v3_large", in_chans=1),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_description_survives_json_and_builds_the_same_model(name):
    with torch.device("meta"):
        model = MODELS[name]()
        rebuilt = build_model(json.loads(json.dumps(model.config)))
    assert type(rebuilt) is type(model)
    shapes, others = (
        {key: tensor.shape for key, tensor in net.state_dict().items()} for net in (model, rebuilt)
    )
    assert shapes == others
    assert config_differences(rebuilt.config, model.config) == []


def test_any_timm_classifier_can_be_described():
    config = {"architecture": "timm", "name": "resnet10t", "num_classes": 3, "in_chans": 1}
    assert build_model(config)(torch.rand(2, 1, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "config's architecture must be one of SmallVGG, .*, got None"),
        ({"architecture": "Net"}, "config's architecture must be one of SmallVGG, .*, got Net"),
        ({"architecture": "SmallVGG", "depth": 3}, "settings of SmallVGG, got .*'depth'"),
        ({"architecture": "WSOLClassifier", "num_classes": 2}, "settings of WSOL.*'encoder'"),
        ({"architecture": "UNetLocalizer", "encoder": "vgg16"}, "settings of UNetLocalizer"),
        ({"architecture": "timm", "name": "no_such"}, "config's name must be a timm model"),
    ],
)
def test_bad_descriptions_give_one_clear_line(config, message):
    with pytest.raises(ValueError, match=rf"^wsfast\.build_model: .*{message}") as caught:
        build_model(config)
    assert "\n" not in str(caught.value)


def test_differences_name_what_is_nested_missing_and_added():
    saved = {"lr": 0.1, "model": {"encoder": "vgg16", "sizes": [1, 2]}, "old": True}
    wanted = {"lr": 0.1, "model": {"encoder": "resnet50", "sizes": (1, 2)}, "new": None}
    assert config_differences(saved, wanted) == [
        "model.encoder is vgg16, not resnet50",
        "new is missing, not None",
        "old is True, not missing",
    ]
    assert config_differences(saved, saved) == []
