"""A checkpoint that was not finished does not count, and is said; one that is damaged afterwards is
one line that names it and the way back, whatever was lost."""

import shutil
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.train.checkpoint import Checkpoints

# What TensorStore's threads still had in hand when the first of them failed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

STATE = {"w": jnp.arange(100.0), "b": jnp.zeros((3, 3))}
IDENTITY = {"config": "a"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with checkpoints of steps 2 and 4, 4 the best."""
    folder = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(folder, IDENTITY)
    for step in (2, 4):
        checkpoints.save(step, STATE, {"place": step}, {"best": {}})
    checkpoints.save_best(4, STATE)
    checkpoints.close()
    return folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def cut(pattern: str) -> Callable[[Path], None]:
    """Leaves a third of the files of that name."""

    def damage(checkpoint: Path) -> None:
        files = [path for path in checkpoint.glob(pattern) if path.is_file()]
        assert files, f"no {pattern} in {checkpoint}"
        for file in files:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])

    return damage


def without(pattern: str) -> Callable[[Path], None]:
    """Removes the files and folders of that name."""

    def damage(checkpoint: Path) -> None:
        for path in list(checkpoint.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def other_json(checkpoint: Path) -> None:
    (checkpoint / "meta" / "metadata").write_text("[1]")


ARRAYS = {
    "arrays cut": cut("*/d/*"),
    "arrays gone": without("*/d/*"),
    "list of arrays cut": cut("*/manifest.ocdbt"),
    "description cut": cut("*/_METADATA"),
}
HOST = {
    "no arrays": without("state"),
    "place of the data cut": cut("data/metadata"),
    "place of the data gone": without("data/metadata"),
    "identity cut": cut("meta/metadata"),
    "no identity": without("meta"),
    "identity of another shape": other_json,
}


UNFINISHED = {
    "nothing in it": without("*"),
    "no commit marker": without("_CHECKPOINT_METADATA"),
    "the commit marker cut": cut("_CHECKPOINT_METADATA"),
    "a marker before the commit": lambda checkpoint: (
        checkpoint / "_CHECKPOINT_METADATA"
    ).write_text('{"commit_timestamp_nsecs": null}'),
}


@pytest.mark.parametrize("damage", UNFINISHED.values(), ids=UNFINISHED)
def test_a_step_without_its_commit_marker_is_never_restored(
    damage: Callable[[Path], None], copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("latest", "best"):
        damage(copy / kind / "4")
    (copy / "latest" / "6.orbax-checkpoint-tmp").mkdir()
    checkpoints = Checkpoints(copy, IDENTITY)
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(" was never finished")[0] for line in lines] == [
        str(copy / "latest" / "4"),
        str(copy / "best" / "4"),
    ]
    restored = checkpoints.restore(STATE)
    assert restored is not None and restored[1] == {"place": 2}
    assert checkpoints.restore_best(STATE) is None
    # What is saved anew takes its place.
    checkpoints.save(4, STATE, {"place": 5}, {"best": {}})
    checkpoints.wait()
    assert checkpoints.restore(STATE)[1] == {"place": 5}
    assert sorted(path.name for path in (copy / "latest").iterdir()) == ["2", "4"]
    checkpoints.close()


@pytest.mark.parametrize("damage", [*ARRAYS.values(), *HOST.values()], ids=[*ARRAYS, *HOST])
def test_a_damaged_newest_checkpoint_names_the_one_before_it(
    damage: Callable[[Path], None], copy: Path
) -> None:
    damage(copy / "latest" / "4")
    checkpoints = Checkpoints(copy, IDENTITY)
    with pytest.raises(UserError, match="latest/4 is damaged .* to go on from step 2$") as caught:
        checkpoints.restore(STATE)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300 + len(str(copy))
    checkpoints.close()
    shutil.rmtree(copy / "latest" / "4")
    checkpoints = Checkpoints(copy, IDENTITY)
    restored = checkpoints.restore(STATE)
    assert restored is not None and restored[1] == {"place": 2}
    checkpoints.close()


def test_the_only_checkpoint_damaged_means_to_begin_anew(copy: Path) -> None:
    shutil.rmtree(copy / "latest" / "2")
    ARRAYS["arrays cut"](copy / "latest" / "4")
    with pytest.raises(UserError, match="latest/4 is damaged .* to begin anew$"):
        Checkpoints(copy, IDENTITY).restore(STATE)


@pytest.mark.parametrize("damage", ARRAYS.values(), ids=ARRAYS)
def test_a_damaged_best_checkpoint_offers_the_last_step(
    damage: Callable[[Path], None], copy: Path
) -> None:
    damage(copy / "best" / "4")
    with pytest.raises(UserError, match="best/4 is damaged .* to take the last step's instead$"):
        Checkpoints(copy, IDENTITY).restore_best(STATE)
    shutil.rmtree(copy / "best" / "4")
    assert Checkpoints(copy, IDENTITY).restore_best(STATE) is None


def test_memory_that_runs_out_is_not_called_damage(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(copy, IDENTITY)

    def full(*args: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(checkpoints._latest, "restore", full)
    with pytest.raises(MemoryError):
        checkpoints.restore(STATE)
