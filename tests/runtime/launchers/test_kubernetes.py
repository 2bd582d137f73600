"""The YAML is of the published schemas, and means what it should.

`KNOWN` holds what this project uses of the custom resource definitions of JobSet (v1alpha2, August
2026), Kueue (v1beta2) and of SkyPilot's task schema: a field's kind, its choices, and by a star
that it has to be there. A field that is not listed is one that a server would drop or refuse.

The published ones themselves are not ours to ship. ``CROSSGUARD_CRDS`` names a folder of them:
``config/components/crd/bases/*.yaml`` of github.com/kubernetes-sigs/jobset, in which Kubernetes'
own Job and Pod are, and of github.com/kubernetes-sigs/kueue; SkyPilot's come with its package. Last
tried with those of August 2026 and SkyPilot 0.14.1.
"""

import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from crossguard_jax.runtime.exits import STARTS_AGAIN
from crossguard_jax.runtime.launchers.command import parse
from tests.runtime.launchers.test_command import RUNS as GOLDEN

LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
POD_SPEC = {
    "restartPolicy": {"Never"},  # what podFailurePolicy asks for
    "terminationGracePeriodSeconds": int,
    "nodeSelector": dict,
    "serviceAccountName": LABEL,
    "containers*": [
        {
            "name*": LABEL,
            "image*": str,
            "command": [str],
            "resources": {"limits": dict},
            "env": [{"name*": str, "valueFrom": {"fieldRef": {"fieldPath*": str}}}],
            "volumeMounts": [{"name*": LABEL, "mountPath*": "/.*"}],
        }
    ],
    "volumes": [{"name*": LABEL, "persistentVolumeClaim": {"claimName*": LABEL}}],
}
JOB_SPEC = {
    "parallelism": int,
    "completions": int,
    "completionMode": {"Indexed", "NonIndexed"},
    "backoffLimit": int,
    "backoffLimitPerIndex": int,
    "maxFailedIndexes": int,
    "podFailurePolicy": {
        "rules*": [
            {
                "action*": {"FailJob", "FailIndex", "Ignore", "Count"},
                "onExitCodes": {
                    "containerName": LABEL,
                    "operator*": {"In", "NotIn"},
                    "values*": [int],
                },
                "onPodConditions": [{"type*": str, "status": {"True", "False", "Unknown"}}],
            }
        ]
    },
    "template*": {"spec": POD_SPEC},
}
JOB_REASONS = {
    *("BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes"),
    *("MaxFailedIndexesExceeded", "PodFailurePolicy"),
}
JOBSET_ACTIONS = {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"}
METADATA = {"name*": LABEL, "namespace": LABEL, "labels": dict, "annotations": dict}
KNOWN: dict[str, Any] = {
    "jobset.x-k8s.io/v1alpha2 JobSet": {
        "failurePolicy": {
            "maxRestarts": int,
            "rules": [
                {
                    "name*": r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?",
                    "action*": JOBSET_ACTIONS,
                    "onJobFailureReasons": [JOB_REASONS],
                }
            ],
        },
        "network": {"enableDNSHostnames": bool, "publishNotReadyAddresses": bool},
        "replicatedJobs": [{"name*": LABEL, "replicas": int, "template*": {"spec": JOB_SPEC}}],
    },
    "kueue.x-k8s.io/v1beta2 ResourceFlavor": {"nodeLabels": dict},
    "kueue.x-k8s.io/v1beta2 ClusterQueue": {
        "namespaceSelector": {"matchLabels": dict},
        "resourceGroups": [
            {
                "coveredResources*": [str],
                "flavors*": [
                    {"name*": LABEL, "resources*": [{"name*": str, "nominalQuota*": int}]}
                ],
            }
        ],
    },
    "kueue.x-k8s.io/v1beta2 LocalQueue": {"clusterQueue": LABEL},
}
SKYPILOT = {
    "name": str,
    "num_nodes": int,
    "workdir": str,
    "setup": str,
    "run": str,
    "resources": {
        "accelerators": str,
        "infra": str,
        "use_spot": bool,
        "job_recovery": {
            "strategy": {"FAILOVER", "EAGER_NEXT_REGION"},
            "max_restarts_on_errors": int,
            "recover_on_exit_codes": [int],
        },
    },
}


def misfits(schema: Any, node: Any, where: str) -> list[str]:
    """Where a document is not of a schema: unknown and missing fields, kinds, choices."""
    if isinstance(schema, dict):
        if not isinstance(node, dict):
            return [f"{where}: no mapping"]
        fields = {name.rstrip("*"): inner for name, inner in schema.items()}
        missing = [n[:-1] for n in schema if n.endswith("*") and n[:-1] not in node]
        return [
            *(f"{where}: no {name}" for name in missing),
            *(f"{where}: unknown {name}" for name in node if name not in fields),
            *(
                line
                for name in node
                if name in fields
                for line in misfits(fields[name], node[name], f"{where}.{name}")
            ),
        ]
    if isinstance(schema, list):
        if not isinstance(node, list) or not node:
            return [f"{where}: no list"]
        return [line for n in node for line in misfits(schema[0], n, f"{where}[]")]
    if isinstance(schema, set):
        return [] if node in schema else [f"{where}: {node!r} is not one of {sorted(schema)}"]
    if isinstance(schema, str):
        fits = isinstance(node, str) and re.fullmatch(schema, node) is not None
        return [] if fits else [f"{where}: {node!r} is not {schema}"]
    # A boolean is no number.
    return [] if type(node) is schema else [f"{where}: {node!r} is no {schema.__name__}"]


def rendered(command: str) -> dict[str, Any]:
    """A dry run's documents by kind."""
    args = parse(["--on", *shlex.split(command)], ("train", "score"))
    files = args.launcher.submission(args).files
    documents = [d for text in files.values() for d in yaml.safe_load_all(text)]
    return {document.get("kind", "task"): document for document in documents}


TPU = "k8s --context c --image i --cache gs://b/c"
RUNS = {
    "one host": f"{TPU} --slice v6e-8 train",
    "one slice": f"{TPU} --slice v5litepod-16 --queue q --make-queue train",
    "two slices": f"{TPU} --slice v5p-16 --slices 2 --service-account s train",
    "tpu7x": f"{TPU} --slice tpu7x-16 --node-selector cloud.google.com/gke-spot=true train",
    "an array": f"{TPU} --slice v5litepod-4 --array 3 score --on array",
    "gpus": "k8s --context c --image i --gpus-per-node 8 --nodes 2 --volume v:/v train",
    "a queue of gpus": (
        "k8s --context c --image i --gpus-per-node 8 --gpu-type nvidia-h100-80gb --queue q "
        "--make-queue train"
    ),
}


@pytest.mark.parametrize("run", RUNS)
def test_what_is_applied_is_of_the_published_schemas(run: str) -> None:
    for kind, document in rendered(RUNS[run]).items():
        schema = {
            "apiVersion*": str,
            "kind*": str,
            "metadata*": METADATA,
            "spec*": KNOWN[f"{document['apiVersion']} {kind}"],
        }
        assert misfits(schema, document, kind) == []


def closed(schema: Any) -> Any:
    """A schema of Kubernetes as JSON Schema that refuses what a server would drop."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    shut = {name: closed(each) for name, each in schema.items()}
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict):
        shut.setdefault("additionalProperties", False)
    return shut


@pytest.fixture(scope="module")
def published() -> dict[tuple[str, str], Any]:
    """The published schemas by version and kind."""
    folder = os.environ.get("CROSSGUARD_CRDS")
    if not folder:
        pytest.skip("CROSSGUARD_CRDS names no folder of published CRDs")
    schemas = {}
    for path in sorted(Path(folder).glob("*.yaml")):
        (definition,) = (each["spec"] for each in yaml.safe_load_all(path.read_text()) if each)
        for version in definition["versions"]:
            schema = closed(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            name = f"{definition['group']}/{version['name']}"
            schemas[name, definition["names"]["kind"]] = schema
    return schemas


@pytest.mark.parametrize("command", [*RUNS.values(), *(GOLDEN[n] for n in GOLDEN if "k8s" in n)])
def test_what_is_applied_is_of_the_published_files(command: str, published: Any) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="pip install jsonschema")
    for kind, document in rendered(command).items():
        check = jsonschema.Draft202012Validator(published[document["apiVersion"], kind])
        assert [error.message for error in check.iter_errors(document)] == []
        document["spec"]["nobodys"] = 1
        assert not check.is_valid(document)


TASKS = ["--slice v6e-8", "--slice v5litepod-16", "--accelerators H100:8 --nodes 2", ""]


@pytest.mark.parametrize("what", TASKS)
def test_skypilots_task_is_of_its_schema(what: str) -> None:
    task = rendered(f"skypilot {what} --cache gs://b/c --infra gcp --spot train")["task"]
    assert misfits(SKYPILOT, task, "task") == []
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [*STARTS_AGAIN]


@pytest.mark.parametrize("what", TASKS)
def test_skypilot_takes_its_task(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path.cwd()))
    sky = pytest.importorskip("sky", reason="no SkyPilot: pip install skypilot")
    written = rendered(f"skypilot {what} --cache gs://b/c --infra gcp --spot train")["task"]
    task = sky.Task.from_yaml_config(written)
    (resources,) = task.resources
    assert resources.use_spot and resources.job_recovery["recover_on_exit_codes"] == [*STARTS_AGAIN]


@pytest.mark.parametrize(
    "break_it",
    [
        lambda job: job.update(backofLimit=1),
        lambda job: job.pop("template"),
        lambda job: job.update(completionMode="indexed"),
        lambda job: job.update(parallelism="4"),
        lambda job: job["podFailurePolicy"]["rules"].clear(),
    ],
)
def test_the_check_sees_what_is_wrong(break_it: Any) -> None:
    jobset = rendered(RUNS["one slice"])["JobSet"]
    break_it(jobset["spec"]["replicatedJobs"][0]["template"]["spec"])
    assert len(misfits(KNOWN["jobset.x-k8s.io/v1alpha2 JobSet"], jobset["spec"], "JobSet")) == 1


@pytest.mark.parametrize(
    ("what", "replicas", "hosts", "limits", "nodes"),
    [
        ("--slice v5litepod-16", 1, 4, {"google.com/tpu": 4}, ("tpu-v5-lite-podslice", "4x4")),
        ("--slice v5p-16 --slices 3", 3, 2, {"google.com/tpu": 4}, ("tpu-v5p-slice", "2x2x2")),
        ("--slice v6e-8", 1, 1, {"google.com/tpu": 8}, ("tpu-v6e-slice", "2x4")),
        ("--slice v6e-8 --chips-per-host 4", 1, 2, {"google.com/tpu": 4}, ("tpu-v6e-slice", "2x4")),
        ("--slice tpu7x-8", 1, 1, {"google.com/tpu": 4}, ("tpu7x", "2x2x1")),
        ("--gpus-per-node 8 --nodes 2", 1, 2, {"nvidia.com/gpu": 8}, None),
    ],
)
def test_pods_are_the_hosts_of_a_slice(
    what: str,
    replicas: int,
    hosts: int,
    limits: dict[str, int],
    nodes: tuple[str, str] | None,
) -> None:
    (group,) = rendered(f"{TPU} {what} train")["JobSet"]["spec"]["replicatedJobs"]
    job = group["template"]["spec"]
    pod = job["template"]["spec"]
    assert (group["replicas"], job["parallelism"], job["completions"]) == (replicas, hosts, hosts)
    assert pod["containers"][0]["resources"]["limits"] == limits
    assert tuple(pod.get("nodeSelector", {}).values()) == (nodes or ())


def test_a_made_queue_has_room_for_the_run_that_makes_it() -> None:
    documents = rendered(f"{TPU} --slice v5p-16 --slices 2 --queue q --make-queue train")
    (group,) = documents["ClusterQueue"]["spec"]["resourceGroups"]
    assert group["flavors"][0]["resources"] == [{"name": "google.com/tpu", "nominalQuota": 16}]
    labels = documents["JobSet"]["metadata"]["labels"]
    assert labels == {"kueue.x-k8s.io/queue-name": documents["LocalQueue"]["metadata"]["name"]}


def pod_outcome(jobset: Any, code: int, disrupted: bool = False) -> str:
    """What Kubernetes does at a pod's end, by the rules in their order."""
    for rule in jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"][
        "rules"
    ]:
        codes = rule.get("onExitCodes")
        if disrupted if codes is None else (code in codes["values"]) == (codes["operator"] == "In"):
            return rule["action"]
    return "Count"


