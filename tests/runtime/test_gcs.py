"""Runs in a bucket, with the clients that a user has: gcsfs, google-cloud-storage, TensorStore.

The bucket is a server on this machine. Every start has a scratch folder of its own, so that nothing
of a run is here but what it fetches.
"""

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, load_file

from crossguard_jax.runtime.exits import AGAIN
from tests.random_llava import llava_folder  # noqa: F401  # a fixture
from tests.runtime.fake_gcs import Bucket, serving
from tests.runtime.several import REPOSITORY, run_verbs
from tests.runtime.test_several import rows_of, write_config

pytest.importorskip("gcsfs", reason="pip install gcsfs")
pytestmark = [pytest.mark.devices, pytest.mark.timeout(3600)]  # each process compiles for itself
STEPS = 8
ADAPTER, FINAL = "adapter/adapter_model.safetensors", "final.npy"
MARKER = re.compile(r"runs/one/latest/\d+/commit_success.txt")

IMMUNIZE = """
from tests.cmai.immunize_run import short

def get_config(variant="tiny"):
    config = short(variant, steps=2)
    config.mesh.update({"data": 1, "fsdp": -1, "tensor": 1})
    config.cmcv.train.update({"steps": 3, "save_every": 3})
    return config
"""


@pytest.fixture
def bucket(monkeypatch):
    """A bucket that this process's children find."""
    with serving() as bucket:
        for name, value in bucket.environ().items():
            monkeypatch.setenv(name, value)
        yield bucket


@pytest.fixture(scope="module")
def made(llava_folder, tmp_path_factory, repository):  # noqa: F811
    """A configuration, its rows, and a run on a disk that nobody disturbs."""
    folder = tmp_path_factory.mktemp("made")
    config, pictures = write_config(folder, llava_folder, repository, STEPS)
    whole = folder / "whole"
    code, _, errors = finish(train(config, str(whole), folder / "scratch"))
    assert code == 0, errors
    return config, pictures, whole


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """The shorter one on a disk."""
    folder = tmp_path_factory.mktemp("probed")
    code, _, errors = finish(probe(str(folder / "whole"), folder / "scratch"))
    assert code == 0, errors
    return folder / "whole"


