"""Kubernetes: a JobSet, queued by Kueue, as GKE runs it; or the same job by ``gcluster``.

Each host is one pod and one process. Pods of GPUs are told the others' addresses by the names that
a JobSet gives them, so that they need no right to read the cluster; those of a TPU slice by GKE.
"""

import argparse
import itertools
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from crossguard_jax.runtime.exits import STARTS_AGAIN
from crossguard_jax.runtime.flags import natural, positive
from crossguard_jax.runtime.launchers.scripts import (
    FORGET_SLICES,
    Submission,
    add_array,
    add_shared_arguments,
    check_shards,
    command,
    exports,
    label,
    need,
    one_word,
    quote,
    setup,
    usage,
)
from crossguard_jax.runtime.launchers.yaml import Node, dump
from crossguard_jax.runtime.slices import find_slice

HELP = "a JobSet queued by Kueue, on GKE or another Kubernetes"
EXAMPLE = (
    "--cluster my-cluster --location us-east5 --image REGISTRY/IMAGE --queue tpu "
    "--slice v5litepod-16 --cache gs://my-bucket/cache "
    "train --config configs/guard.py:llava_7b --out gs://my-bucket/guard_7b"
)
PORT = 8476
WORKERS = "workers"
"""The one replicated job of the set."""
_SHARED = "gs://BUCKET/FOLDER, or a folder of a --volume"
GRACE = 120
"""Seconds that a pod has to save, once it is told to stop."""


