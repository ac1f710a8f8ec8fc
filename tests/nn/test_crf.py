"""The loss as a module, and what it is for: segmentation from a few labelled pixels."""

import torch
from torch.nn import functional as F

import wsfast
from wsfast.nn import DenseCRFLoss


def test_module(device: torch.device) -> None:
    module = DenseCRFLoss(0.5, sigma_xy=20.0, form="paper", normalize="pixels")
    image, prob = torch.rand(2, 3, 9, 9) * 255, torch.rand(2, 2, 9, 9).softmax(dim=1)
    roi = torch.rand(2, 9, 9) > 0.5
    image, prob, roi = image.to(device), prob.to(device), roi.to(device)
    wanted = wsfast.dense_crf_loss(
        image, prob, sigma_xy=20.0, form="paper", normalize="pixels", roi=roi
    )
    torch.testing.assert_close(module(image, prob, roi), 0.5 * wanted)
    assert "weight=0.5" in repr(module)
    assert not module.state_dict()


def scenes(count: int, side: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Discs on a background, each of its own colours; one labelled pixel per class, else -1."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    images, truths, seeds = [], [], []
    for _ in range(count):
        centre = torch.rand(2) * side * 0.4 + side * 0.3
        radius = side * (0.15 + 0.15 * torch.rand(()))
        truth = ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2).long()
        colours = torch.stack([torch.rand(3) * 90 + 20, torch.rand(3) * 90 + 80])
        image = colours[truth].permute(2, 0, 1) + torch.randn(3, side, side) * 15
        label = torch.full((side, side), -1)
        for kind in (0, 1):
            where = (truth == kind).nonzero()
            row, column = where[int(torch.randint(len(where), ()))]
            label[row, column] = kind
        images.append(image.clamp(0, 255))
        truths.append(truth)
        seeds.append(label)
    return torch.stack(images), torch.stack(truths), torch.stack(seeds)


def train(weight: float, seed: int) -> float:
    """Mean IoU on new scenes after training on the partial labels and ``weight`` times the loss."""
    torch.manual_seed(seed)
    images, _, seeds = scenes(8, 40)
    new_images, truth, _ = scenes(32, 40)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 5, padding=2), torch.nn.ReLU(),
        torch.nn.Conv2d(16, 16, 5, padding=2), torch.nn.ReLU(),
        torch.nn.Conv2d(16, 2, 1),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    regularize = DenseCRFLoss(weight, sigma_rgb=30.0, sigma_xy=20.0, normalize="affinity")
    for _ in range(80):
        logits = net(images / 128 - 1)
        loss = F.cross_entropy(logits, seeds, ignore_index=-1)
        if weight:
            loss = loss + regularize(images, logits.softmax(dim=1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = net(new_images / 128 - 1).argmax(dim=1)
    both = ((found == 1) & (truth == 1)).sum(dim=(1, 2))
    either = ((found == 1) | (truth == 1)).sum(dim=(1, 2))  # a disc is never empty
    return float((both / either).mean())


def test_segments_better_with_the_loss() -> None:
    gains = [train(1.0, seed) - train(0.0, seed) for seed in range(3)]
    assert min(gains) > 0
    assert sum(gains) / 3 > 0.04
