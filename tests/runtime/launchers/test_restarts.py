"""A job's scripts, run with stand-ins for Slurm and ``gcloud``: which ends start it again."""

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from crossguard_jax.runtime.launchers.command import parse

# As a step of Slurm's: processes with numbers, and signals for all that runs in them.
SRUN = """#!/usr/bin/env bash
set -m
pass() { for pid in "${pids[@]}"; do kill -"$1" -- "-$pid" 2>/dev/null; done; }
trap 'pass USR2' USR2
trap 'pass TERM' TERM
while [[ $1 == -* ]]; do shift; done
for i in 0 1; do SLURM_PROCID=$i "$@" & pids+=("$!"); done
worst=0
for pid in "${pids[@]}"; do
  while kill -0 "$pid" 2>/dev/null; do wait "$pid"; done
  wait "$pid"; code=$?
  (( code <= worst )) || worst=$code
done
exit "$worst"
"""
# Ends as the file of its number says: after so many seconds, or when told to, with a code.
RUN = """#!/usr/bin/env bash
echo "$*" >>"$LOG"
[[ $# != 2 ]] || exit 0
read -r seconds code <"$ENDS/$SLURM_PROCID"
trap 'exit 75' USR2 TERM
touch "$ENDS/started$SLURM_PROCID"
for ((i = 0; i < seconds; i++)); do sleep 0.1; done
exit "$code"
"""
SCONTROL = '#!/usr/bin/env bash\necho "scontrol $*" >>"$LOG"\n'
GCLOUD = """#!/usr/bin/env bash
echo "gcloud $*" >>"$LOG"
n=$(grep -c . "$LOG")
cat "$ENDS/$n" 2>/dev/null || exit 0
exit 1
"""
End = tuple[int, int]  # tenths of seconds, code