@pytest.mark.parametrize(
    ("run", "lost"),
    [
        (f"{TPU} --slice v6e-8 train --out runs/a", True),
        (f"{TPU} --slice v6e-8 train --out=gs://b/a", False),
        (f"{TPU} --slice v6e-8 --volume v:/v train --out /v/a", False),
        (f"{TPU} --slice v6e-8 --volume v:/crossguard_jax/runs train --out runs/a", False),
        (f"{TPU} --slice v6e-8 train", False),
    ],
)
def test_a_run_that_ends_with_its_pod_is_noted(run: str, lost: bool) -> None:
    args = parse(["--on", *shlex.split(run)], ("train",))
    notes = args.launcher.submission(args).notes
    assert any("ends with it: gs://BUCKET" in note for note in notes) == lost


def test_the_pods_of_an_array_are_no_one_run_and_fail_alone() -> None:
    jobset = rendered(RUNS["an array"])["JobSet"]
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["completions"] == job["parallelism"] == job["maxFailedIndexes"] == 3
    assert [rule["action"] for rule in job["podFailurePolicy"]["rules"]] == ["Ignore", "FailIndex"]
    (container,) = job["template"]["spec"]["containers"]
    assert "JAX_NUM_PROCESSES=1 JOB_COMPLETIONS=3\n" in container["command"][-1]
    assert "annotations" not in jobset["metadata"]


def test_exit_codes_decide_about_starting_again() -> None:
    jobset = rendered(RUNS["gpus"])["JobSet"]
    assert {pod_outcome(jobset, code) for code in STARTS_AGAIN} == {"Count"}
    # Failed, usage, interrupted, out of memory by the kernel's hand.
    assert {pod_outcome(jobset, code) for code in (1, 2, 130, 137)} == {"FailJob"}
    assert pod_outcome(jobset, 137, disrupted=True) == "Ignore"
    # Counted once too often, the set starts again; failed by a rule, it does not.
    assert jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["backoffLimit"] == 0
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
