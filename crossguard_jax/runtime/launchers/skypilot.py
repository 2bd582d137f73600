"""SkyPilot: a managed job, which finds machines anew when they are taken away."""

import argparse

from crossguard_jax.runtime.exits import STARTS_AGAIN
from crossguard_jax.runtime.flags import positive
from crossguard_jax.runtime.launchers.scripts import (
    FORGET_SLICES,
    Submission,
    add_shared_arguments,
    check_shards,
    command,
    exports,
    need,
    one_word,
    setup,
    usage,
)
from crossguard_jax.runtime.launchers.yaml import Node, dump
from crossguard_jax.runtime.slices import find_slice

HELP = "sky jobs launch, on any cloud that SkyPilot reaches"
EXAMPLE = (
    "--accelerators H100:8 --nodes 2 --spot --cache gs://my-bucket/cache "
    "train --config configs/guard.py:llava_7b --out gs://my-bucket/guard_7b"
)
PORT = 8476


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the launcher's options."""
    add_shared_arguments(parser, "a bucket, gs://BUCKET/FOLDER; needed for several hosts")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--accelerators", type=one_word, metavar="KIND:N", help="GPUs a node, H100:8")
    what.add_argument("--slice", metavar="KIND", help="a TPU slice instead, as v5litepod-16")
    parser.add_argument("--nodes", type=positive, default=1, help="default: 1; a slice is one")
    parser.add_argument(
        "--infra", type=one_word, metavar="CLOUD", help="as gcp/us-east5; default: any"
    )
    parser.add_argument("--spot", action="store_true", help="machines that may be taken away")


def submission(args: argparse.Namespace) -> Submission:
    """The task's YAML and the command that launches it."""
    hosts, accelerators = args.nodes, args.accelerators
    if args.slice is not None:
        slice_ = find_slice(args.slice)
        if slice_.generation == "tpu7x":
            usage(args, f"--slice {slice_.name}: SkyPilot's slices end at v6e; use --on k8s")
        if args.nodes != 1:
            usage(args, f"--nodes {args.nodes} --slice {slice_.name}: of slices it starts one")
        hosts, accelerators = slice_.hosts, f"tpu-{slice_.name}"
    check_shards(args, hosts)
    args.accelerator = args.accelerator or (
        "tpu" if args.slice is not None else "cuda" if accelerators else "cpu"
    )
    if hosts > 1:
        need(args, "cache", f"{hosts} hosts share what they compile: gs://BUCKET/FOLDER")
    file = args.folder / "task.yaml"
    text = dump(_task(args, accelerators, joins_itself=args.slice is not None))
    return Submission(
        files={file: text},
        commands=[["sky", "jobs", "launch", "--yes", f"--name={args.name}", str(file)]],
        notes=["follow it with sky jobs queue; another run of the same --out goes on"],
    )


def _task(args: argparse.Namespace, accelerators: str | None, joins_itself: bool) -> Node:
    resources: dict[str, Node] = {}
    if accelerators:
        resources["accelerators"] = accelerators
    if args.infra:
        resources["infra"] = args.infra
    resources["use_spot"] = args.spot
    resources["job_recovery"] = {
        "strategy": "FAILOVER",
        "max_restarts_on_errors": 0,
        "recover_on_exit_codes": [*STARTS_AGAIN],
    }
    install = f"launch/run.sh --accelerator {args.accelerator}"
    return {
        "name": args.name,
        "num_nodes": args.nodes,
        "workdir": str(args.repository),
        "resources": resources,
        "setup": "\n".join(["set -euo pipefail", *setup(args), install, ""]),
        "run": "\n".join(["set -euo pipefail", *_join(args, joins_itself), command(args), ""]),
    }


def _join(args: argparse.Namespace, joins_itself: bool) -> list[str]:
    lines = [*FORGET_SLICES, *exports(args, '"$SKYPILOT_NUM_NODES"')]
    if joins_itself:  # the hosts of a slice know one another
        return lines
    return [
        *lines,
        'coordinator=$(head -n 1 <<<"$SKYPILOT_NODE_IPS")',
        f'export JAX_COORDINATOR_ADDRESS="$coordinator:{PORT}"',
        'export JAX_NUM_PROCESSES="$SKYPILOT_NUM_NODES" JAX_PROCESS_ID="$SKYPILOT_NODE_RANK"',
    ]
