"""A task of an array: it finds its part by what Slurm or Kubernetes tell it, and asks nobody."""

from collections.abc import Mapping, Sequence

from crossguard_jax.core.errors import UserError
from crossguard_jax.runtime.shards import Shard

KUBERNETES = ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS")


def part_of(environ: Mapping[str, str], shards: Sequence[Shard]) -> list[Shard]:
    """The shards of this task: every so many-th, so that all parts are about alike.

    Args:
        environ: with Slurm's ``SLURM_ARRAY_TASK_ID``, ``_MIN``, ``_STEP`` and ``_COUNT``, or the
            ``JOB_COMPLETION_INDEX`` of a Kubernetes Indexed Job and our ``JOB_COMPLETIONS``, which
            Kubernetes keeps to itself.
        shards: all of them.

    Raises:
        UserError: it is no such task.
    """
    if "SLURM_ARRAY_TASK_ID" in environ:
        first = _number(environ, "SLURM_ARRAY_TASK_MIN", 0)
        step = _number(environ, "SLURM_ARRAY_TASK_STEP", 1)
        index = (_number(environ, "SLURM_ARRAY_TASK_ID") - first) // max(1, step)
        count = _number(environ, "SLURM_ARRAY_TASK_COUNT")
    elif KUBERNETES[0] in environ:
        index, count = (_number(environ, name) for name in KUBERNETES)
    else:
        raise UserError(
            "--on array: this is no task of an array (neither SLURM_ARRAY_TASK_ID nor "
            f"{KUBERNETES[0]} is set); leave --on out, or start it with launch/run.sh --on slurm|"
            "k8s --array N"
        )
    if not 0 <= index < count:
        raise UserError(f"--on array: task {index} of {count}: there is none such")
    return list(shards[index::count])


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name, "" if default is None else str(default))
    if not text.isdigit():
        raise UserError(f"--on array: {name}={text}: needs a whole number")
    return int(text)
