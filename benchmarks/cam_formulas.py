"""CAM methods as plain PyTorch formulas, in any precision: references and oracles of the cases."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from wsfast.ops.fusion import reference as fusion
from wsfast.ops.truncation import reference as truncation

PERCENTILE = 50.0
Layers = tuple[list[Tensor], list[Tensor]]
Share = Callable[[Tensor], Tensor]
BIASED = (nn.BatchNorm2d, nn.Conv2d)  # FullGrad's layers, where they have a bias


def truncated(grads: Tensor) -> Tensor:
    return truncation.truncate_gradients(grads, PERCENTILE)


def plus_plus(a: Tensor, g: Tensor) -> Tensor:
    """Grad-CAM++ weights with pytorch-grad-cam's epsilon."""
    alpha = g**2 / (2 * g**2 + a.sum((2, 3), keepdim=True) * g**3 + 1e-6)
    return (alpha * g.relu()).sum((2, 3), keepdim=True) * a


def axiomatic(a: Tensor, g: Tensor) -> Tensor:
    return (g * a).sum((2, 3), keepdim=True) / (a.sum((2, 3), keepdim=True) + 1e-7) * a


# Weighted activations of a layer, before the sum over channels.
FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "GradCAM": lambda a, g: g.mean((2, 3), keepdim=True) * a,
    "GradCAMPlusPlus": plus_plus,
    "XGradCAM": axiomatic,
    "LayerCAM": lambda a, g: g.relu() * a,
    "HiResCAM": lambda a, g: g * a,
    "LTGradCAM": lambda a, g: truncated(g).mean((2, 3), keepdim=True) * a,
    "LTLayerCAM": lambda a, g: truncated(g) * a,
}


def by_formula(name: str, layers: Layers, size: torch.Size, dtype: torch.dtype) -> Tensor:
    """Fused maps of the layers' activations and gradients."""
    pairs = zip(*layers, strict=True)
    maps = [FORMULAS[name](a.to(dtype), g.to(dtype)).sum(1).relu() for a, g in pairs]
    return fusion.fuse_cams(maps, size)


def fullgrad(
    model: nn.Module, images: Tensor, dtype: torch.dtype, kept: Share = lambda grads: grads
) -> Tensor:
    """Every channel's share normalised and resized on its own; of biases' gradients, ``kept``."""
    outputs: list[tuple[Tensor, Tensor]] = []

    def keep(module: nn.Module, _: object, output: Tensor) -> None:
        outputs.append((bias_of(module).to(dtype), output))

    layers = (m for m in model.modules() if isinstance(m, BIASED))
    handles = [m.register_forward_hook(keep) for m in layers if m.bias is not None]
    x = images.clone().requires_grad_()
    score = model(x).amax(dim=1).sum()
    for handle in handles:
        handle.remove()
    first, *grads = torch.autograd.grad(score, [x, *(output for _, output in outputs)])
    shares = [first.to(dtype) * images.to(dtype)]
    for (bias, _), grad in zip(outputs, grads, strict=True):
        shares.append(kept(grad.to(dtype)) * bias.view(-1, 1, 1))
    total = torch.zeros(len(images), *images.shape[2:], dtype=dtype, device=images.device)
    for share in shares:
        maps = fusion.normalize_cams(share.abs().flatten(0, 1)).view_as(share)
        for part in maps.split(64, dim=1):  # VGG16's head has 4096 channels
            total += nn.functional.interpolate(part, images.shape[2:], mode="bilinear").sum(1)
    return fusion.normalize_cams(total)


def bias_of(module: nn.Module) -> Tensor:
    """What a layer adds to each channel."""
    if not isinstance(module, nn.BatchNorm2d):
        return module.bias.detach()
    scale = module.weight / (module.running_var + module.eps).sqrt()
    return (module.bias - scale * module.running_mean).detach()


@torch.no_grad()
def by_channels(
    name: str,
    model: nn.Module,
    images: Tensor,
    layer: str,
    dtype: torch.dtype,
    as_maps: Share = lambda output: output,
) -> Tensor:
    """Score-CAM or Ablation-CAM, the whole model for every channel, 16 of them at a time."""
    model, images = model.to(dtype), images.to(dtype)
    found: list[Tensor] = []
    module = model.get_submodule(layer)
    handle = module.register_forward_hook(lambda _m, _i, out: found.append(out))
    logits = model(images)
    handle.remove()
    best, (output,) = logits.argmax(dim=1), found
    activations = as_maps(output)
    scores = []
    for part in torch.arange(activations.shape[1]).split(16):
        versions = images.repeat_interleave(len(part), 0)
        if name == "ScoreCAM":
            masks = nn.functional.interpolate(
                activations[:, part], images.shape[2:], mode="bilinear", align_corners=True
            )
            logit = model(versions * fusion.normalize_cams(masks.flatten(0, 1), eps=1e-8)[:, None])
        else:
            replacement = without(output, part)
            handle = module.register_forward_hook(lambda *_, version=replacement: version)
            logit = model(versions)
            handle.remove()
        scores.append(logit[:, best].unflatten(0, (len(images), -1)).diagonal(dim1=0, dim2=2).T)
    model.float()
    weights = torch.cat(scores, dim=1)
    if name == "ScoreCAM":
        weights = weights.softmax(dim=1)
    else:
        full = logits.gather(1, best[:, None])
        weights = (full - weights) / full
    raw = torch.einsum("nc,nchw->nhw", weights, activations).relu()
    return fusion.fuse_cams([raw], images.shape[2:])


def without(output: Tensor, channels: Tensor) -> Tensor:
    """A version of a layer's output (maps or tokens) for each channel, in which that is zero."""
    versions = output.repeat_interleave(len(channels), 0)
    by_channel = versions if versions.dim() == 4 else versions.mT
    by_channel[range(len(versions)), channels.repeat(len(output))] = 0.0
    return versions
