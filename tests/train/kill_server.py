"""Forks a training run, kills it after a while, again and again, and lets it end at last.

Run as a program, so that torch is imported once and no thread pool exists when it forks.
"""

import os
import random
import signal
import sys
import time

import torch

from tests.train.tiny import train_tiny


def attempt(out: str, after: float | None) -> int:
    """One process of the run, killed after some seconds; its exit status."""
    child = os.fork()
    if child == 0:
        try:
            train_tiny(out, resume=True, **SETTINGS)
        except BaseException as error:  # whatever it was, the parent must see that it failed
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    whole, out, kills, epochs = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    SETTINGS = {"epochs": epochs}
    start = time.perf_counter()
    assert attempt(whole, None) == 0
    length = time.perf_counter() - start
    random.seed(kills)
    statuses = [attempt(out, random.uniform(0, 1.5 * length / kills)) for _ in range(kills)]
    killed = statuses.count(signal.SIGKILL)
    assert all(status in (0, signal.SIGKILL) for status in statuses), statuses
    assert attempt(out, None) == 0
    print(killed)
