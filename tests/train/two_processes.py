"""Trains in two processes over gloo, as torchrun would start them, but importing torch once."""

import json
import os
import socket
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from tests.train.tiny import train_tiny
from wsfast.train.distributed import process_group
from wsfast.train.runs import configure, run


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def work(rank: int, port: int, out: str, settings: str) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    with process_group(torch.device("cpu")):
        history = train_tiny(f"{out}/classifier", dropout=False)
        config = configure("fcam", json.loads(settings))
        history += run(config, Path(out) / "fcam", progress=False)
        histories = [None, None]
        dist.all_gather_object(histories, [record["loss"] for record in history])
        assert histories[0] == histories[1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    port = free_port()
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            work(rank, port, sys.argv[1], sys.argv[2])
            sys.stdout.flush()
            os._exit(0)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    sys.exit(int(any(statuses)))
