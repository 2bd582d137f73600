"""Four processes do what one does, and what four have left others go on with; recipes by both."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.random_llava import llava_folder  # noqa: F401  # a fixture
from tests.runtime.several import run_several
from tests.runtime.test_several import rows_of, write_config

pytestmark = [pytest.mark.devices, pytest.mark.timeout(3600)]  # each process compiles for itself
HERE = Path(__file__).parent
STEPS = 20


@pytest.fixture(scope="module")
def trained(llava_folder, tmp_path_factory, repository) -> dict[str, Path]:  # noqa: F811
    """Twenty steps by one process and by four; and the last four of them anew, by one and by two,
    from what four had left."""
    folder = tmp_path_factory.mktemp("many")
    config, _ = write_config(folder, llava_folder, repository, STEPS)
    folders = {name: folder / name for name in ("one", "four", "four_one", "four_two")}

    def train(n: int, out: Path) -> None:
        arguments = (f"{config}:pictures", str(out), str(out.with_suffix(".npz")))
        run_several(n, HERE / "gradient_run.py", *arguments)

    train(1, folders["one"])
    train(4, folders["four"])
    for n, name in ((1, "four_one"), (2, "four_two")):
        shutil.copytree(folders["four"], folders[name])
        shutil.rmtree(folders[name] / "latest" / str(STEPS))
        shutil.rmtree(folders[name] / "adapter")
        train(n, folders[name])
    return folders


def adapter(run: Path) -> dict[str, np.ndarray]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def test_the_first_gradient_of_four_processes_is_that_of_one(trained) -> None:
    one, four = (np.load(trained[n].with_suffix(".npz")) for n in ("one", "four"))
    assert one.files == four.files and len(one.files) > 20
    apart = {
        k: np.linalg.norm(one[k] - four[k]) / max(np.linalg.norm(one[k]), 1e-8) for k in one.files
    }
    print(f"gradients: worst tensor {max(apart.values()):.1e} of {len(apart)}")
    assert max(apart.values()) <= 1e-5


@pytest.mark.parametrize("name", ["four", "four_one", "four_two"])
def test_adapters_of_twenty_steps_are_those_of_one(trained, name: str) -> None:
    one, other = adapter(trained["one"]), adapter(trained[name])
    apart = np.sqrt(sum(((one[k] - other[k]) ** 2).sum() for k in one))
    norm = np.sqrt(sum((one[k] ** 2).sum() for k in one if "lora_B" in k))  # zero at the start
    print(f"{name}: adapters {apart / norm:.1e} of the update's norm apart")
    assert apart <= 1e-3 * norm


@pytest.mark.parametrize("n", [2, 4])
def test_several_processes_forge_one_data_set(n: int, tmp_path: Path) -> None:
    run_several(n, HERE / "recipes_run.py", "forge", str(tmp_path / "out"), str(tmp_path / "data"))
    rows = rows_of(tmp_path / "out" / "candidates.jsonl")
    # Sixteen triplets twice, in their order, whichever process wrote which.
    ids = [json.loads(line)["id"] for line in (tmp_path / "data" / "triplets.jsonl").open()]
    assert [row["triplet"] for row in rows] == 2 * ids
    assert rows_of(tmp_path / "out" / "train.jsonl")


@pytest.mark.parametrize("n", [2, 4])
def test_several_processes_immunize_one_model(n: int, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_several(n, HERE / "recipes_run.py", "immunize", str(out), str(tmp_path / "data"))
    assert (out / "model" / "cmai.json").exists() and (out / "model" / "noise_secret").exists()
    assert [row["step"] for row in rows_of(out / "mbat" / "metrics.jsonl")] == [2]
