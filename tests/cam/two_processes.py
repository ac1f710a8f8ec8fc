"""Losses on CAMs in two processes over gloo, which import torch once."""

import os
import sys

import torch
import torch._dynamo
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from tests.cam.nets import GapNet
from wsfast.cam import GradCAM, LayerCAM

TARGET = torch.tensor([0, 1, 2, 3])


def model_and_images() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return GapNet(nn.Softplus).eval(), torch.randn(4, 3, 12, 12)


def gradients(model: nn.Module, images: Tensor, target: Tensor) -> list[Tensor]:
    """Of a loss on logits and maps, for every parameter."""
    model.zero_grad()
    result = LayerCAM(model, ["act2", "act3"])(images, target, create_graph=True)
    (F.cross_entropy(result.logits, target) + result.cams.mean()).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def refuses(model: nn.Module, images: Tensor) -> bool:
    try:
        GradCAM(model, "act3")(images, create_graph=True)
    except ValueError as error:
        return "without static_graph" in str(error)
    return False


def work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/met", rank=rank, world_size=2)
    model, images = model_and_images()
    wrapped = nn.parallel.DistributedDataParallel
    share = slice(2 * rank, 2 * rank + 2)
    found = {}
    for name, parallel in {
        "plain": wrapped(model),
        "unused": wrapped(model, find_unused_parameters=True),
        "compiled": torch.compile(wrapped(model), backend="eager"),
        "of compiled": wrapped(torch.compile(model, backend="eager")),
    }.items():
        for _ in range(2):
            if rank == 0:  # no other rank takes part
                GradCAM(parallel, "act3")(images)
            found[name] = gradients(parallel, images[share], TARGET[share])
    assert refuses(wrapped(model, static_graph=True), images)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            work(rank, sys.argv[1])
            os._exit(0)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    sys.exit(int(any(statuses)))
