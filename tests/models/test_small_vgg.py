import pytest
import torch
from timm.models import FeatureInfo
from torch import nn

from wsfast.models import SmallVGG


@pytest.mark.parametrize(("in_chans", "num_classes"), [(1, 2), (3, 5)])
def test_logits_have_one_value_per_class(in_chans, num_classes):
    model = SmallVGG(in_chans, num_classes).eval()
    assert model(torch.rand(2, in_chans, 33, 21)).shape == (2, num_classes)


def test_feature_info_follows_timm_and_names_what_the_stages_give():
    model = SmallVGG(channels=(4, 6, 8)).eval()
    info = FeatureInfo(model.feature_info, out_indices=(0, 1, 2))
    assert info.channels() == [4, 6, 8]
    assert info.reduction() == [1, 2, 4]
    shapes = []
    for name in info.module_name():
        stage = model.get_submodule(name)
        stage.register_forward_hook(lambda _m, _i, output: shapes.append(tuple(output.shape)))
    model(torch.rand(1, 1, 32, 16))
    assert shapes == [(1, 4, 32, 16), (1, 6, 16, 8), (1, 8, 8, 4)]


def test_stages_end_in_a_relu_that_keeps_its_input():
    model = SmallVGG()
    assert all(isinstance(stage[-1], nn.ReLU) for stage in model.stages)
    assert not any(module.inplace for module in model.modules() if isinstance(module, nn.ReLU))


def test_the_head_is_global_average_pooling_and_a_linear_layer():
    """The closed forms of CAM rest on this."""
    model = SmallVGG().eval()
    images = torch.rand(2, 1, 32, 16)
    pooled = model.forward_features(images)[-1].mean((2, 3))
    assert torch.allclose(model(images), pooled @ model.fc.weight.T + model.fc.bias, atol=1e-6)


@pytest.mark.parametrize(
    "settings", [{"in_chans": 0}, {"num_classes": 0}, {"channels": ()}, {"channels": (4, 0)}]
)
def test_counts_must_be_positive(settings):
    with pytest.raises(ValueError, match=rf"^wsfast\.SmallVGG: {next(iter(settings))} must be"):
        SmallVGG(**settings)
