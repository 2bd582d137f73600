"""Quickstart's run folder is a contract: this checks it with other people's tools."""

import json

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, LlavaForConditionalGeneration

from crossguard_jax import Guard
from crossguard_jax.cmai.folders import load_immunized
from crossguard_jax.core.config import load_config
from crossguard_jax.guard.guard import p_unsafe
from crossguard_jax.toy import quickstart
from crossguard_jax.toy.world.sources import records

pytestmark = pytest.mark.timeout(1800)  # all models are compiled, on however slow a machine

SOURCES = (
    "implicit",
    "explicit_text",
    "explicit_picture",
    "picture_only",
    "typographic",
    "benign_vqa",
    "talk",
)
ATTACKS = ("apgd", "selective", "square")
SHORT = [
    "--config.train.steps=6",
    "--config.train.batch_size=16",
    "--config.train.eval_every=3",
    "--config.train.save_every=3",
    "--config.optim.warmup_steps=1",
    *(f"--config.data.sources.{name}.limit=64" for name in SOURCES),
]
IMMUNIZE = [
    "--config.train.steps=2",
    "--config.train.save_every=2",
    "--config.train.batch_size=16",
    "--config.optim.warmup_steps=1",
    "--config.cmcv.train.steps=2",
    "--config.cmcv.train.batch_size=16",
    "--config.cmcv.optim.warmup_steps=1",
    *(f"--config.data.sources.{name}.limit=64" for name in SOURCES),
    "--config.data.validation.implicit.limit=320",
    "--config.data.validation.benign_vqa.limit=32",
    "--config.attack.epsilons=(0.0, 0.03)",
    "--config.attack.batch_size=8",
    *(f"--config.attack.attacks.{name}.steps=2" for name in ATTACKS),
    # Searches by gradients are long in compiling, and have tests of their own.
    *(f"--config.attack.attacks.{name}.search=noise" for name in ATTACKS if name != "square"),
]
FORGE = [
    *("--config.ppo.iterations=2", "--config.ppo.batch_size=16", "--config.ppo.save_every=2"),
    "--config.gate.picture.kind=none",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A quickstart of a few steps: everything but the learning."""
    folder = tmp_path_factory.mktemp("quickstart")
    assert again(folder) == folder / "report.html"
    return folder


def again(folder):
    return quickstart.run(folder, 16, SHORT, FORGE, 48, IMMUNIZE, attacked=8, from_scratch=True)


def rows(folder, split):
    return [json.loads(line) for line in (folder / "data" / f"{split}.jsonl").open()]


@pytest.mark.parametrize("shipped", sorted(quickstart.SHIPPED.iterdir()), ids=lambda p: p.name)
def test_a_shipped_adapter_finds_its_base_on_any_machine(shipped, tmp_path):
    Guard.from_pretrained(shipped).save_pretrained(tmp_path, format="peft")
    for folder in (shipped, tmp_path):
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "toy://llava"


def test_report_names_every_figure_with_its_interval(folder):
    report = json.loads((folder / "report.json").read_text())
    for system in ("guard.full", "guard.immunized", "guard.explicit_only", "base"):
        for name in ("implicit.asr", "implicit_heldout.asr", "implicit.fpr", "benign_vqa.fpr"):
            figure = report[f"{system}.{name}"]
            assert figure["n"] == 8 and figure["low"] <= figure["value"] <= figure["high"]
    assert report["meta"]["threshold"] == 0.5
    assert set(report["meta"]["made"].values()) == {"trained here", "shipped"}
    page = (folder / "report.html").read_text()
    assert "data:image" in page and "http://" not in page


def test_the_report_shows_what_was_forged(folder):
    report = json.loads((folder / "report.json").read_text())
    card = json.loads((folder / "forge" / "forged" / "data_card.json").read_text())
    assert report["forge.written"]["value"] == card["written"]
    assert report["forge.kept.unsafe"]["value"] == report["forge.truth.implicit"]["n"]
    assert (folder / "plots" / "forge_examples.png").exists()


def test_both_guards_are_attacked_on_the_same_rows(folder):
    report = json.loads((folder / "report.json").read_text())
    for system in ("guard.full", "guard.immunized"):
        clean, robust = (
            report[f"{system}.linf.{name}"]["value"]
            for name in ("clean.accuracy", "7_65.robust_accuracy")
        )
        assert robust <= clean
    assert "INCOMPLETE" in (folder / "report.md").read_text()


def test_the_immunized_model_comes_with_its_check_and_its_policy(folder):
    found = load_immunized(folder / "models" / "guard_immunized")
    assert [branch.do for branch in found.policy.branches] == ["reject", "accept"]
    assert found.threshold.n >= 320 and found.threshold.pass_rate == 0.99


def test_the_shipped_control_is_what_its_card_says():
    guard = Guard.from_pretrained(quickstart.SHIPPED / "guard_explicit_only")
    rows = records("explicit_text", "val", 128)
    found = guard.score([r.image for r in rows], [r.text for r in rows])
    right = [v.unsafe == (r.label == "unsafe") for v, r in zip(found, rows, strict=True)]
    # 600 steps are few for so many forms of explicit text; what did not learn them is half right.
    assert np.mean(right) >= 0.75


def test_guards_run_as_one_program_and_the_untrained_one_is_the_base():
    config = load_config("configs/guard.py:tiny")
    trained = quickstart._shipped(config, quickstart.SHIPPED / "guard_explicit_only")
    (row,) = records("explicit_text", "val", 1)
    untrained = quickstart._untrained(config)
    trained.score([row.image], [row.text])
    programs = p_unsafe._cache_size()
    (found,) = untrained.score([row.image], [row.text])
    assert p_unsafe._cache_size() == programs
    # Where training puts an adapter, or the guard that was trained here is another program.
    for guard in (trained, untrained):
        assert all(x.sharding.mesh == guard.mesh for x in jax.tree.leaves(guard._parts[1]))
    base = Guard.from_pretrained("toy://llava", prompt="short")
    (wanted,) = base.score([row.image], [row.text])
    assert found.p_unsafe == pytest.approx(wanted.p_unsafe, abs=1e-6)


def test_data_lies_beside_its_pictures(folder):
    forged = (folder / "forge" / "forged" / "train.jsonl").read_text().splitlines()
    train = 6 * 64 + min(len(forged), 64)
    for split, n in (("train", train), ("val", 512 + 256), ("test", 64)):
        found = rows(folder, split)
        assert len(found) == n
        for row in found[:20]:
            assert {"id", "image", "text", "label", "category", "source"} <= set(row)
            pictures = [row["image"]] if row["image"] else []
            assert all(Image.open(folder / "data" / p).size == (32, 32) for p in pictures)
        assert {row["label"] for row in found} == {"safe", "unsafe"}


def test_every_model_loads_in_transformers_and_scores_as_we_do(folder):
    row = next(row for row in rows(folder, "test") if row["source"] == "implicit")
    image = Image.open(folder / "data" / row["image"])
    scores = {}
    for name in ("base", "guard", "guard_immunized", "guard_explicit_only"):
        path = folder / "models" / name
        model, info = LlavaForConditionalGeneration.from_pretrained(
            path, output_loading_info=True, dtype=torch.float32
        )
        assert not info["missing_keys"] and not info["unexpected_keys"]
        settings = json.loads((path / "guard_config.json").read_text())
        text = settings["prompt"]["template"].replace("{image}", "<image>" * 16 + "\n")
        tokenizer = AutoTokenizer.from_pretrained(path)
        ids = tokenizer(text.replace("{text}", row["text"]), return_tensors="pt")["input_ids"]
        pixels = AutoImageProcessor.from_pretrained(path)(image, return_tensors="pt")
        with torch.no_grad():
            logits = model.eval()(input_ids=ids, **pixels).logits[0, -1]
        guard = Guard.from_pretrained(path)
        safe, unsafe = guard.label_ids
        scores[name] = torch.sigmoid(logits[unsafe] - logits[safe]).item()
        (ours,) = guard.score([image], [row["text"]])
        assert abs(ours.p_unsafe - scores[name]) <= 1e-5
    assert np.ptp(list(scores.values())) > 0, "training changed nothing"
    cards = {name: (folder / "models" / name / "README.md").read_text() for name in scores}
    assert {name for name, card in cards.items() if "forged" in card} == {
        "guard",
        "guard_immunized",
    }


@pytest.mark.training
def test_a_second_run_finds_everything_done(folder):
    before = (folder / "report.json").read_text()
    done = sorted((folder / "train").rglob("_CHECKPOINT_METADATA"))
    done += (folder / "datasets" / f"{name}.settings.json" for name in SOURCES)
    stamps = [path.stat().st_mtime_ns for path in done]
    assert len(stamps) > len(SOURCES)
    again(folder)
    assert [path.stat().st_mtime_ns for path in done] == stamps
    figures = [json.loads(text) for text in (before, (folder / "report.json").read_text())]
    assert figures[0].pop("meta")["seconds"] and figures[1].pop("meta")
    assert figures[0] == figures[1]