@dataclass(frozen=True)
class Pods:
    """How many pods of what there are.

    Attributes:
      slices: groups of them, each on a network of its own.
      hosts: pods of one group.
      resource: what Kubernetes calls the devices.
      devices: so many of them on each pod.
      nodes: the labels of nodes that have them.
      compute_type: the same in ``gcluster``'s words.
    """

    slices: int
    hosts: int
    resource: str
    devices: int
    nodes: dict[str, str]
    compute_type: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the launcher's options."""
    add_shared_arguments(parser, "gs://BUCKET/FOLDER (default: with --volume, a folder there)")
    add_array(parser)
    parser.add_argument("--cluster", type=one_word, metavar="NAME", help="a GKE cluster")
    parser.add_argument("--location", type=one_word, metavar="REGION", help="where it is")
    parser.add_argument("--project", type=one_word, metavar="PROJECT", help="default: gcloud's own")
    parser.add_argument("--context", type=one_word, help="instead: a cluster that kubectl knows")
    parser.add_argument(
        "--image", type=one_word, help="with this repository and a Python of 3.11 or 3.12"
    )
    parser.add_argument(
        "--workdir",
        default="/crossguard_jax",
        help="of the repository there (default: %(default)s)",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--slice", metavar="KIND", help="a TPU slice, as v5litepod-16")
    what.add_argument("--gpus-per-node", type=positive, metavar="N")
    parser.add_argument("--slices", type=positive, default=1, help="so many of it (default: 1)")
    parser.add_argument(
        "--chips-per-host", type=positive, metavar="N", help="where pools differ: 4"
    )
    parser.add_argument("--nodes", type=positive, default=1, help="of GPUs (default: 1)")
    parser.add_argument("--gpu-type", type=one_word, metavar="KIND", help="as nvidia-h100-80gb")
    parser.add_argument("--namespace", type=one_word, default="default")
    parser.add_argument("--queue", type=one_word, metavar="NAME", help="Kueue's local queue")
    parser.add_argument("--make-queue", action="store_true", help="make it, with quota for this")
    parser.add_argument(
        "--service-account", type=one_word, metavar="NAME", help="that may use buckets"
    )
    parser.add_argument(
        "--volume", type=one_word, metavar="CLAIM:/PATH", help="a claim that all pods write to"
    )
    parser.add_argument(
        "--node-selector", type=label, action="append", default=[], metavar="LABEL=VALUE"
    )
    parser.add_argument(
        "--restarts", type=natural, default=20, help="of the whole set at most (default: 20)"
    )
    parser.add_argument(
        "--by", choices=("kubectl", "gcluster"), default="kubectl", help="default: %(default)s"
    )


def submission(args: argparse.Namespace) -> Submission:
    """The set's YAML, its queue's where that is to be made, and the commands that apply them."""
    connect = _connect(args)
    image = need(args, "image", "a container image with this repository")
    pods = _pods(args)
    check_shards(args, 1 if args.array else pods.slices * pods.hosts)
    args.accelerator = args.accelerator or ("tpu" if args.slice is not None else "cuda")
    volume, _, path = (args.volume or "").partition(":")
    if args.volume and not path.startswith("/"):
        usage(args, f"--volume {args.volume}: needs CLAIM:/PATH")
    if path and not args.cache:
        args.cache = f"{path}/.jax_cache"
    if pods.slices * pods.hosts > 1:
        cache = need(args, "cache", f"the pods share what they compile: {_SHARED}")
        if not _shared(cache, path):
            usage(args, f"--cache {cache}: is a folder of each pod's own; {_SHARED}")
    if args.by == "gcluster":
        return Submission(
            files={},
            commands=[_gcluster(args, pods, image)],
            notes=["its flags are those of gcluster v1.90 (May 2026) and later"],
        )
    jobset = args.folder / "jobset.yaml"
    files = {jobset: dump(_jobset(args, pods, image, volume, path))}
    if args.make_queue:
        files[args.folder / "queue.yaml"] = dump(*_queue(args, pods))
    kubectl = ["kubectl", *([f"--context={args.context}"] if args.context else [])]
    return Submission(
        files=files,
        # The queue first.
        commands=[*connect, *([*kubectl, "apply", "-f", str(f)] for f in reversed(files))],
        notes=[
            *_lost(args, path),
            f"{pods.slices * pods.hosts} pod(s), each with {pods.devices} {pods.resource}",
            f"follow it with kubectl -n {args.namespace} get jobset {args.name}; delete that before"
            " another of its name",
        ],
    )


def _shared(folder: str, volume: str) -> bool:
    """Whether all pods see a folder, and those that come after them."""
    return "://" in folder or bool(volume) and PurePosixPath(folder).is_relative_to(volume)


def _lost(args: argparse.Namespace, volume: str) -> list[str]:
    """A note where what the run writes would end with its pod."""
    words = [*args.rest, ""]
    for word, after in itertools.pairwise(words):
        out = after if word == "--out" else word[6:] if word.startswith("--out=") else ""
        if out and not _shared(
            out if "://" in out else f"{PurePosixPath(args.workdir, out)}", volume
        ):
            return [f"--out {out} is in a pod and ends with it: {_SHARED}"]
    return []


def _connect(args: argparse.Namespace) -> list[list[str]]:
    if args.context and args.by == "kubectl":
        return []
    cluster = need(args, "cluster", "with --location, a GKE cluster; or --context, kubectl's name")
    location = need(args, "location", f"the region or zone of {cluster}")
    if args.by == "gcluster":
        return []
    project = [f"--project={args.project}"] if args.project else []
    get = ["gcloud", "container", "clusters", "get-credentials"]
    return [[*get, cluster, f"--location={location}", *project]]


def _pods(args: argparse.Namespace) -> Pods:
    if args.slice is not None:
        for option, value, usual in (("nodes", args.nodes, 1), ("gpu-type", args.gpu_type, None)):
            if value != usual:
                usage(args, f"--{option} goes with --gpus-per-node")
        slice_ = find_slice(args.slice)
        each = args.chips_per_host or slice_.chips_per_host
        if slice_.chips % each:
            usage(args, f"--chips-per-host {each} does not divide the {slice_.chips} chips")
        nodes = {
            "cloud.google.com/gke-tpu-accelerator": slice_.gke,
            "cloud.google.com/gke-tpu-topology": slice_.topology,
        }
        resource, kind = "google.com/tpu", slice_.name
        groups, hosts = args.slices, slice_.chips // each
    elif args.gpus_per_node:
        if args.slices != 1:
            usage(args, "--slices counts TPU slices: give --nodes for GPUs")
        if args.chips_per_host:
            usage(args, "--chips-per-host goes with --slice")
        nodes = {"cloud.google.com/gke-accelerator": args.gpu_type} if args.gpu_type else {}
        each, resource, kind = args.gpus_per_node, "nvidia.com/gpu", args.gpu_type or ""
        groups, hosts = 1, args.nodes
    else:
        usage(args, "--on k8s needs --slice (a TPU slice, as v5litepod-16) or --gpus-per-node")
    if args.array:
        if groups * hosts > 1 or args.by == "gcluster":
            usage(args, "--array needs tasks of one host each, and --by kubectl")
        hosts = args.array
    return Pods(groups, hosts, resource, each, nodes | dict(args.node_selector), kind)


def _script(args: argparse.Namespace, pods: Pods) -> list[str]:
    lines = ["set -euo pipefail", f"cd {quote(args.workdir)}"]
    if args.by == "kubectl":
        lines += [*FORGET_SLICES, *_join(args, pods)]
    lines += exports(args, "1" if args.array else str(pods.slices * pods.hosts))
    lines += [*setup(args), f"exec {command(args)}"]
    # Kubernetes reads $(NAME) and $$ in a command before bash does: a second $ keeps them.
    return [re.sub(r"\$(?=[$(])", "$$", line) for line in lines]


def _join(args: argparse.Namespace, pods: Pods) -> list[str]:
    """Lines of a script that say where the other pods are, or that there are none."""
    if args.array:
        return [f"export JAX_NUM_PROCESSES=1 JOB_COMPLETIONS={args.array}"]
    host = f"{args.name}-{WORKERS}-0-0.{args.name}"
    if args.slice is None:
        return [
            f"export JAX_COORDINATOR_ADDRESS={host}:{PORT}",
            f'export JAX_NUM_PROCESSES={pods.hosts} JAX_PROCESS_ID="$JOB_COMPLETION_INDEX"',
        ]
    if pods.slices == 1:
        return []
    return [
        f"export MEGASCALE_COORDINATOR_ADDRESS={host}",
        f'export MEGASCALE_NUM_SLICES={pods.slices} MEGASCALE_SLICE_ID="$SLICE"',
    ]


def _jobset(args: argparse.Namespace, pods: Pods, image: str, volume: str, path: str) -> Node:
    metadata: dict[str, Node] = {"name": args.name, "namespace": args.namespace}
    if args.queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": args.queue}
    if args.slice is not None and not args.array:  # a slice is one node pool, shared with no other
        topology = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
        metadata["annotations"] = topology
    job: Node = {
        "parallelism": pods.hosts,
        "completions": pods.hosts,
        "completionMode": "Indexed",
        # A task that failed for good ends itself alone.
        **(
            {"backoffLimitPerIndex": args.restarts, "maxFailedIndexes": args.array}
            if args.array
            else {"backoffLimit": 0}
        ),
        "podFailurePolicy": {"rules": _pod_rules("FailIndex" if args.array else "FailJob")},
        "template": {"spec": _pod(args, pods, image, volume, path)},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {
                "maxRestarts": args.restarts,
                "rules": [
                    {
                        "name": "hopeless",
                        "action": "FailJobSet",
                        "onJobFailureReasons": [
                            "FailedIndexes" if args.array else "PodFailurePolicy"
                        ],
                    }
                ],
            },
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "replicatedJobs": [
                {"name": WORKERS, "replicas": pods.slices, "template": {"spec": job}}
            ],
        },
    }


