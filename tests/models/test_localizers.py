import pytest
import torch
from torch import nn
from torch.nn import functional as F

from wsfast.models import DeepLabV3, FCAMModel, SmallVGG, UNetDecoder, UNetLocalizer, WSOLClassifier


def small_fcam():
    return FCAMModel(SmallVGG(channels=(4, 6, 8)))


def test_the_classifier_is_left_as_it_was_by_training():
    model = small_fcam().train()
    before = {name: tensor.clone() for name, tensor in model.classifier.state_dict().items()}
    images = torch.rand(4, 1, 16, 16)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.1)
    for _ in range(2):
        F.cross_entropy(model(images).map_logits, torch.ones(4, 16, 16).long()).backward()
        optimizer.step()
    assert all(torch.equal(before[n], x) for n, x in model.classifier.state_dict().items())
    assert all(parameter.grad is None for parameter in model.classifier.parameters())
    assert all(parameter.grad is not None for parameter in model.decoder.parameters())
    assert {id(x) for x in trainable} == {id(x) for x in model.decoder.parameters()}


def test_batch_norm_and_dropout_of_the_classifier_stay_in_eval_mode():
    classifier = WSOLClassifier("small_vgg", 2, channels=(4, 8))
    classifier.encoder.stages.append(nn.Dropout(0.5))
    classifier.encoder.feature_info.append({"num_chs": 8, "reduction": 2})
    model = FCAMModel(classifier, UNetDecoder((4, 8, 8), (1, 2, 2), widths=(4,)))
    for mode in (True, False, True):
        assert model.train(mode) is model
        assert not any(module.training for module in model.classifier.modules())
        assert all(module.training is mode for module in model.decoder.modules())
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(model(images).logits, model(images).logits)


def test_one_pass_through_the_encoder_serves_both_outputs():
    model = small_fcam().eval()
    calls = []
    model.classifier.stages[0].register_forward_hook(lambda *_: calls.append(1))
    images = torch.rand(2, 1, 24, 16)
    output = model(images)
    assert len(calls) == 1
    assert torch.equal(output.logits, model.classifier(images))
    features = model.forward_features(images)
    assert torch.equal(output.map_logits, model.decoder(features, (24, 16)))


def test_no_gradient_goes_back_to_the_image():
    model = small_fcam().eval()
    images = torch.rand(1, 1, 16, 16, requires_grad=True)
    output = model(images)
    assert not output.logits.requires_grad
    assert torch.autograd.grad(output.map_logits.sum(), images, allow_unused=True)[0] is None


def test_a_classifier_without_the_interface_is_refused():
    with pytest.raises(TypeError, match=r"^wsfast\.FCAMModel: classifier must be a SmallVGG or"):
        FCAMModel(nn.Linear(2, 2))


@pytest.mark.parametrize("make", [lambda e, **o: WSOLClassifier(e, 2, **o), UNetLocalizer])
def test_options_of_an_encoder_are_for_its_name_only(make):
    encoder = SmallVGG(channels=(4, 8)).copy_encoder()
    assert make(encoder).encoder is encoder
    with pytest.raises(ValueError, match=r"options must be none beside a built encoder, got in_c"):
        make(encoder, in_chans=3)


@pytest.mark.parametrize(
    "model",
    [
        UNetLocalizer("small_vgg", {"input_skip": True}, channels=(4, 6, 8)),
        UNetLocalizer("timm/resnet10t"),
        UNetLocalizer("timm/test_convnext"),
    ],
    ids=["small_vgg", "resnet10t", "convnext"],
)
def test_every_parameter_of_a_localizer_is_trained(model):
    """Else DistributedDataParallel would wait for a gradient that never comes."""
    maps = model.train()(torch.rand(2, 3, 64, 64))
    assert maps.shape == (2, 2, 64, 64)
    maps.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_small_unet_learns_a_mask_it_can_see():
    decoder = {"input_skip": True, "widths": (8,)}
    model = UNetLocalizer("small_vgg", decoder, in_chans=1, channels=(4, 8))
    images = torch.rand(4, 1, 16, 16)
    masks = (images[:, 0] > 0.5).long()
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(25):
        loss = F.cross_entropy(model(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model(images).argmax(1) == masks).float().mean() > 0.9


@pytest.mark.parametrize("backbone", ["resnet50", "resnet101", "mobilenet_v3_large"])
@pytest.mark.parametrize("in_chans", [1, 3])
def test_deeplab_gives_logits_of_the_images_size(backbone, in_chans):
    with torch.device("meta"):
        model = DeepLabV3(3, backbone=backbone, in_chans=in_chans)
        assert model(torch.zeros(2, in_chans, 65, 96)).shape == (2, 3, 65, 96)


def test_every_parameter_of_deeplab_is_trained():
    model = DeepLabV3(backbone="mobilenet_v3_large")
    model(torch.rand(2, 3, 32, 32)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "vgg16"}, "backbone must be one of resnet50, "),
        ({"in_chans": 2}, "in_chans must be 1 or 3, got 2"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
    ],
)
def test_bad_settings_of_deeplab_give_one_clear_line(settings, message):
    with pytest.raises(ValueError, match=rf"^wsfast\.DeepLabV3: {message}"):
        DeepLabV3(**settings)


def test_a_backbone_that_cannot_be_downloaded_gives_one_line(monkeypatch):
    def offline(*_args, **_kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(ValueError, match=r"DeepLabV3: pretrained must be downloadable"):
        DeepLabV3(pretrained=True)
