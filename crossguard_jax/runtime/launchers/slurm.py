"""Slurm: one ``sbatch`` script, and one that every process of the job runs.

The repository lies on a file system that all nodes share. JAX finds the other processes from
Slurm's own variables, one process a GPU.
"""

import argparse
import re

from crossguard_jax.runtime.flags import natural, positive
from crossguard_jax.runtime.launchers.scripts import (
    AGAIN_PATTERN,
    FORGET_SLICES,
    Submission,
    add_array,
    add_shared_arguments,
    check_shards,
    command,
    exports,
    one_word,
    quote,
    script,
    setup,
    usage,
)

HELP = "sbatch on a Slurm cluster, from a login node"
EXAMPLE = "--nodes 2 --gpus-per-node 8 --time 12:00:00 train --config configs/guard.py:llava_7b"
NOTICE = 120
"""Seconds ahead of the time limit at which a job is told to save."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the launcher's options."""
    add_shared_arguments(parser, "default: .jax_cache in the repository")
    add_array(parser)
    parser.add_argument("--nodes", type=positive, default=1, help="default: 1")
    parser.add_argument("--gpus-per-node", type=natural, default=0, help="default: 0")
    parser.add_argument("--cpus-per-task", type=positive, metavar="N", help="of each process")
    parser.add_argument(
        "--time", type=one_word, metavar="LIMIT", help="as sbatch takes it: 12:00:00"
    )
    for option in ("partition", "account", "qos", "reservation"):
        parser.add_argument(f"--{option}", type=one_word, metavar="NAME")
    parser.add_argument(
        "--constraint", type=_features, metavar="FEATURES", help="as sbatch takes it: 'a100|h100'"
    )
    parser.add_argument(
        "--restarts", type=natural, default=20, help="requeue at most so often (default: 20)"
    )


def _features(text: str) -> str:
    """An argparse type: nodes' features, joined as sbatch joins them."""
    if not re.fullmatch(r"[\w.:,|&*!()\[\]-]+", text, re.ASCII):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not features of nodes, joined by & | , * ( ) [ ]"
        )
    return text


def submission(args: argparse.Namespace) -> Submission:
    """The job's files and the command that submits it."""
    if args.array and args.nodes > 1:
        usage(args, "--nodes goes without --array: each of its tasks has one")
    check_shards(args, args.nodes * _processes_per_node(args))
    args.accelerator = args.accelerator or ("cuda" if args.gpus_per_node else "cpu")
    args.cache = args.cache or str(args.repository / ".jax_cache")
    job, process = args.folder / "job.sbatch", args.folder / "process.sh"
    output = str(args.folder).replace("%", "%%") + ("/%A_%a.log" if args.array else "/%j.log")
    return Submission(
        files={job: _job(args, str(process)), process: _process(args)},
        commands=[["sbatch", f"--output={output}", str(job)]],
        notes=[f"its output: {args.folder}/JOB.log; stop it with scancel JOB"],
    )


def _directives(args: argparse.Namespace) -> list[str]:
    options = {
        "job-name": args.name,
        "nodes": args.nodes,
        "array": f"0-{args.array - 1}" if args.array else None,
        "ntasks-per-node": _processes_per_node(args),
        "gpus-per-node": args.gpus_per_node or None,
        "cpus-per-task": args.cpus_per_task,
        "time": args.time,
        "partition": args.partition,
        "account": args.account,
        "qos": args.qos,
        "constraint": args.constraint,
        "reservation": args.reservation,
        "open-mode": "append",
        # NCCL takes SIGUSR1 for itself.
        "signal": f"B:USR2@{NOTICE}",
    }
    given = [f"#SBATCH --{name}={value}" for name, value in options.items() if value is not None]
    return [*given, "#SBATCH --requeue"]


def _processes_per_node(args: argparse.Namespace) -> int:
    return 1 if args.array else max(1, args.gpus_per_node)


def _job(args: argparse.Namespace, process: str) -> str:
    run = args.repository / "launch/run.sh"
    return script(
        *_directives(args),
        "# Slurm runs this on the job's first node; made by launch/run.sh --on slurm.",
        "set -uo pipefail",
        f"folder={quote(args.folder)}",
        "restarts=${SLURM_RESTART_COUNT:-0}",
        'export CROSSGUARD_ENDED="$folder/ended-$SLURM_JOB_ID-$restarts"',
        *FORGET_SLICES,
        *exports(args, '"$SLURM_JOB_NUM_NODES"'),
        *setup(args),
        # srun does not take it over from sbatch.
        *([f"export SRUN_CPUS_PER_TASK={args.cpus_per_task}"] if args.cpus_per_task else []),
        "# Once, before every node wants to.",
        f"{quote(run)} --accelerator {args.accelerator} || exit",
        "",
        "stopped=",
        f"srun --kill-on-bad-exit=0 --wait=0 bash {quote(process)} &",
        "step=$!",
        "# Ahead of the time limit this script alone is told; srun passes it on to all processes.",
        "trap 'kill -USR2 \"$step\"' USR2",
        "# By scancel or for a job of more weight: then Slurm itself knows whether to requeue.",
        "trap 'stopped=yes; kill -TERM \"$step\"' TERM",
        "# A signal ends a wait, and not what it waits for.",
        'while kill -0 "$step" 2>/dev/null; do wait "$step"; done',
        'wait "$step"',
        "code=$?",
        'if [[ -s $CROSSGUARD_ENDED ]]; then read -r code _ <"$CROSSGUARD_ENDED"; fi',
        "",
        'case "$stopped$code" in',
        f"  {AGAIN_PATTERN})",
        f"    if ((restarts < {args.restarts})); then",
        '      echo "launch: ended with $code, requeued (${restarts} times before)"',
        '      scontrol requeue "$SLURM_JOB_ID"',
        "    fi",
        "    ;;",
        "esac",
        'exit "$code"',
    )


def _process(args: argparse.Namespace) -> str:
    return script(
        "# One process of the job; made by launch/run.sh --on slurm.",
        "# Slurm signals all processes of a step: this one stays, to note how the verb ended.",
        "trap : TERM USR2",
        "code=0",
        f"{command(args, args.repository / 'launch/run.sh')} || code=$?",
        "if [[ $code != 0 ]]; then",
        "  # The first to end is the cause, and makes the file; the others end because of it.",
        '  (set -o noclobber; echo "$code $SLURM_PROCID" >"$CROSSGUARD_ENDED") 2>/dev/null',
        "fi",
        'exit "$code"',
    )