def _pod_rules(hopeless: str) -> Node:
    """What a pod's end means; the first rule that fits counts."""
    return [
        # A pod that was taken away is replaced, and is no restart.
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        # Any other end but these is for good: of the set, or of an array's one task.
        {
            "action": hopeless,
            "onExitCodes": {
                "containerName": "crossguard",
                "operator": "NotIn",
                "values": [*STARTS_AGAIN],
            },
        },
    ]


def _pod(args: argparse.Namespace, pods: Pods, image: str, volume: str, path: str) -> Node:
    container: dict[str, Node] = {
        "name": "crossguard",
        "image": image,
        "command": ["bash", "-c", "\n".join([*_script(args, pods), ""])],
        "resources": {"limits": {pods.resource: pods.devices}},
    }
    if pods.slices > 1:
        field = {"fieldPath": "metadata.labels['jobset.sigs.k8s.io/job-index']"}
        container["env"] = [{"name": "SLICE", "valueFrom": {"fieldRef": field}}]
    spec: dict[str, Node] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE,
        "containers": [container],
    }
    if pods.nodes:
        spec["nodeSelector"] = pods.nodes
    if args.service_account:
        spec["serviceAccountName"] = args.service_account
    if volume:
        container["volumeMounts"] = [{"name": "shared", "mountPath": path}]
        claim = {"claimName": volume}
        spec["volumes"] = [{"name": "shared", "persistentVolumeClaim": claim}]
    return spec


