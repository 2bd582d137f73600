"""Two processes and four do what one does: batches, gradients, verdicts, and one of each file."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from tests.random_llava import llava_folder  # noqa: F401  # a fixture
from tests.runtime.several import run_verbs

pytestmark = [pytest.mark.devices, pytest.mark.timeout(3600)]  # each process compiles for itself

SEVERAL = (2, 4)

CONFIG = """
import runpy

from ml_collections import ConfigDict

def get_config(variant="small"):
    config = runpy.run_path({base!r})["tiny"]()
    config.model.path = {model!r}
    row = dict(config.data.sources.implicit.to_dict(), reader="table", limit=0, weight=1.0)
    pictures, words = {pictures!r}, {words!r}
    config.data.sources = ConfigDict({{
        "pictures": dict(row, path=pictures), "words": dict(row, path=words, weight=0.5)}})
    config.data.validation = ConfigDict({{"pictures": dict(row, path=pictures)}})
    config.data.max_length = 48
    config.data.augment.update({{"long": 0.0, "injected": 0.0}})
    config.optim.update({{"learning_rate": 5e-3, "warmup_steps": 1}})
    config.train.update({{"steps": {steps}, "batch_size": 8, "eval_every": 4, "save_every": 4}})
    config.mesh = {{"data": 1, "fsdp": -1, "tensor": 1}}
    if variant == "pictures":  # one program, and the last step's adapter
        del config.data.sources.words
        config.train.update({{"keep_best": "", "eval_every": 0}})
    return config
"""


def write_rows(folder: Path, n: int = 16) -> tuple[Path, Path]:
    """A table of rows with two pictures, which makes one shape of all batches, and one of texts
    alone; so pictures lie beside other rows than their own."""
    rng = np.random.default_rng(0)
    shown, plain = [], []
    for i in range(n):
        names = [f"{i}-{k}.png" for k in range(2)]
        for name in names:
            pixels = rng.integers(0, 256, (24, 24, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name)
        label = ("safe", "unsafe")[i % 2]
        text = f"can i touch the red one at {i} ?"
        shown.append({"id": f"p{i}", "image": names, "text": text, "label": label})
        plain.append({"id": f"w{i}", "text": f"tell me {i}", "label": label, "image": None})
    files = folder / "pictures.jsonl", folder / "words.jsonl"
    for file, rows in zip(files, (shown, plain), strict=True):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files


def write_config(folder: Path, model: Path, repository: Path, steps: int) -> tuple[Path, Path]:
    """A training of a few steps, and the rows that it is of."""
    pictures, words = write_rows(folder)
    config = folder / "small.py"
    fields = {"pictures": str(pictures), "words": str(words), "model": str(model)}
    base = str(repository / "configs" / "guard.py")
    config.write_text(CONFIG.format(base=base, steps=steps, **fields))
    return config, pictures


@pytest.fixture(scope="module")
def made(llava_folder: Path, tmp_path_factory: pytest.TempPathFactory, repository: Path):  # noqa: F811
    """The same verbs by one process, by two and by four: a folder of each."""
    folder = tmp_path_factory.mktemp("several")
    config, pictures = write_config(folder, llava_folder, repository, steps=8)
    outs = {n: folder / str(n) for n in (1, *SEVERAL)}
    printed = {}
    for n, out in outs.items():
        adapter = out / "run" / "adapter"
        printed[n] = run_verbs(
            n,
            [
                ["train", "--config", f"{config}:small", "--out", out / "run"],
                ["evaluate", "--model", f"guard={llava_folder}+{adapter}", "--data", pictures]
                + ["--out", out / "evaluate", "--store", "", "--batch-size", 4],
                ["score", "--model", llava_folder, "--adapter", adapter, "--input", pictures]
                + ["--output", out / "scored.jsonl", "--store", "", "--batch-size", 4],
                ["export", "--model", llava_folder, "--adapter", adapter]
                + ["--out", out / "merged", "--mesh", f"fsdp={n}"],
            ],
        )
    return outs, printed


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("n", SEVERAL)
def test_the_first_alone_talks_and_says_what_computes(made, n: int) -> None:
    _, printed = made
    # Gloo has a line of its own for each process.
    first, *others = (out.splitlines() for out in printed[n])
    assert first[0].startswith(f"{n} cpu devices, {n} processes; ")
    for other in others:
        assert [line for line in other if not line.startswith("[Gloo]")] == []
    assert printed[1][0].startswith("1 cpu device, 1 process; ")


@pytest.mark.parametrize("n", SEVERAL)
def test_evaluation_and_the_losses_are_one_processes(made, n: int) -> None:
    outs, _ = made
    one, several = (rows_of(outs[k] / "run" / "metrics.jsonl") for k in (1, n))
    assert [row.keys() for row in one] == [row.keys() for row in several]
    for a, b in zip(one, several, strict=True):
        np.testing.assert_allclose([*a.values()], [*b.values()], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n", SEVERAL)
def test_adapters_are_one_processes(made, n: int) -> None:
    outs, _ = made
    one, several = (
        load_file(outs[k] / "run" / "adapter" / "adapter_model.safetensors") for k in (1, n)
    )
    assert one.keys() == several.keys()
    apart = np.sqrt(sum(((one[k] - several[k]) ** 2).sum() for k in one))
    norm = np.sqrt(sum((one[k] ** 2).sum() for k in one if "lora_B" in k))  # zero at the start
    print(f"{n}: the best adapter of 8 steps, {apart / norm:.1e} of the update's norm apart")
    assert apart <= 1e-3 * norm


@pytest.mark.parametrize("n", SEVERAL)
def test_each_row_is_scored_once_in_order_with_one_processes_verdict(made, n: int) -> None:
    outs, _ = made
    for name in ("scored.jsonl", "evaluate/guard.verdicts.jsonl"):
        one, several = (rows_of(outs[k] / name) for k in (1, n))
        assert [row["id"] for row in several] == [f"p{i}" for i in range(16)]
        assert [r["unsafe"] for r in one] == [r["unsafe"] for r in several]
        apart = max(abs(a["p_unsafe"] - b["p_unsafe"]) for a, b in zip(one, several, strict=True))
        print(f"{n}: {name}: verdicts at most {apart:.1e} apart")
        assert apart <= 1e-4


@pytest.mark.parametrize("n", SEVERAL)
def test_an_export_is_one_processes_and_whole(made, n: int) -> None:
    outs, _ = made
    folders = [outs[k] / "merged" for k in (1, n)]
    one, several = ({p.name for p in folder.iterdir()} for folder in folders)
    assert one == several
    a, b = (load_file(folder / "model.safetensors") for folder in folders)
    assert a.keys() == b.keys()
    assert max(np.abs(a[k] - b[k]).max() for k in a) <= 1e-4