class Cluster:
    """A folder with the scripts of a run and stand-ins for what they call."""

    def __init__(self, folder: Path, command: str) -> None:
        self.folder, self.log = folder, folder / "log"
        tools = {
            "srun": SRUN,
            "scontrol": SCONTROL,
            "gcloud": GCLOUD,
            "the clone/launch/run.sh": RUN,
        }
        for name, text in tools.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(0o755)
        args = parse(["--on", *shlex.split(command)], ("train",))
        args.repository, args.folder = folder / "the clone", folder / "the run"
        args.folder.mkdir()
        submission = args.launcher.submission(args)
        self.scripts, self.commands = {}, submission.commands
        for path, text in submission.files.items():
            path.write_text(text)
            self.scripts[path.name] = path

    def start(self, script: str, **environ: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", self.scripts[script]],
            env={"PATH": f"{self.folder}:{os.environ['PATH']}", "LOG": str(self.log)}
            | {"ENDS": str(self.folder), "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"}
            | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ends(self, *ends: End) -> None:
        for i, (tenths, code) in enumerate(ends):
            (self.folder / str(i)).write_text(f"{tenths} {code}\n")

    def calls(self, tool: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if line.startswith(tool)]


@pytest.fixture
def slurm(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path, "slurm --nodes 2 --gpus-per-node 1 --restarts 3 train --out 'a b'")


@pytest.mark.parametrize(
    ("ends", "code", "again"),
    [
        (((0, 0), (0, 0)), 0, False),
        (((0, 75), (0, 75)), 75, True),
        (((0, 134), (3, 75)), 134, True),
        (((0, 140), (3, 75)), 140, True),
        (((0, 1), (0, 1)), 1, False),
        (((0, 2), (0, 2)), 2, False),
        (((0, 137), (0, 137)), 137, False),
        # The other end is only what follows: memory that ran out must not look like a preemption,
        (((3, 75), (0, 1)), 1, False),
        (((3, 134), (0, 137)), 137, False),
        # nor a preemption like a failure.
        (((0, 75), (3, 1)), 75, True),
    ],
)
def test_slurm_requeues_by_the_code_of_the_first_process_to_end(
    slurm: Cluster, ends: tuple[End, ...], code: int, again: bool
) -> None:
    slurm.ends(*ends)
    job = slurm.start("job.sbatch")
    out, err = job.communicate(timeout=60)
    assert (job.returncode, slurm.calls("scontrol") == ["scontrol requeue 7"]) == (code, again), err
    # Installed once, and then run by each.
    assert (
        slurm.calls("--accelerator")
        == ["--accelerator cuda"] + ["--accelerator cuda train --out a b"] * 2
    )


def test_a_job_that_was_requeued_often_enough_stays_away(slurm: Cluster) -> None:
    slurm.ends((0, 75), (0, 75))
    job = slurm.start("job.sbatch", SLURM_RESTART_COUNT="3")
    job.communicate(timeout=60)
    assert job.returncode == 75 and slurm.calls("scontrol") == []


@pytest.mark.parametrize(("number", "again"), [(signal.SIGUSR2, True), (signal.SIGTERM, False)])
def test_the_signal_reaches_every_process_and_who_sent_it_decides(
    slurm: Cluster, tmp_path: Path, number: signal.Signals, again: bool
) -> None:
    slurm.ends((300, 1), (300, 1))
    job = slurm.start("job.sbatch")
    while not all((tmp_path / f"started{i}").exists() for i in (0, 1)):
        assert job.poll() is None
        time.sleep(0.02)
    job.send_signal(number)
    _, err = job.communicate(timeout=20)
    assert (job.returncode, slurm.calls("scontrol") != []) == (75, again), err


def test_stale_slices_are_forgotten_and_flags_added_to(tmp_path: Path) -> None:
    cluster = Cluster(
        tmp_path, "slurm --env 'XLA_FLAGS=--b=2 --c' --env LIBTPU_INIT_ARGS=--d train"
    )
    run = tmp_path / "the clone/launch/run.sh"
    run.write_text('#!/usr/bin/env bash\nenv >>"$LOG"\n')
    stale = {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_COORDINATOR_ADDRESS": "gone"}
    cluster.start("job.sbatch", XLA_FLAGS="--a=1", **stale).communicate(timeout=60)
    lines = cluster.log.read_text().splitlines()
    assert not [line for line in lines if line.startswith("MEGASCALE")]
    assert "XLA_FLAGS=--a=1 --b=2 --c" in lines and "LIBTPU_INIT_ARGS=--d" in lines
    assert f"JAX_COMPILATION_CACHE_DIR={tmp_path}/the clone/.jax_cache" in lines
    assert "CROSSGUARD_NODES=2" in lines


@pytest.mark.parametrize(
    ("outputs", "starts", "code"),
    [
        ([], 1, 0),
        (["launch: ended with 75\n"], 2, 0),
        (["[w0] launch: ended with 134\nlaunch: ended with 1\n"], 2, 0),
        (["launch: ended with 1\nlaunch: ended with 75\n"], 1, 1),
        (["ssh: cannot connect\n"], 1, 1),
        (["launch: ended with 75\n"] * 9, 3, 75),
    ],
)
def test_a_slice_is_started_again_by_the_code_of_the_first_worker_to_end(
    tmp_path: Path, outputs: list[str], starts: int, code: int
) -> None:
    cluster = Cluster(tmp_path, "tpu --tpu t --zone z --slice v6e-8 --restarts 2 train")
    for i, text in enumerate(outputs, start=1):
        (tmp_path / str(i)).write_text(text)
    job = cluster.start("start.sh")
    out, err = job.communicate(timeout=60)
    calls = cluster.calls("gcloud")
    assert (job.returncode, len(calls)) == (code, starts), out + err
    assert all("ssh t --worker=all --batch-size=all --zone=z --command=bash" in c for c in calls)


def test_a_worker_unpacks_the_code_runs_the_verb_and_tells_its_end(
    tmp_path: Path,
) -> None:
    cluster = Cluster(tmp_path, "tpu --name mine --tpu t --zone z --slice v6e-8 train --out 'a b'")
    (tmp_path / "home").mkdir()
    (tmp_path / "the clone/data").mkdir()
    (tmp_path / "the clone/crossguard_jax/data").mkdir(parents=True)
    subprocess.run(cluster.commands[0], check=True)
    (tmp_path / "the run/mine.tar.gz").rename(tmp_path / "home/mine.tar.gz")
    cluster.ends((0, 75))
    job = cluster.start("mine.sh", HOME=str(tmp_path / "home"), SLURM_PROCID="0")
    out, err = job.communicate(timeout=60)
    assert (job.returncode, out) == (75, "launch: ended with 75\n"), err
    assert cluster.calls("--accelerator") == ["--accelerator tpu train --out a b"]
    # The package's own data is code; the clone's is data.
    assert (tmp_path / "home/mine/crossguard_jax/data").is_dir()
    assert not (tmp_path / "home/mine/data").exists()
