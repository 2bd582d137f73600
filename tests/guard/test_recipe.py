"""The recipe learns what is there to learn, moves adapters alone, and keeps the best."""

import io
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from PIL import Image
from transformers import LlavaForConditionalGeneration

from crossguard_jax.core.config import load_config
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.tree import digest
from crossguard_jax.data.records import Record, Rejected
from crossguard_jax.guard import loss as objective
from crossguard_jax.guard.recipe import train_guard
from crossguard_jax.hf.load import load_model
from crossguard_jax.hf.trained import content_hash, trained_on
from crossguard_jax.nn import lora
from crossguard_jax.train.loop import read_metrics


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (24, 24), (shade, 255 - shade, 60)).save(file, "PNG")
    return file.getvalue()


def bright(path: str, split: str, limit: int):
    """Unsafe is a red picture: something only the picture tells. One row in forty is bad."""
    rng = np.random.default_rng(len(split))
    for i in range(limit):
        if i % 40 == 39:
            yield Rejected(path, i, "made bad for the test")
            continue
        shade = int(rng.integers(256))
        label = "unsafe" if shade > 127 else "safe"
        yield Record(
            f"{split}-{i}", (png(shade),), "can i touch the red one ?", label, "shade", path
        )


@pytest.fixture
def config(llava_folder) -> ConfigDict:
    config = load_config("configs/guard.py:tiny")
    source = ConfigDict(config.data.sources.implicit.to_dict())
    with config.unlocked():
        config.model.path = str(llava_folder)
        source.update({"reader": "bright", "path": "anywhere", "limit": 256, "weight": 1.0})
        held = ConfigDict(source.to_dict())
        held.update({"split": "val", "limit": 64})
        config.data.sources = {"bright": source}
        config.data.validation = {"bright": held}
        config.data.max_length = 48
        config.data.augment.update({"long": 0.0, "injected": 0.0})
        config.optim.update({"learning_rate": 5e-3, "warmup_steps": 4})
        config.train.update({"steps": 40, "batch_size": 16, "eval_every": 20, "save_every": 20})
    return config


def test_training_teaches_the_adapter_leaves_the_base_alone_and_is_exported(
    compiled_as_users_do, config, llava_folder, tmp_path
):
    done = train_guard(config, tmp_path, {"bright": bright})
    assert done.rows == {"bright": 250}
    log = read_metrics(tmp_path)
    evaluations = [row for row in log if "eval/auroc" in row]
    assert [row["step"] for row in evaluations] == [20, 40]
    assert max(row["eval/auroc"] for row in evaluations) > 0.95
    best = max(evaluations, key=lambda row: (row["eval/auroc"], row["step"]))
    assert done.step == best["step"], "of equals the later"
    assert digest(lora.detach(done.guard.model)) == digest(load_model(llava_folder))
    held = [r for r in bright("", "val", 64) if isinstance(r, Record)]
    verdicts = done.guard.score([r.image for r in held], [r.text for r in held])
    right = [v.label == r.label for v, r in zip(verdicts, held, strict=True)]
    assert np.mean(right) > 0.85
    done.guard.save_pretrained(tmp_path / "merged")
    learned = [r for r in bright("", "train", 256) if isinstance(r, Record)]
    assert trained_on(tmp_path / "merged") == {content_hash(r.text, r.images) for r in learned}
    encoded = done.guard.encode([r.image for r in held[:4]], [r.text for r in held[:4]])
    with torch.no_grad():
        merged = LlavaForConditionalGeneration.from_pretrained(tmp_path / "merged")
        outputs = merged(**{name: torch.from_numpy(x) for name, x in encoded.items()})
    logits = outputs.logits[:, -1, list(done.guard.label_ids)]
    p_unsafe = torch.softmax(logits.float(), dim=-1)[:, 1].tolist()
    assert p_unsafe == pytest.approx([v.p_unsafe for v in verdicts[:4]], abs=1e-4)

    def turned(path: str, split: str, limit: int):
        for row in bright(path, split, limit):
            label = {"safe": "unsafe", "unsafe": "safe"}
            yield replace(row, label=label[row.label]) if isinstance(row, Record) else row

    with pytest.raises(UserError, match=r"another run \(contents\.bright"):
        train_guard(config, tmp_path, {"bright": turned}, data=tmp_path / "turned")
    rejected = (tmp_path / "data" / "bright.rejected.jsonl").read_text().splitlines()
    assert len(rejected) == 6 and json.loads(rejected[0])["reason"] == "made bad for the test"


def test_what_has_one_label_selects_nothing(config, tmp_path):
    config.data.validation.bright.labels = ("unsafe",)
    with pytest.raises(UserError, match="^data.validation: every row is 'unsafe', so .*keep_best"):
        train_guard(config, tmp_path, {"bright": bright})
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.training
@pytest.mark.parametrize("buckets", [False, True])
def test_a_finished_run_started_again_gives_the_same_adapter(config, tmp_path, buckets):
    config.data.buckets = buckets
    config.train.update({"steps": 4, "eval_every": 0, "save_every": 2})
    config.optim.warmup_steps = 1
    first = train_guard(config, tmp_path, {"bright": bright})
    again = train_guard(config, tmp_path, {"bright": bright})
    assert digest(again.guard.model) == digest(first.guard.model)
    config.optim.learning_rate = 1e-3
    with pytest.raises(
        UserError, match=r"another run \(config.optim.learning_rate: [0-9.]+ -> 0.001\)"
    ):
        train_guard(config, tmp_path, {"bright": bright})


def test_the_loss_is_the_labels_alone_until_the_vocabulary_counts_too(monkeypatch):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 9)), jnp.float32)
    labels, ids = jnp.array([0, 1, 1, 0]), (3, 7)
    monkeypatch.setattr(objective.lora, "merge", lambda *parts: None)
    monkeypatch.setattr(objective.verdict, "label_logits", lambda model, batch, ids: logits)
    loss = objective.guard_loss(None, ids)
    weights = [float(objective.mass_weight(5.0, jnp.int32(step))) for step in (0, 4, 5, 9)]
    assert weights == [0.0, 0.0, 1.0, 1.0]
    rest = (None, None, {"labels": labels}, jax.random.key(0))
    first, metrics = loss(*rest, 0.0)
    whole, _ = loss(*rest, 1.0)
    log_p = jax.nn.log_softmax(logits, axis=1)[jnp.arange(4), jnp.array(ids)[labels]]
    both = logits[:, jnp.array(ids)]
    alone = jax.nn.log_softmax(both, axis=1)[jnp.arange(4), labels]
    assert float(whole) == pytest.approx(-float(log_p.mean()), rel=1e-5)
    assert float(first) == pytest.approx(-float(alone.mean()), rel=1e-5)
    mass = jax.nn.softmax(logits, axis=1)[:, jnp.array(ids)].sum(axis=1).mean()
    assert float(metrics["mass"]) == pytest.approx(float(mass), rel=1e-5)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_of_steps_that_is_none_is_refused(config, tmp_path, share):
    config.train.labels_first = share
    with pytest.raises(UserError, match=f"train.labels_first {share:g}: a share of steps"):
        train_guard(config, tmp_path, {"bright": bright})
