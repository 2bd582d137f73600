"""A Cloud TPU slice that is there already: all its workers at once, over ``gcloud``'s ssh.

Legacy: ``gcloud compute tpus tpu-vm`` gets fixes only, and knows no slices after v6e.
"""

import argparse

from crossguard_jax.runtime.flags import natural
from crossguard_jax.runtime.launchers.scripts import (
    AGAIN_PATTERN,
    FORGET_SLICES,
    Submission,
    add_shared_arguments,
    check_shards,
    command,
    exports,
    need,
    one_word,
    quote,
    script,
    setup,
    usage,
)
from crossguard_jax.runtime.slices import find_slice

HELP = "all workers of a Cloud TPU slice over ssh (legacy: v6e is the last; else k8s)"
EXAMPLE = (
    "--tpu my-slice --zone us-east5-b --slice v6e-16 --cache gs://my-bucket/cache "
    "train --config configs/guard.py:llava_7b --out gs://my-bucket/guard_7b"
)
LEFT_OUT = ("./.git", "./.venv", "./.jax_cache", "./runs", "./data", "__pycache__")
"""Of the repository, what the workers do not get."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the launcher's options."""
    add_shared_arguments(parser, "a bucket, gs://BUCKET/FOLDER; needed for several hosts")
    parser.add_argument("--tpu", type=one_word, metavar="NAME", help="the slice's own name")
    parser.add_argument("--slice", default="", metavar="KIND", help="its kind, as v5litepod-16")
    parser.add_argument("--zone", type=one_word, metavar="ZONE")
    parser.add_argument("--project", type=one_word, metavar="PROJECT", help="default: gcloud's own")
    parser.add_argument(
        "--restarts", type=natural, default=20, help="start again at most so often (default: 20)"
    )


def submission(args: argparse.Namespace) -> Submission:
    """The workers' script, the one that starts them, and the commands that bring the code there."""
    tpu = need(args, "tpu", "the name of a slice that gcloud compute tpus tpu-vm list shows")
    zone = need(args, "zone", "where it is, as us-east5-b")
    slice_ = find_slice(args.slice)
    if slice_.generation == "tpu7x":
        usage(args, f"--slice {slice_.name}: this way ends at v6e; use --on k8s")
    check_shards(args, slice_.hosts)
    if slice_.hosts > 1:
        need(args, "cache", f"{slice_.hosts} hosts share what they compile: gs://BUCKET/FOLDER")
    args.accelerator = args.accelerator or "tpu"
    where = [f"--zone={zone}", *([f"--project={args.project}"] if args.project else [])]
    code = args.folder / f"{args.name}.tar.gz"
    worker, start = args.folder / f"{args.name}.sh", args.folder / "start.sh"
    scp = ["gcloud", "compute", "tpus", "tpu-vm", "scp", str(code), str(worker), f"{tpu}:"]
    left_out = [f"--exclude={name}" for name in LEFT_OUT]
    return Submission(
        files={worker: _worker(args, slice_.hosts), start: _start(args, tpu, where)},
        commands=[
            ["tar", "-czf", str(code), *left_out, "-C", str(args.repository), "."],
            [*scp, "--worker=all", *where],
            ["bash", str(start)],
        ],
        notes=[
            "legacy: gcloud compute tpus tpu-vm gets fixes only, and ends at v6e; see --on k8s",
            f"{slice_.name}: {slice_.chips} chips of {slice_.topology}, {slice_.hosts} host(s)",
        ],
    )


def _worker(args: argparse.Namespace, hosts: int) -> str:
    return script(
        "# On every worker; made by launch/run.sh --on tpu.",
        "set -euo pipefail",
        f'mkdir -p "$HOME/{args.name}"',
        f'tar -xzf "$HOME/{args.name}.tar.gz" -C "$HOME/{args.name}"',
        f'cd "$HOME/{args.name}"',
        *FORGET_SLICES,
        *exports(args, str(hosts)),
        *setup(args),
        "code=0",
        f"{command(args)} || code=$?",
        '[[ $code == 0 ]] || echo "launch: ended with $code"',
        'exit "$code"',
    )


def _start(args: argparse.Namespace, tpu: str, where: list[str]) -> str:
    # Of several workers one alone would wait for the others.
    ssh = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", tpu, "--worker=all", "--batch-size=all"]
    words = [*ssh, *where, f"--command=bash {args.name}.sh"]
    return script(
        "# Starts all workers, and again where their exit codes say so.",
        "set -uo pipefail",
        f"log={quote(args.folder / 'output.log')}",
        f"for ((restart = 0; restart <= {args.restarts}; restart++)); do",
        f'  {" ".join(map(quote, words))} 2>&1 | tee "$log"',
        "  code=${PIPESTATUS[0]}",
        "  [[ $code != 0 ]] || exit 0",
        "  # The first to end is the cause; the others end because of it.",
        "  first=$(sed -n 's/.*launch: ended with \\([0-9]*\\)$/\\1/p' \"$log\" | head -n 1)",
        "  code=${first:-$code}",
        '  case "$code" in',
        f'    {AGAIN_PATTERN}) echo "launch: ended with $code, starting again" ;;',
        '    *) exit "$code" ;;',
        "  esac",
        "done",
        'exit "$code"',
    )
