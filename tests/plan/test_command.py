"""The verb: what it wants, what it says, and that nothing is compiled twice."""

import importlib.util
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from crossguard_jax import cli
from crossguard_jax.core.config import load_config
from crossguard_jax.plan import measure
from crossguard_jax.plan.chips import CHIPS, Machine
from crossguard_jax.plan.planning import make_plan
from crossguard_jax.plan.tables import scaling_figure, scaling_table, table
from crossguard_jax.runtime import preemption
from crossguard_jax.runtime.exits import AGAIN

HERE = Machine("here", CHIPS["v5e"], 1)
CONFIG = "configs/guard.py:tiny"


@pytest.fixture(autouse=True)
def _plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSGUARD_PLANS", str(tmp_path))
    # The signals of the process that runs the tests stay its own.
    monkeypatch.setattr(preemption, "listen", lambda **_: None)


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


COMPILES = """
import hashlib
from crossguard_jax import cli
from crossguard_jax.plan import command

def compiles(*_):
    print("compiling", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # minutes in C, which no signal ends

command.devices_of, command.make_plan = lambda _: [], compiles
raise SystemExit(cli.main())
"""
ARGUMENTS = ["plan", "--config", CONFIG, "--topology", "v5litepod-4", "--kind", "score"]


STOPPED = "crossguard: told to stop by SIGTERM; start it again"


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Exit code and lines of stderr after a signal."""
    process.terminate()
    err = process.communicate(timeout=60)[1]
    return process.returncode, err.splitlines()


def test_a_signal_ends_a_compilation_at_once_and_in_a_line() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", COMPILES, *ARGUMENTS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert "compiling\n" in process.stdout
    assert ended(process) == (AGAIN, [STOPPED])


def handles(process: subprocess.Popen[str], number: int) -> bool:
    """Whether a process has a handler of a signal."""
    mask = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())
    return mask is not None and bool(int(mask[1], 16) >> (number - 1) & 1)


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="no TPU compiler: pip install -e '.[plan]'"
)
def test_libtpu_prints_no_stack_where_a_plan_is_told_to_stop() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "crossguard_jax", *ARGUMENTS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # As it is loaded it takes the signals that nobody has.
    while process.poll() is None and not handles(process, signal.SIGILL):
        time.sleep(0.05)
    assert ended(process) == (AGAIN, [STOPPED])
