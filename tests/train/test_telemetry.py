"""What a run says of itself: how fast it is, what it runs on, where its time goes."""

import json
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from crossguard_jax.io import jsonl
from crossguard_jax.train import telemetry
from crossguard_jax.train.loop import read_metrics
from crossguard_jax.train.telemetry import PROFILE, Telemetry, note, peak_flops
from tests.train.stopped_run import STEPS, Wait, run


@pytest.mark.parametrize(
    ("kind", "flops"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("cpu", None),
    ],
)
def test_a_devices_peak_goes_by_its_kind(kind: str, flops: float | None) -> None:
    assert peak_flops(kind) == flops


def counted(clock: list[float], kind: str, mask: bool = True) -> dict[str, float]:
    """Two processes' two devices: four steps of 3 s, 1 s of each waiting, 8 rows of 10 tokens each
    in all, of a model of 1e12 parameters."""
    devices = [SimpleNamespace(device_kind=kind)] * 2
    figures = Telemetry(10**12, 2.0, devices)
    assert figures.figures(9) == {}, "the first step compiles"
    figures.start()
    for _ in range(4):
        with figures.waiting():
            clock[0] += 1.0
        clock[0] += 2.0
        batch = {"x": np.zeros((4, 3))} | (
            {"attention_mask": np.tile(np.arange(12) < 10, (4, 1))} if mask else {}
        )
        figures.step(batch)
    values = figures.figures(left=5)
    assert figures.figures(left=5) == {}, "counted once"
    return values


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [100.0]
    monkeypatch.setattr(telemetry.time, "monotonic", lambda: clock[0])
    return clock


def test_rates_are_those_of_all_processes_and_of_real_tokens(clock: list[float]) -> None:
    values = counted(clock, "TPU v5p")
    assert values["rows_per_second"] == pytest.approx(8 / 3)
    assert values["tokens_per_second"] == pytest.approx(80 / 3)
    assert values["seconds_per_step"] == pytest.approx(3.0)
    assert values["data_wait"] == pytest.approx(1 / 3)
    assert values["eta_seconds"] == pytest.approx(15.0)
    assert values["mfu_4n"] == pytest.approx(4e12 * 80 / 3 / (2 * 459e12))
    assert note(values) == "2.7 rows/s, MFU 12% (4N), 33% of the time waiting for data"


def test_what_is_not_to_be_known_is_left_out(clock: list[float]) -> None:
    assert "mfu_4n" not in counted(clock, "cpu")
    assert "tokens_per_second" not in counted(clock, "TPU v5p", mask=False)


def test_a_run_folder_explains_itself_and_its_metrics_are_arithmetic_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["crossguard", "train", "--out", "a folder"])
    monkeypatch.setenv(PROFILE, "2")
    for _ in range(2):
        run(tmp_path, Wait())
    about = json.loads((tmp_path / "run.json").read_text())
    assert [start["from_step"] for start in about["starts"]] == [0, STEPS]
    first = about["starts"][0]
    assert shlex.split(first["command"]) == sys.argv
    assert first["devices"] == "1 x cpu" and first["processes"] == 1
    assert {"python", "jax", "flax", "orbax-checkpoint"} <= first["versions"].keys()
    assert about["identity"] == {}
    rows = [row for _, row in jsonl.read_jsonl(tmp_path / "telemetry.jsonl")]
    assert rows and all(row["rows_per_second"] > 0 for row in rows)
    assert rows[-1]["step"] == STEPS and rows[-1]["eta_seconds"] == 0
    assert not {"rows_per_second", "eta_seconds"} & {k for m in read_metrics(tmp_path) for k in m}
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
