"""Orbax checkpoints of a run: the train state, the data's place, and what the run is.

The frozen base is not saved: the run's identity records its hash, and a run resumed on another
base, configuration or data is refused.
"""

import contextlib
import errno
import json
import logging
import os
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from crossguard_jax.core.errors import UserError
from crossguard_jax.runtime import processes, remote

# What goes wrong in Orbax's threads is raised too, and told as one line: not in pages before it.
logging.getLogger("absl").addFilter(
    lambda record: record.levelno < logging.WARNING or "orbax" not in record.pathname
)


def _named(tree: Any) -> dict[str, jax.Array]:
    """A flat dict of the tree's arrays: what is on disk does not depend on container classes."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _unnamed(like: Any, named: Mapping[str, jax.Array]) -> Any:
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(like)]
    return jax.tree.unflatten(jax.tree.structure(like), [named[path] for path in paths])


class Checkpoints:
    """Saves in the background; keeps the latest ``keep`` and, apart, the best.

    Args:
        folder: the run's; ``latest/`` and ``best/`` are made in it.
        identity: what must be the same for a run to go on (plain JSON values).
        keep: how many of the latest stay.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any], keep: int = 2):
        self.folder, self.identity = remote.checkpoints(folder), dict(identity)
        for name in remote.CHECKPOINTS:
            _drop_unfinished(self.folder / name)
        self._latest, self._best = (
            self._manager(name, n) for name, n in zip(remote.CHECKPOINTS, (keep, 1), strict=True)
        )

    def _manager(self, name: str, keep: int) -> ocp.CheckpointManager:
        # Two managers whose barriers have one name wait for each other.
        apart = ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=name)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, multiprocessing_options=apart
        )
        return ocp.CheckpointManager(self.folder / name, options=options)

    def save(self, step: int, state: Any, data: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """Saves after ``step``; returns once the arrays are copied, before they are on disk."""
        # The copy is for the CPU backend, where a host view of a donated buffer would be
        # overwritten by the next step while it is being written.
        arrays = jax.tree.map(jnp.copy, _named(state))
        with self._writing():
            self._latest.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(arrays),
                    data=ocp.args.JsonSave(dict(data)),
                    meta=ocp.args.JsonSave({"identity": self.identity, **meta}),
                ),
            )

    def save_best(self, step: int, trainable: Any) -> None:
        """Keeps ``trainable`` as the best so far, in place of the one before."""
        if step not in self._best.all_steps():
            arrays = jax.tree.map(jnp.copy, _named(trainable))
            with self._writing():
                self._best.save(step, args=ocp.args.StandardSave(arrays))

    def restore(self, like: Any) -> tuple[Any, dict[str, Any], dict[str, Any]] | None:
        """``(state, data, meta)`` of the latest whole checkpoint; None if there is none.

        Args:
            like: a state of the same shapes, whose shardings the arrays take.

        Raises:
            UserError: the checkpoint is of another run (the message names what differs), or is
                damaged (the message names the one before it).
        """
        step = self._latest.latest_step()
        if step is None:
            return None
        before = max((n for n in self._latest.all_steps() if n < step), default=None)
        way_on = "begin anew" if before is None else f"go on from step {before}"
        with _reading(self.folder / "latest" / str(step), way_on):
            host = ocp.args.Composite(meta=ocp.args.JsonRestore(), data=ocp.args.JsonRestore())
            saved = self._latest.restore(step, args=host)
            identity = saved["meta"]["identity"]
        if identity != self.identity:
            changes = "; ".join(_differences(identity, self.identity))
            raise UserError(
                f"{self.folder}: its checkpoint is of another run ({changes}); "
                "give another folder, or the old settings"
            )
        with _reading(self.folder / "latest" / str(step), way_on):
            abstract = ocp.args.StandardRestore(_abstract(_named(like)))
            arrays = self._latest.restore(step, args=ocp.args.Composite(state=abstract))["state"]
        return _unnamed(like, arrays), saved["data"], saved["meta"]

    def restore_best(self, like: Any) -> tuple[int, Any] | None:
        """``(step, trainable)`` of the best, on ``like``'s shardings; None if none was kept.

        Raises:
            UserError: it is damaged.
        """
        self.wait()
        step = self._best.latest_step()
        if step is None:
            return None
        with _reading(self.folder / "best" / str(step), "take the last step's instead"):
            abstract = ocp.args.StandardRestore(_abstract(_named(like)))
            return step, _unnamed(like, self._best.restore(step, args=abstract))

    def wait(self) -> None:
        """Returns when all that was saved is on disk."""
        for manager in (self._latest, self._best):
            with self._writing():
                manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then lets go of the folders."""
        for manager in (self._latest, self._best):
            with self._writing():
                manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """A save that failed, this one or the one before it in the background, as one line.

        Raises:
            UserError: with the last step that is whole.
        """
        try:
            yield
        except (UserError, MemoryError):
            raise
        except Exception as error:  # Orbax and TensorStore have no error in common
            steps = [n for n in _steps(self.folder / "latest") if _finished(n)]
            whole = f"step {steps[-1].name} is whole" if steps else "there is none before it"
            raise UserError(
                f"{self.folder}: a checkpoint could not be written ({_reason(error)}); {whole}. "
                "See to the disk, and start the run again"
            ) from error


_MARKER = "_CHECKPOINT_METADATA"
"""The file of a step in which Orbax writes, as the last thing, when it was committed."""


def _steps(folder: epath.Path) -> list[epath.Path]:
    """Folders of steps in ``latest/`` or ``best/``, the last step last."""
    named = [path for path in folder.glob("*") if path.name.isdigit() and path.is_dir()]
    return sorted(named, key=lambda path: int(path.name))


def _finished(step: epath.Path) -> bool:
    """Whether a step's folder was committed. Orbax goes by the folder's name alone, which a copy
    or a disk that was full may have left without all of its files."""
    try:
        return bool(json.loads((step / _MARKER).read_bytes())["commit_timestamp_nsecs"])
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _drop_unfinished(folder: epath.Path) -> None:
    """Removes what a run that was killed had not finished writing; the first process does."""
    if processes.is_first():
        for step in _steps(folder):
            if not _finished(step):
                print(f"{step} was never finished (no commit marker), so it does not count")
                step.rmtree()
        for scratch in folder.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
            scratch.rmtree(missing_ok=True)
    processes.barrier(f"unfinished checkpoints of {folder.name}")


@contextlib.contextmanager
def _reading(checkpoint: epath.Path, way_on: str) -> Iterator[None]:
    """Whatever is wrong with a checkpoint's files as one line, with what comes of removing it."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError):  # the machine's fault, not the files'
        raise
    except Exception as error:  # Orbax, TensorStore and JSON have no error in common
        raise UserError(
            f"{checkpoint} is damaged ({_reason(error)}); remove it to {way_on}"
        ) from error


def _reason(error: Exception) -> str:
    if "No space left" in str(error):  # deep in what TensorStore says
        return os.strerror(errno.ENOSPC)
    return textwrap.shorten(f"{type(error).__name__}: {error}", 120, placeholder=" ...")


def _differences(a: Any, b: Any, path: str = "") -> Iterator[str]:
    """The fields in which two JSON values differ, by their dotted paths."""
    if isinstance(a, dict) and isinstance(b, dict):
        for name in sorted(a | b):
            if a.get(name) != b.get(name):
                yield from _differences(a.get(name), b.get(name), f"{path}.{name}".lstrip("."))
    else:
        yield f"{path}: {a!r} -> {b!r}"


def _abstract(arrays: Mapping[str, jax.Array]) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        for name, x in arrays.items()
    }
