"""How a sweep knows that a verb refuses what an earlier configuration left, and what it then does
with it."""

from pathlib import Path

import jax.numpy as jnp
import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.impforge.forge import _claim
from crossguard_jax.runtime.shards import claim
from crossguard_jax.sweeps.steps import ANOTHER_RUNS, _last_line, put_aside
from crossguard_jax.systems.results import Results
from crossguard_jax.train.checkpoint import Checkpoints


def checkpoint(folder: Path, identity: dict[str, str]) -> None:
    checkpoints = Checkpoints(folder, identity)
    try:
        if checkpoints.restore({"w": jnp.zeros(1)}) is None:
            checkpoints.save(1, {"w": jnp.zeros(1)}, {}, {})
    finally:
        checkpoints.close()


def verdicts(folder: Path, identity: dict[str, str]) -> None:
    Results(folder / "verdicts.jsonl", identity).close()


def candidates(folder: Path, identity: dict[str, str]) -> None:
    _claim(folder / "forge.json", identity)


@pytest.mark.parametrize("start", [checkpoint, candidates, claim, verdicts])
def test_what_refuses_another_runs_files_says_so_in_the_words_that_a_sweep_knows(
    start, tmp_path
) -> None:
    for _ in range(2):
        start(tmp_path, {"config": "a"})
    with pytest.raises(UserError, match=ANOTHER_RUNS):
        start(tmp_path, {"config": "b"})


def test_what_is_put_aside_displaces_nothing(tmp_path) -> None:
    for content in ("a", "b"):
        (tmp_path / "train").mkdir()
        (tmp_path / "train" / "adapter").write_text(content)
        put_aside(tmp_path / "train")
    put_aside(tmp_path / "train")
    kept = {path.parent.name: path.read_text() for path in tmp_path.glob("*/adapter")}
    assert kept == {"train.1": "a", "train.2": "b"}


def test_an_error_is_of_this_try_and_not_of_an_earlier_one_in_the_same_log(tmp_path) -> None:
    log = tmp_path / "log.txt"
    log.write_text(f"crossguard: a checkpoint {ANOTHER_RUNS}\n")
    before = log.stat().st_size
    with log.open("a") as file:
        file.write("  Illegal instruction\n")
    assert _last_line(log, before) == "Illegal instruction"
