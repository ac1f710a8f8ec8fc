import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.models.inception import Inception3

from wsfast.cam import CAM, GradCAM
from wsfast.models import (
    FCAMModel,
    SmallVGG,
    TimmEncoder,
    WSOLClassifier,
    create_encoder,
    encoders,
    save_checkpoint,
)

# F-CAM's networks on a 224 x 224 image: channels and sides, fine to coarse.
SHAPES = {
    "vgg16": [(64, 224), (128, 112), (256, 56), (1024, 28)],
    "resnet50": [(64, 112), (256, 56), (512, 28), (1024, 28), (2048, 28)],
    "inception_v3": [(64, 112), (80, 57), (288, 29), (768, 29), (1024, 29)],
}
TORCHVISION = {
    "vgg16": torchvision.models.vgg16,
    "resnet50": torchvision.models.resnet50,
    "inception_v3": lambda: Inception3(init_weights=False),
}


@pytest.mark.parametrize("name", SHAPES)
def test_f_cams_networks_end_at_stride_8(name):
    with torch.device("meta"):
        encoder = create_encoder(name)
        features = encoder(torch.zeros(2, 3, 224, 224))
    assert [tuple(x.shape) for x in features] == [(2, c, s, s) for c, s in SHAPES[name]]
    info = encoder.feature_info
    assert [entry["num_chs"] for entry in info] == [channels for channels, _ in SHAPES[name]]
    # Inception's padded pools give 57 and 29 for 56 and 28.
    sides = [224 // entry["reduction"] for entry in info]
    assert all(abs(side - s) <= 1 for side, (_, s) in zip(sides, SHAPES[name], strict=True))


@pytest.mark.parametrize("name", SHAPES)
def test_named_modules_give_the_features_and_no_relu_works_in_place(name):
    encoder = create_encoder(name).eval()
    outputs = []
    for entry in encoder.feature_info:
        module = encoder.get_submodule(entry["module"])
        module.register_forward_hook(lambda _m, _i, output: outputs.append(output))
    with torch.inference_mode():
        features = encoder(torch.randn(1, 3, 48, 32))
    assert all(x is output for x, output in zip(features, outputs, strict=True))
    assert all((x >= 0).all() for x in features)  # each ends in a ReLU
    assert not any(m.inplace for m in encoder.modules() if isinstance(m, nn.ReLU))


def constants(name):
    """A state dict of torchvision's network, each tensor full of a number of its own."""
    with torch.device("meta"):
        state = TORCHVISION[name]().state_dict()
    return {
        key: torch.tensor(1e-3 * (1 + index)).to(x.dtype).expand(x.shape)
        for index, (key, x) in enumerate(state.items())
    }


@pytest.mark.parametrize("name", SHAPES)
def test_torchvisions_weights_load_by_their_names(name, monkeypatch):
    state = constants(name)
    monkeypatch.setattr(encoders, "_imagenet_state", lambda weights: state)
    encoder = create_encoder(name, pretrained=True)
    own = encoder.state_dict()
    taken = [key for key in own if key in state]
    assert all(torch.equal(own[key], state[key]) for key in taken)
    new = {key.split(".")[0] for key in own if key not in state}
    assert new == set(encoder.without_weights)


def test_resnet_is_torchvisions_up_to_the_first_stage_that_changed():
    with torch.device("meta"):
        reference = torchvision.models.resnet50().eval()
    encoder = create_encoder("resnet50").eval()
    reference.load_state_dict(encoder.state_dict(), strict=False, assign=True)
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        stem = reference.maxpool(reference.relu(reference.bn1(reference.conv1(images))))
        expected = reference.layer2(reference.layer1(stem))
        features = encoder(images)
    assert torch.equal(features[2], expected)
    assert features[3].shape[2:] == features[4].shape[2:] == (8, 8)


def test_vgg_is_torchvisions_up_to_the_first_pool_that_went():
    with torch.device("meta"):
        reference = torchvision.models.vgg16().features[:23]
    encoder = create_encoder("vgg16").eval()
    reference.load_state_dict(encoder.features[:23].state_dict(), assign=True)
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(encoder.features[:23](images), reference(images))


def test_one_channel_sees_grey_as_three_channels_see_it_repeated(monkeypatch):
    state = constants("vgg16")
    state["features.0.weight"] = torch.rand(64, 3, 3, 3)
    monkeypatch.setattr(encoders, "_imagenet_state", lambda weights: state)
    colour = create_encoder("vgg16", pretrained=True)
    grey = create_encoder("vgg16", in_chans=1, pretrained=True)
    image = torch.rand(1, 1, 16, 16)
    with torch.inference_mode():
        first, second = colour(image.expand(-1, 3, -1, -1))[0], grey(image)[0]
    assert torch.allclose(first, second, rtol=1e-4)


def test_weights_that_cannot_be_downloaded_give_one_line(monkeypatch):
    def offline(*_args, **_kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    monkeypatch.setattr("timm.create_model", offline)
    for name in ("vgg16", "timm/resnet10t"):
        message = r"^wsfast\.create_encoder: pretrained must be downloadable .*not known"
        with torch.device("meta"), pytest.raises(ValueError, match=message):
            create_encoder(name, pretrained=True)


@pytest.mark.parametrize("saved_as", ["torch.save", "checkpoint", "wrapped"])
def test_a_classifiers_file_starts_its_encoder(tmp_path, saved_as):
    classifier = WSOLClassifier("timm/resnet10t", 7)
    file = tmp_path / "w.safetensors"
    if saved_as == "checkpoint":
        save_checkpoint(
            classifier, file, class_names=list("abcdefg"), mean=[0] * 3, std=[1] * 3,
            input_size=(64, 64),
        )  # fmt: skip
    else:
        prefix = "_orig_mod.module." if saved_as == "wrapped" else ""
        state = {f"{prefix}{name}": x for name, x in classifier.state_dict().items()}
        file = tmp_path / "w.pt"
        torch.save({"state_dict": state}, file)
    encoder = create_encoder("timm/resnet10t", checkpoint=file)
    pairs = zip(encoder.parameters(), classifier.encoder.parameters(), strict=True)
    assert all(torch.equal(first, second) for first, second in pairs)


def test_timms_own_file_starts_an_encoder(tmp_path):
    network = timm.create_model("resnet10t", num_classes=5)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    encoder = create_encoder("timm/resnet10t", checkpoint=tmp_path / "w.safetensors")
    assert torch.equal(encoder.body.layer1[0].conv1.weight, network.layer1[0].conv1.weight)


def test_a_file_of_another_network_is_refused_by_what_differs(tmp_path):
    torch.save(SmallVGG(channels=(4, 8)).state_dict(), tmp_path / "w.pt")
    with pytest.raises(
        ValueError, match=r"of small_vgg, got .*w\.pt \(missing: stages\.2.*shape: stages\.0\.0"
    ):
        create_encoder("small_vgg", in_chans=1, checkpoint=tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"of timm/resnet10t, got .*missing: body\.conv1"):
        create_encoder("timm/resnet10t", checkpoint=tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet49"}, r"name must be a timm model, got 'resnet49' \(try: "),
        ({"name": "timm/resnet18", "colour": 1}, "name must be a timm model with features"),
        ({"name": "vgg16", "output_stride": 8}, "options must be none for vgg16, got output_str"),
        ({"name": "vgg16", "in_chans": 0}, "in_chans must be at least 1, got 0"),
        ({"name": "small_vgg", "pretrained": True}, "pretrained must be False for small_vgg"),
    ],
)
def test_bad_settings_give_one_clear_line(arguments, message):
    with pytest.raises(ValueError, match=rf"^wsfast\.create_encoder: {message}"):
        create_encoder(**arguments)


TIMM = [
    ("resnet10t", {"output_stride": 8}),  # layers by their names
    ("test_vit", {"img_size": 64}),  # feature maps that no module gives
    ("test_vit", {"img_size": 64, "out_indices": (-1,)}),
    ("test_convnext", {}),
    ("mobilenetv3_small_050", {}),
]


@pytest.mark.parametrize(("name", "options"), TIMM)
def test_timm_models_give_what_they_say(name, options):
    encoder = TimmEncoder(name, in_chans=1, **options).eval()
    with torch.inference_mode():
        features = encoder(torch.randn(2, 1, 64, 64))
    assert len(features) == len(encoder.feature_info)
    for x, entry in zip(features, encoder.feature_info, strict=True):
        side = 64 // entry["reduction"]
        assert x.shape == (2, entry["num_chs"], side, side)


def test_channels_last_transformers_give_channels_first():
    with torch.device("meta"):
        encoder = TimmEncoder("swin_tiny_patch4_window7_224")
        features = encoder(torch.zeros(1, 3, 224, 224))
    assert [tuple(x.shape[1:]) for x in features] == [
        (96, 56, 56), (192, 28, 28), (384, 14, 14), (768, 7, 7),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "encoder", [*SHAPES, "small_vgg", "timm/resnet10t", "timm/test_vit", "timm/vgg11"]
)
def test_cam_and_gradcam_agree_on_the_last_layer_of_every_encoder(encoder):
    """With a linear layer on the mean, Grad-CAM's weights are CAM's over the number of pixels."""
    options = {"img_size": 64} if "vit" in encoder else {}
    model = WSOLClassifier(encoder, 3, **options).eval()
    images = torch.randn(2, 3, *(64, 64) if "timm" in encoder else (32, 24))
    with torch.no_grad():
        features = model.forward_features(images)
        assert torch.allclose(model.logits_of(features), model(images))
    area = features[-1].shape[2] * features[-1].shape[3]
    cam, grad_cam = (method(model, "last")(images, 1).per_layer[0] for method in (CAM, GradCAM))
    closed = torch.einsum("k,nkhw->nhw", model.cam_weights[1].detach(), features[-1]).relu()
    tolerance = 1e-4 * float(closed.max())
    assert torch.allclose(cam, closed, atol=tolerance)
    assert torch.allclose(cam, grad_cam * area, atol=tolerance)


def test_a_classifier_names_its_new_layers_for_a_higher_learning_rate():
    with torch.device("meta"):
        for name, layers in (
            ("vgg16", ("conv6",)),
            ("resnet50", ("layer4",)),
            ("inception_v3", ("SPG_A3_1b", "SPG_A3_2b")),
        ):
            model = WSOLClassifier(name, 2)
            fast = {id(parameter) for parameter in model.fast_parameters()}
            named = [key for key, value in model.named_parameters() if id(value) in fast]
            expected = [f"encoder.{layer}." for layer in layers] + ["fc."]
            assert named
            assert all(key.startswith(tuple(expected)) for key in named)
            assert all(any(key.startswith(start) for key in named) for start in expected)
        assert SmallVGG().fast_parameters() == []


@pytest.mark.parametrize(
    "classifier",
    [SmallVGG(channels=(4, 8)), WSOLClassifier("small_vgg", 2, channels=(4, 8))],
    ids=["SmallVGG", "WSOLClassifier"],
)
def test_a_copied_encoder_shares_values_but_not_memory(classifier):
    encoder = classifier.eval().copy_encoder().eval()
    images = torch.rand(1, classifier.in_chans, 16, 16)
    assert torch.equal(encoder(images)[-1], classifier.forward_features(images)[-1])
    own = {parameter.data_ptr() for parameter in classifier.parameters()}
    assert not own & {parameter.data_ptr() for parameter in encoder.parameters()}
    FCAMModel(classifier)  # freezes the classifier, not its copies
    for copied in (encoder, classifier.copy_encoder()):
        assert all(parameter.requires_grad for parameter in copied.parameters())
