"""Runs that fail, are killed and are gone on with; what they came to, and who worked on them."""

import argparse
import json
import math
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.metrics import Estimate
from crossguard_jax.sweeps import command
from crossguard_jax.sweeps.arguments import add_arguments
from crossguard_jax.sweeps.summary import over_seeds

CONFIG = """
from ml_collections import ConfigDict
VARIANTS = ["base", "good", "bad", "killed"]
def get_config(variant):
    config = ConfigDict({"train": {"seed": 0, "trouble": ""}, "optim": {"learning_rate": 0.1}})
    return config
"""
THEN = "evaluate --model {run} --data rows.jsonl"
PROGRAM = "tests.sweeps.fake_verbs"


@pytest.fixture
def configs(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(CONFIG)
    return f"{tmp_path}/mine.py:base"


def arguments(configs: str, folder: Path, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args, rest = parser.parse_known_args(
        ["train", "--config", configs, "--out", str(folder), *words]
    )
    args.rest, args.usage_error = rest, parser.error
    return args


def sweep(configs: str, folder: Path, *words: str) -> int:
    return command.main(arguments(configs, folder, *words), lambda step: None, PROGRAM)


def report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def tries(folder: Path) -> dict[str, list[str]]:
    return {
        path.parts[-3]: path.read_text().splitlines()
        for path in sorted(folder.glob("runs/*/train/steps"))
    }


RATES = ("--set", "optim.learning_rate=0.2,0.4", "--seeds", "0", "2", "--then", THEN)


needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="no Ray: pip install -e '.[ray]'")
ON_RAY = pytest.param(("--on", "ray", "--workers", "2"), marks=needs_ray)


@pytest.mark.parametrize("where", [(), ("--on", "local", "--workers", "2"), ON_RAY])
def test_a_sweep_is_a_table_of_means_and_paired_differences(configs, tmp_path, where) -> None:
    folder = tmp_path / "out"
    assert sweep(configs, folder, *RATES, *where) == 0
    figures = report(folder)
    assert figures["base.eval.auroc"]["value"] == pytest.approx(0.11)
    assert figures["learning_rate=0_4.adapter.all.asr"]["value"] == pytest.approx(0.59)
    # Seeds differ by as much in every row, so that in pairs nothing is left of it.
    less = figures["learning_rate=0_4.less_base.adapter.all.asr"]
    assert (less["value"], less["high"] - less["low"]) == pytest.approx((-0.3, 0.0), abs=1e-12)
    spread = figures["base.eval.auroc"]
    # Of two values 0.02 apart: Student's t of one degree of freedom, times half of that.
    assert spread["high"] - spread["value"] == pytest.approx(12.706 * 0.01, rel=1e-4)
    assert len(tries(folder)) == 6 and all(len(each) == 1 for each in tries(folder).values())
    for name in ("report.md", "report.html", "figures.csv", "plots/rows.png", "tables/rows.csv"):
        assert (folder / name).stat().st_size > 0


def test_a_second_start_does_nothing_and_a_larger_one_what_is_new(configs, tmp_path) -> None:
    folder = tmp_path / "out"
    assert sweep(configs, folder, *RATES) == 0
    before = report(folder)
    assert sweep(configs, folder, *RATES) == 0
    assert report(folder) == before
    assert sweep(configs, folder, *RATES[:-2], "--seeds", "0", "1", "2", "--then", THEN) == 0
    assert {name: len(each) for name, each in tries(folder).items()} == {
        f"{row}-{seed}": 1
        for row in ("base", "learning_rate=0_2", "learning_rate=0_4")
        for seed in (0, 1, 2)
    }


def test_an_edited_configuration_is_run_anew_beside_what_the_old_one_left(
    configs, tmp_path
) -> None:
    folder, file = tmp_path / "out", tmp_path / "mine.py"
    for n, rate in enumerate(("0.1", "0.3", "0.5")):
        file.write_text(CONFIG.replace('"learning_rate": 0.1', f'"learning_rate": {rate}'))
        assert sweep(configs, folder, "--then", THEN) == 0
        assert report(folder)["base.eval.auroc"]["value"] == float(rate)
        assert report(folder)["base.adapter.all.asr"]["value"] == 1 - float(rate)
        assert len(tries(folder)["base-0"]) == 1
        put_aside = sorted(folder.glob("runs/base-0/*.*/adapter"))
        assert [path.read_text() for path in put_aside] == ["0.1", "0.3"][:n]


def test_a_failed_run_is_a_row_that_says_so_and_the_others_go_on(configs, tmp_path, capsys) -> None:
    folder = tmp_path / "out"
    words = ("--set", "train.trouble=error,kill,always", "--seeds", "0", "1")
    assert sweep(configs, folder, *words) == 1
    shown = capsys.readouterr().out
    assert "trouble=error-0 failed: train: row 3: no such picture (exit code 1" in shown
    assert "4 of 8 runs failed" in shown
    figures, page = report(folder), (folder / "report.md").read_text()
    assert "base.eval.auroc" in figures and "trouble=kill.eval.auroc" in figures
    assert not any(name.startswith(("trouble=error.", "trouble=always.")) for name in figures)
    assert "0 of 2" in page and "given up after 3 workers" in page
    counts = {name: len(each) for name, each in tries(folder).items() if name.endswith("-0")}
    assert counts == {"base-0": 1, "trouble=error-0": 1, "trouble=kill-0": 2, "trouble=always-0": 3}
    # What failed is tried again, and nothing else.
    assert sweep(configs, folder, *words) == 1
    again = {name: len(each) for name, each in tries(folder).items() if name.endswith("-0")}
    assert again == {**counts, "trouble=error-0": 2, "trouble=always-0": 6}


def started(configs: str, folder: Path, *words: str) -> "subprocess.Popen[bytes]":
    """A sweep in a process of its own, once its first run waits."""
    code = (
        "import sys; from pathlib import Path; from tests.sweeps.test_command import sweep\n"
        "sys.exit(sweep(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, configs, str(folder), *words])
    while not list(folder.glob("runs/*/train/waits")):
        assert process.poll() is None
        time.sleep(0.02)
    return process


WAITS = ("--config.train.trouble=wait",)


@pytest.mark.parametrize("where", [(), ("--on", "local", "--workers", "2")])
def test_a_killed_sweep_leaves_no_run_behind_and_goes_on(configs, tmp_path, where) -> None:
    folder = tmp_path / "out"
    process = started(configs, folder, *WAITS, *where)
    process.kill()
    process.wait()
    child = int(tries(folder)["base-0"][0].split()[0])
    while alive(child):
        time.sleep(0.02)
    assert not list(folder.glob("figures/*.json"))
    assert sweep(configs, folder, *WAITS, *where) == 0
    assert len(tries(folder)["base-0"]) == 2


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_told_to_stop_a_sweep_lets_its_run_save_first(configs, tmp_path) -> None:
    folder = tmp_path / "out"
    process = started(configs, folder, *WAITS)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75
    assert list(folder.glob("runs/*/train/saved"))


def test_tasks_of_an_array_do_a_part_each_and_the_last_one_reports(
    configs, tmp_path, monkeypatch
) -> None:
    folder = tmp_path / "out"
    for task in (0, 1):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
        monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
        assert sweep(configs, folder, *RATES, "--on", "array") == 0
        assert (folder / "report.json").exists() == (task == 1)
    assert len(tries(folder)) == 6


def test_a_dry_run_lists_runs_and_fields_and_runs_nothing(configs, tmp_path, capsys) -> None:
    folder = tmp_path / "out"
    assert sweep(configs, folder, *RATES, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "seed 0: to do, seed 2: to do" in shown and "6 runs" in shown
    assert "optim.learning_rate: 0.1 → 0.4" in shown
    assert not folder.exists()


@pytest.mark.parametrize("letter", ["a", "\N{CJK UNIFIED IDEOGRAPH-4E2D}"])
def test_rows_with_long_values_have_names_that_files_may_have(configs, tmp_path, letter) -> None:
    values = ",".join(300 * letter + end for end in "bc")
    assert sweep(configs, tmp_path / "out", "--set", f"train.trouble={values}") == 0
    assert len(tries(tmp_path / "out")) == 3


def test_of_a_run_that_leaves_no_figures_the_row_says_so(configs, tmp_path, monkeypatch) -> None:
    from crossguard_jax.sweeps import steps

    monkeypatch.setattr(steps, "figures_of", lambda out: {})
    assert sweep(configs, tmp_path / "out") == 1
    assert "left no figures" in (tmp_path / "out/report.md").read_text()


@pytest.mark.parametrize("words", [("--seeds", "1", "1"), ("--on", "mars")])
def test_what_is_no_sweep_is_refused(configs, tmp_path, words) -> None:
    with pytest.raises((UserError, SystemExit)):
        sweep(configs, tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def test_one_seed_keeps_the_interval_that_its_run_gave() -> None:
    estimate = Estimate(0.5, 0.4, 0.6, 100)
    assert over_seeds([estimate]) == estimate
    assert math.isnan(over_seeds([]).value)