def start(program: list[object], out: str, scratch: Path, **environ: str) -> subprocess.Popen:
    """A verb, as a user starts it."""
    scratch.mkdir()
    return subprocess.Popen(
        [sys.executable, *map(str, program), "--out", out],
        env=os.environ
        | {"JAX_PLATFORMS": "cpu", "TMPDIR": str(scratch), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
        | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def train(config: Path, *where: Any, **environ: str) -> subprocess.Popen:
    """A training of some minutes."""
    program = ["-m", "crossguard_jax", "train", "--config", f"{config}:small"]
    return start(program, *where, **environ)


def probe(*where: Any) -> subprocess.Popen:
    """A run of some seconds, by the same loop."""
    return start([Path(__file__).with_name("remote_run.py"), "probe"], *where)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, errors = process.communicate(timeout=900)
    return process.returncode, out, errors


def is_the_whole_run(bucket: Bucket, whole: Path, result: str) -> None:
    """What a bucket has of a run is, bit for bit, what a disk has of the undisturbed one."""
    for name in (result, "metrics.jsonl"):
        assert bucket.blobs[f"runs/one/{name}"].content == (whole / name).read_bytes(), name
    marked = {name.split("/")[3] for name in bucket.blobs if MARKER.fullmatch(name)}
    assert marked == {path.name for path in (whole / "latest").iterdir()}


def ours(scratch: Path) -> list[Path]:
    return [path for path in scratch.iterdir() if path.name.startswith("crossguard-")]


def test_a_training_ends_in_a_bucket_as_on_a_disk(made, bucket, tmp_path) -> None:
    config, _, whole = made
    scratch = tmp_path / "scratch"
    cache = {"JAX_COMPILATION_CACHE_DIR": "gs://bucket/cache"}
    code, out, errors = finish(train(config, "gs://bucket/runs/one", scratch, **cache))
    assert code == 0, errors
    assert re.search(r"adapter of step \d: gs://bucket/runs/one/adapter\n", out)
    is_the_whole_run(bucket, whole, ADAPTER)
    assert any(name.startswith("cache/jit_") for name in bucket.blobs)
    assert ours(scratch) == []
    naming = [n for n, b in bucket.blobs.items() if str(scratch).encode() in b.content]
    assert naming == [], "no file names a folder that is gone"


def test_told_to_stop_it_goes_on_where_nothing_of_it_is(made, bucket, tmp_path) -> None:
    config, _, whole = made
    bucket.held = "latest/4/commit_success"
    process = train(config, "gs://bucket/runs/one", tmp_path / "first")
    assert bucket.reached.wait(600)
    process.send_signal(signal.SIGTERM)
    bucket.release.set()
    code, _, errors = finish(process)
    assert code == AGAIN, errors
    assert re.search(r"SIGTERM: saved after step \d in gs://bucket/runs/one; start it", errors)
    assert f"runs/one/{ADAPTER}" not in bucket.blobs
    code, _, errors = finish(train(config, "gs://bucket/runs/one", tmp_path / "second"))
    assert code == 0, errors
    is_the_whole_run(bucket, whole, ADAPTER)


@pytest.mark.parametrize("upload", ["state/ocdbt.*/d/", "_CHECKPOINT_METADATA", "commit_success"])
def test_killed_in_an_upload_it_goes_on_from_the_save_before(
    upload, probed, bucket, tmp_path
) -> None:
    bucket.held = f"latest/8/{upload}"
    process = probe("gs://bucket/runs/one", tmp_path / "first")
    assert bucket.reached.wait(300)
    process.kill()
    process.wait()
    bucket.held = ""
    code, _, errors = finish(probe("gs://bucket/runs/one", tmp_path / "second"))
    assert code == 0, errors
    starts = re.findall(r'"from_step": (\d+)', bucket.blobs["runs/one/run.json"].content.decode())
    assert starts == ["0", "4"]
    is_the_whole_run(bucket, probed, FINAL)


def test_a_server_that_fails_now_and_then_costs_time_alone(probed, bucket, tmp_path) -> None:
    bucket.failing = 40
    code, _, errors = finish(probe("gs://bucket/runs/one", tmp_path / "scratch"))
    assert code == 0, errors
    assert bucket.failures > 5
    is_the_whole_run(bucket, probed, FINAL)


@pytest.mark.parametrize(
    "address, mend",
    [
        ("gs://nowhere/runs/one", "there is no such bucket; make it, or correct its name"),
        ("gs://bucket/runs/one", "give this machine's account the right to list, write and delete"),
    ],
)
def test_what_a_bucket_refuses_is_one_line(address, mend, bucket, tmp_path) -> None:
    bucket.read_only = True
    code, _, errors = finish(probe(address, tmp_path / "scratch"))
    assert code == 1
    (line,) = [line for line in errors.splitlines() if line]
    assert line.startswith(f"crossguard: {address}: cannot be ") and mend in line
    assert ours(tmp_path / "scratch") == []


def test_two_processes_that_share_no_disk_write_one_run(made, bucket, llava_folder) -> None:  # noqa: F811
    config, pictures, whole = made
    run_verbs(
        2,
        [
            ["train", "--config", f"{config}:small", "--out", "gs://bucket/runs/one"],
            ["evaluate", "--model", f"guard={llava_folder}", "--data", pictures, "--store", ""]
            + ["--out", "gs://bucket/evaluate", "--batch-size", 4],
            ["export", "--model", llava_folder, "--out", "gs://bucket/merged", "--mesh", "fsdp=2"],
        ],
    )
    writes = Counter(bucket.writes)
    shards = f"runs/one/latest/{STEPS}/state/ocdbt.process_"
    written = {n: k for n, k in writes.items() if n.startswith(shards) and "/d/" in n}
    assert {name.removeprefix(shards)[0] for name in written} == {"0", "1"}
    assert set(written.values()) == {1}
    assert {k for name, k in writes.items() if name.startswith(("runs/one/data/", "merged/"))} == {
        1
    }
    one, two = (
        load(content)
        for content in ((whole / ADAPTER).read_bytes(), bucket.blobs[f"runs/one/{ADAPTER}"].content)
    )
    apart = np.sqrt(sum(((one[k] - two[k]) ** 2).sum() for k in one))
    norm = np.sqrt(sum((one[k] ** 2).sum() for k in one if "lora_B" in k))  # zero at the start
    assert apart <= 1e-3 * norm
    verdicts = bucket.blobs["evaluate/guard.verdicts.jsonl"].content
    assert verdicts.count(b"\n") == len(rows_of(pictures))
    model = load(bucket.blobs["merged/model.safetensors"].content)
    assert model.keys() == load_file(llava_folder / "model.safetensors").keys()


def test_two_processes_forge_and_immunize_into_a_bucket(bucket, tmp_path) -> None:
    from crossguard_jax.impforge.triplets import write_triplets
    from tests.impforge.ppo.test_rewriter import OVERRIDES, world

    write_triplets(world(16), tmp_path)
    (tmp_path / "short.py").write_text(IMMUNIZE)
    few = ("ppo.iterations=1", "gate.kind=none", "forge.samples=2", "forge.keep=1")
    least = [f"forge.least.{each}=-1.0" for each in ("safety", "semantic", "overlap", "words")]
    run_verbs(
        2,
        [
            ["forge", "--config", "configs/impforge.py:tiny", *OVERRIDES, "--mesh", "fsdp=-1"]
            + [f"--config.{each}" for each in (*few, *least)]
            + ["--triplets", tmp_path / "triplets.jsonl", "--out", "gs://bucket/forged"]
            + ["--export-rewriter", "gs://bucket/rewriter"],
            ["immunize", "--config", f"{tmp_path / 'short.py'}:tiny"]
            + ["--out", "gs://bucket/immunized"],
        ],
    )
    there = set(bucket.blobs)
    assert {"forged/train.jsonl", "forged/data_card.md", "rewriter/adapter_config.json"} <= there
    assert bucket.blobs["forged/candidates.jsonl"].content.count(b"\n") == 32
    assert {"immunized/model/cmai.json", "immunized/mbat/metrics.jsonl"} <= there
    for folder in (
        "forged/rewriter/latest/1",
        "immunized/check/latest/3",
        "immunized/mbat/latest/2",
    ):
        assert f"{folder}/commit_success.txt" in there