def _queue(args: argparse.Namespace, pods: Pods) -> list[Node]:
    name = need(args, "queue", "the queue to make")
    quota = pods.slices * pods.hosts * pods.devices
    flavor: Node = {
        "name": name,
        "resources": [{"name": pods.resource, "nominalQuota": quota}],
    }
    api = "kueue.x-k8s.io/v1beta2"
    return [
        {
            "apiVersion": api,
            "kind": "ResourceFlavor",
            "metadata": {"name": name},
            "spec": {"nodeLabels": pods.nodes},
        },
        {
            "apiVersion": api,
            "kind": "ClusterQueue",
            "metadata": {"name": name},
            "spec": {
                "namespaceSelector": {},
                "resourceGroups": [{"coveredResources": [pods.resource], "flavors": [flavor]}],
            },
        },
        {
            "apiVersion": api,
            "kind": "LocalQueue",
            "metadata": {"name": name, "namespace": args.namespace},
            "spec": {"clusterQueue": name},
        },
    ]


def _gcluster(args: argparse.Namespace, pods: Pods, image: str) -> list[str]:
    if not pods.compute_type:
        usage(args, "--by gcluster needs --gpu-type or --slice")
    if args.slice is None and pods.hosts > 1:
        usage(args, f"--by gcluster --nodes {pods.hosts}: it names the pods; use --by kubectl")
    kubectls = {
        "make-queue": False,
        "context": None,
        "chips-per-host": None,
        "namespace": "default",
    }
    for option, default in kubectls.items():
        if getattr(args, option.replace("-", "_")) != default:
            usage(args, f"--{option} goes with --by kubectl: gcluster has its own")
    size = f"--num-slices={pods.slices}" if args.slice is not None else "--num-nodes=1"
    return [
        *("gcluster", "job", "submit", f"--name={args.name}", f"--cluster={args.cluster}"),
        *(f"--location={args.location}", f"--image={image}", f"--compute-type={pods.compute_type}"),
        *(size, f"--restarts={args.restarts}", f"--grace-period={GRACE}s"),
        # After any other it would start again, too.
        f"--restart-on-exit-codes={','.join(map(str, STARTS_AGAIN))}",
        *([f"--project={args.project}"] if args.project else []),
        *([f"--queue={args.queue}"] if args.queue else []),
        *([f"--service-account={args.service_account}"] if args.service_account else []),
        *([f"--mount={args.volume}:rw"] if args.volume else []),
        *(f"--node-constraint={key}={value}" for key, value in args.node_selector),
        f"--command=bash -c {quote('; '.join(_script(args, pods)))}",
    ]
