"""Any timm network as an encoder."""

import difflib
from typing import Any

import timm
from torch import Tensor, nn

from wsfast._check import value_error
from wsfast.models.interface import Encoder, FeatureInfo


class TimmEncoder(Encoder):
    """A timm network by ``features_only=True``.

    Args:
        name: a timm model name.
        in_chans: image channels.
        pretrained: load timm's weights of that name (downloaded on first use).
        **options: of ``timm.create_model``, e.g. ``output_stride=8`` for finer maps, ``img_size``
            or ``out_indices``.

    Raises:
        ValueError: an unknown name, a model without feature maps, weights that cannot be had.

    Note:
        Where timm's feature maps are not a module's output (transformers), ``feature_info`` names
        a module for the last one only; CAM methods then have one stage.

    Example:
        >>> import torch
        >>> encoder = TimmEncoder("resnet10t", output_stride=8)
        >>> [tuple(x.shape[1:]) for x in encoder(torch.zeros(1, 3, 32, 32))][-2:]
        [(256, 4, 4), (512, 4, 4)]
    """

    def __init__(
        self, name: str, in_chans: int = 3, *, pretrained: bool = False, **options: Any
    ) -> None:
        body = _create(name, in_chans, pretrained, options)
        names = _module_names(body)
        shapes = zip(body.feature_info.channels(), body.feature_info.reduction(), strict=True)
        info: FeatureInfo = [{"num_chs": width, "reduction": step} for width, step in shapes]
        for entry, module in zip(info, names, strict=False):
            entry["module"] = f"body.{module}"
        info[-1]["module"] = "last"  # not timm's own: VGG ends in a pool, which is no CAM layer
        config = {"name": f"timm/{name}", "in_chans": in_chans, **options}
        super().__init__(in_chans, info, config)
        self.body = body
        self.last = nn.Identity()
        self._channels_last = _is_channels_last(body)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Turn images into timm's feature maps, fine to coarse."""
        found = list(self.body(images))
        if self._channels_last:
            found = [features.permute(0, 3, 1, 2).contiguous() for features in found]
        return [*found[:-1], self.last(found[-1])]


def _create(name: str, in_chans: int, pretrained: bool, options: dict[str, Any]) -> Any:
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models())
        hint = f" (try: {', '.join(close)})" if close else ""
        value_error("create_encoder", "name", "a timm model", f"'{name}'{hint}")
    try:
        return timm.create_model(
            name, pretrained=pretrained, in_chans=in_chans, features_only=True, **options
        )
    except OSError as error:  # no network, no space, a proxy in between
        value_error("create_encoder", "pretrained", f"downloadable ({name})", f"{error}")
    except (RuntimeError, TypeError, AttributeError, AssertionError) as error:
        # timm's words for no such weights, no such option, no feature maps
        reason = str(error).split("\n")[0] or type(error).__name__
        value_error(
            "create_encoder", "name", "a timm model with features_only", f"{name}: {reason}"
        )


def _is_channels_last(body: Any) -> bool:
    return getattr(getattr(body, "output_fmt", None), "value", "NCHW") == "NHWC"


def _module_names(body: Any) -> list[str]:
    """Of the modules whose outputs the feature maps are; empty where there are none."""
    if _is_channels_last(body):
        return []
    names = list(getattr(body, "return_layers", None) or body.feature_info.module_name())
    known = dict(body.named_modules())
    return names if all(name in known for name in names) else []
