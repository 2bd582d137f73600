"""The verb: what it wants, what it says, and that nothing is compiled twice."""

import json
from pathlib import Path

import jax
import pytest

from crossguard_jax import cli
from crossguard_jax.core.config import load_config
from crossguard_jax.plan import measure
from crossguard_jax.plan.chips import CHIPS, Machine
from crossguard_jax.plan.planning import make_plan
from crossguard_jax.plan.tables import scaling_figure, scaling_table, table

HERE = Machine("here", CHIPS["v5e"], 1)
CONFIG = "configs/guard.py:tiny"


@pytest.fixture(autouse=True)
def _plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSGUARD_PLANS", str(tmp_path))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--topology", "v5litepod-16"], "give --config"),
        (["--config", CONFIG], "give --topology"),
        (["--config", CONFIG, "--topology", "v5litepod-16", "--rows", "-1"], "--rows -1: 0 or"),
    ],
)
def test_usage(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", *argv]) == cli.USAGE
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--config", CONFIG, "--topology", ""], "no TPU slice ''"),
        (["--config", CONFIG, "--topology", "v5e-16"], "no TPU slice 'v5e-16': there is"),
    ],
)
def test_an_unknown_slice_is_one_line(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", *argv]) == cli.FAILED
    assert words in capsys.readouterr().err


def test_a_plan_of_this_machine_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    config, devices = load_config(CONFIG), jax.devices()[:1]
    plan = make_plan(config, "score", HERE, devices, rows=2, length=32)
    (program,) = plan.programs
    assert program.temporaries > 0 and program.moved > 0 and program.flops == program.needed
    assert program.kinds["base"] > program.kinds["batch"]
    monkeypatch.setattr(measure, "_compile", None)
    again = make_plan(config, "score", HERE, devices, rows=2, length=32)
    assert again == plan
    rows = [json.loads(json.dumps(plan.as_dict()))] * 2
    assert f"scoring | here, fsdp=1 | 2 x 32 | {program.memory / 2**30:.2f} of 15.75" in table(rows)
    assert scaling_table(rows).count("100%") == 4
    assert scaling_figure(rows).axes[0].lines
