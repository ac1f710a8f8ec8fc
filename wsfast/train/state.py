"""All that a run needs to go on as if it had never stopped, in one file."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from wsfast._check import value_error
from wsfast._files import atomic_file, write_atomically
from wsfast.train import distributed
from wsfast.train.config import CONFIG, changes_on_resume
from wsfast.train.log import read_log
from wsfast.train.recipe import Recipe

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

STATE = "last.pt"
_LEARNT = "learnt.txt"
_LOCK = ".lock"
_FORMAT = 1


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write the state, whole and on the disk before this returns; until then the old one stays.

    Raises:
        OSError: the disk refuses the file; the old one is untouched.
    """
    with atomic_file(folder / STATE, durable=True) as file:
        try:
            torch.save({"format": _FORMAT, **state}, file)
        except RuntimeError as error:  # while it closes what could not be written
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def has_state(folder: Path) -> bool:
    """Whether a run has saved itself in a folder."""
    return (folder / STATE).is_file()


@contextmanager
def only_run_in(folder: Path, where: str = "train") -> Iterator[None]:
    """Keep other runs out of a folder inside the block; a collective call.

    ``where`` is the command that messages name.

    A process that dies in whatever way gives the folder free. Where the system or the drive knows
    no locks, nothing is kept out.

    Raises:
        ValueError: in all processes, where another run is in the folder.
    """
    path, lock, taken = folder / _LOCK, None, False
    if distributed.is_writer():
        try:
            lock = _locked(path)
        except BlockingIOError:
            taken = True
    if any(distributed.gather_objects(taken)):
        value_error(where, "--out", "a folder that no other run is writing to", f"{folder}")
    try:
        yield
    finally:
        if lock is not None:
            path.unlink(missing_ok=True)
            os.close(lock)


def _locked(path: Path) -> int | None:
    """An open file that is locked as long as this process lives; None where that cannot be.

    Raises:
        BlockingIOError: another process has locked it.
    """
    if fcntl is None:
        return None
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError:
            return None
        try:
            # Unlike flock's, this lock is not shared with readers that outlive a killed run.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise BlockingIOError from None
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), path.stat()):
                return file
        os.close(file)  # the run that had it has deleted it since it was opened


def save_learnt(folder: Path, recipe: Recipe) -> None:
    """Write which images a run's model or its classifier learns from, a line each.

    Which images are held out may change with the data; this says which ones still can be.
    """
    images = dict.fromkeys([*recipe.identities, *sorted(recipe.learnt_before)])
    write_atomically(folder / _LEARNT, "\n".join(images).encode(errors="surrogateescape"))


def read_learnt(folder: Path) -> set[str]:
    """The images that :func:`save_learnt` wrote; none where a run is older than it."""
    path = folder / _LEARNT
    if not path.is_file():
        return set()
    return set(path.read_bytes().decode(errors="surrogateescape").split("\n"))


def check_out(folder: Path, *, resume: bool) -> None:
    """Raise ValueError where a run, or the models of one, would be overwritten."""
    if has_state(folder):
        if not resume:
            expected = "a new folder, or --resume to continue the run in it"
            value_error("train", "--out", expected, f"{folder}")
        return
    if not any((folder / f"{name}.safetensors").is_file() for name in ("best", "last")):
        return
    if len(read_log(folder)) > 1 or not (folder / CONFIG).is_file():
        expected = f"a new folder (a run without its {STATE} cannot be continued)"
        value_error("train", "--out", expected, f"{folder}, which has models")
    if not resume:  # a run that is killed in its first epoch may have written a model and no state
        expected = "a new folder, or --resume to begin the run in it anew"
        value_error("train", "--out", expected, f"{folder}, which has models and no {STATE}")


def load_state(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Read the state of a run and see that it is of this run.

    Raises:
        ValueError: an unreadable file, another recipe, changed settings, changed data or a changed
            classifier; the message says which.
    """
    fingerprint, digest = recipe.fingerprint(), recipe.classifier_digest
    path = folder / STATE
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        known = state["format"] == _FORMAT
    except Exception as error:  # a damaged file can fail anywhere inside the unpickler
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        value_error("train", "--resume", "of a readable last.pt", f"{path} ({reason})")
    if not known:
        value_error("train", "--resume", f"of format {_FORMAT}", f"{path}, of another")
    if state["recipe"] != recipe.name:
        found = f"{path}, of {state['recipe']}"
        value_error("train", "--resume", f"a run of {recipe.name}", found)
    changed = changes_on_resume(state["config"], recipe.config)
    if changed:
        value_error("train", "--resume", "given the run's own settings", "; ".join(changed))
    if state["fingerprint"] != fingerprint:
        value_error(
            "train",
            "--resume",
            f"given the run's own images ({state['fingerprint']})",
            fingerprint,
        )
    if state.get("classifier", digest) != digest:  # older states do not say
        expected = "given the classifier that the run was begun with"
        value_error("train", "--resume", expected, "one of other weights at its place")
    return dict(state)
