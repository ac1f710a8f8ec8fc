"""Networks and plain formulas that the tests of CAM methods share."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SmallNet(nn.Module):
    """Three stages; `inplace` as torchvision's VGG has it."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace)
        self.conv2, self.relu2 = nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(inplace)
        self.conv3, self.relu3 = nn.Conv2d(8, 10, 3, padding=1), nn.ReLU(inplace)
        self.head = nn.Linear(10 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.relu1(self.conv1(x)), 2)
        x = F.max_pool2d(self.relu2(self.conv2(x)), 2)
        x = self.relu3(self.conv3(x))
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))


class GapNet(nn.Module):
    """Convolutions with batch normalisation and a shortcut, global average pooling, one linear."""

    def __init__(self, act: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.conv1, self.norm1, self.act1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), act()
        self.conv2, self.norm2, self.act2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), act()
        self.conv3, self.act3 = nn.Conv2d(6, 8, 3, stride=2, padding=1), act()
        self.head = nn.Linear(8, 4)
        for norm in (self.norm1, self.norm2):
            nn.init.normal_(norm.bias, std=0.5)
            nn.init.normal_(norm.running_mean, std=0.5)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.norm1(self.conv1(x)))
        x = x + self.act2(self.norm2(self.conv2(x)))
        return self.head(self.act3(self.conv3(x)).mean((2, 3)))


class Branches(nn.Module):
    """Two parallel branches and a module that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 5, padding=1)
        self.act = nn.ReLU()
        self.unused = nn.Conv2d(3, 4, 1)
        self.side = nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.side(x)
        x = self.act(self.left(x)) + self.act(self.right(x))
        return {"logits": self.head(x.mean((2, 3)))}


def out_of_place(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return model


def minmax(x: Tensor) -> Tensor:
    x = x - x.amin((1, 2), keepdim=True)
    return x / (x.amax((1, 2), keepdim=True) + 1e-7)


def fuse(layers: list[Tensor], size: torch.Size) -> Tensor:
    """pytorch-grad-cam's fusion of (N, h, w) maps."""
    resized = [
        F.interpolate(minmax(layer)[:, None], size, mode="bilinear")[:, 0] for layer in layers
    ]
    return minmax(torch.stack(resized).mean(0))


def passes(model: nn.Module, images: Tensor, layers: list[str], target: int | None = None) -> tuple:
    """Activations and gradients of the layers, by plain hooks and autograd."""
    kept: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    handles = [
        modules[name].register_forward_hook(lambda _m, _i, out, n=name: kept.__setitem__(n, out))
        for name in layers
    ]
    logits = model(images.clone().requires_grad_())
    for handle in handles:
        handle.remove()
    score = (logits.amax(1) if target is None else logits[:, target]).sum()
    activations = [kept[name] for name in layers]
    grads = torch.autograd.grad(score, activations)
    return [a.detach() for a in activations], list(grads), logits.detach()
