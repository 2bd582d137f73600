"""What the small models can do, measured on rows that no training saw."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crossguard_jax.impforge.rewards.overlap import calibrated_tau
from crossguard_jax.nn.bert import Bert
from crossguard_jax.nn.clip import Clip
from crossguard_jax.nn.llama import Llama
from crossguard_jax.nn.llava import Llava
from crossguard_jax.nn.sampling import sample
from crossguard_jax.toy.models import lessons, pretrain, texts
from crossguard_jax.toy.models.batches import Batch, dialogue, encode, pad, stack_dialogues
from crossguard_jax.toy.models.folders import PATCHES
from crossguard_jax.toy.models.tokenizers import BOS, EOS, PAD, vocabulary
from crossguard_jax.toy.world.examples import WorldExample
from crossguard_jax.toy.world.pointing import point
from crossguard_jax.toy.world.scenes import render_batch
from crossguard_jax.toy.world.sources import examples
from crossguard_jax.toy.world.truth import read, same_intent

SEED = 1
Arrays = dict[str, Any]
Measured = dict[str, dict[str, float]]
"""Figure to its ``value`` and ``n``."""


def _figure(right: np.ndarray) -> dict[str, float]:
    return {"value": round(float(np.mean(right)), 4), "n": int(np.size(right))}


def _by_category(rows: list[WorldExample], right: np.ndarray) -> Measured:
    categories = np.array([row.category for row in rows])
    return {c: _figure(right[categories == c]) for c in sorted(set(categories.tolist()))}


def _in_parts(run: Callable[[Batch], Any], batch: Batch, size: int = 256) -> np.ndarray:
    n = next(iter(batch.values())).shape[0]
    parts = [{k: v[i : i + size] for k, v in batch.items()} for i in range(0, n, size)]
    return np.concatenate([np.asarray(run(part)) for part in parts])


def _jitted(model: nnx.Module, function: Callable[[Any, Arrays], Any]) -> Callable[[Batch], Any]:
    graphdef, state = nnx.split(model, graph=False)
    run = jax.jit(lambda state, batch: function(nnx.merge(graphdef, state), batch))
    return lambda batch: run(state, batch)


def _whole_answers(logits: jax.Array, batch: Arrays) -> jax.Array:
    """Whether every token of a row's answer is the likeliest one."""
    right = jnp.argmax(logits, axis=-1) == batch["ids"][:, 1:]
    return (right | ~batch["answers"][:, 1:]).all(axis=1)


def measure_llava(model: Llava, n: int = 1000) -> Measured:
    """Answers right, word for word, by topic; test wording where there is one."""

    def answers(model: Llava, batch: Arrays) -> jax.Array:
        pixels = pretrain.normalize(batch["pixels"]) if "pixels" in batch else None
        ids = batch["ids"][:, :-1]
        return _whole_answers(model(ids, pixels, ids != PAD), batch)

    run = _jitted(model, answers)
    measured: Measured = {}
    for source, split in (
        ("vqa", "val"),
        ("vqa", "test"),
        ("reading", "val"),
        ("knowledge", "val"),
        ("explicit_text", "test"),
    ):
        rows = examples(source, split, n, SEED)
        if source == "explicit_text":
            rows = [_asked_for_intent(row) for row in rows]
        patches = PATCHES if rows[0].scene else 0
        turns = [dialogue([(row.text, row.answer)], lessons.ROW, patches) for row in rows]
        batch = stack_dialogues(turns, lessons.ROW)
        if patches:
            batch["pixels"] = render_batch([row.scene for row in rows if row.scene])
        right = _in_parts(run, batch)
        measured |= {f"{source}.{split}.{k}": v for k, v in _by_category(rows, right).items()}
    return measured


def _asked_for_intent(row: WorldExample) -> WorldExample:
    """Whether the text's speaker wants harm, as a question without a picture."""
    answer = "yes" if row.label == "unsafe" else "no"
    return replace(row, text=f"{row.text} {lessons.WANTED}", answer=answer, scene=None)


def measure_clip(model: Clip, n: int = 1000, among: int = 50) -> Measured:
    """How often a picture's own caption is the nearest of ``among``, and its kinds of all kinds.

    ``overlap_tau`` is the cosine that tells words for what is there from words for what is not.
    """
    rows = examples("captions", "val", n, SEED)
    scenes = [row.scene for row in rows if row.scene]
    ids = pad([[BOS, *encode(row.text), EOS] for row in rows], lessons.CAPTION_ROW)
    pictures = _in_parts(
        _jitted(model, lambda m, b: m.embed_pictures(pretrain.normalize(b["pixels"]))),
        {"pixels": render_batch(scenes)},
    )
    embed = _jitted(model, lambda m, b: m.embed_texts(b["ids"], b["ids"] != PAD))
    cosines = np.einsum(
        "gmd,gnd->gmn",
        pictures.reshape(-1, among, pictures.shape[1]),
        _in_parts(embed, {"ids": ids}).reshape(-1, among, pictures.shape[1]),
    )
    kinds = sorted({thing.kind for scene in scenes for thing in scene.things})
    named = [[BOS, *encode(f"a picture of a {kind}"), EOS] for kind in kinds]
    nearest = np.argmax(pictures @ np.asarray(embed({"ids": pad(named, 16)})).T, axis=1)
    shown = np.array(
        [[kind in {t.kind for t in scene.things} for kind in kinds] for scene in scenes]
    )
    words = np.asarray(embed({"ids": pad([[BOS, *encode(kind), EOS] for kind in kinds], 16)}))
    alone = pictures @ words.T
    tau, accuracy = calibrated_tau(alone[shown], alone[~shown])
    return {
        f"caption_of_{among}": _figure(cosines.argmax(axis=2) == np.arange(among)),
        "nearest_kind_is_there": _figure(shown[np.arange(n), nearest]),
        "overlap_tau": {"value": round(tau, 2), "n": shown.size},
        "overlap_tau_accuracy": {"value": round(accuracy, 4), "n": shown.size},
    }


def measure_safety(model: Llama, n: int = 1000) -> Measured:
    """Verdicts right, by label and by category."""
    safe, unsafe = (vocabulary().index(word) for word in ("safe", "unsafe"))
    columns = jnp.array([safe, unsafe])

    def verdicts(model: Llama, batch: Arrays) -> jax.Array:
        ids = batch["ids"]
        x = model.hidden(model.embed_tokens(ids), ids != PAD, last=(ids != PAD).sum(axis=1) - 1)
        return jnp.argmax(model.head(x, columns)[:, 0], axis=-1)

    rows = examples("text_safety", "test", n, SEED)
    # Without the answer and what closes it.
    prompts = [dialogue([(row.text, "")], texts.SAFETY_ROW)[0][:-1] for row in rows]
    predictions = _in_parts(_jitted(model, verdicts), {"ids": pad(prompts, texts.SAFETY_ROW)})
    truth = np.array([row.label == "unsafe" for row in rows])
    by_label = {
        "unsafe": _figure(predictions[truth] == 1),
        "safe": _figure(predictions[~truth] == 0),
    }
    return by_label | _by_category(rows, predictions == truth)


def _likeliest(model: Llama, batch: Arrays) -> jax.Array:
    """The likeliest continuation of prompts, [B, 48]."""
    return sample(
        model,
        model.embed_tokens(batch["ids"]),
        batch["ids"] != PAD,
        jax.random.key(0),
        max_new_tokens=48,
        eos_ids=(EOS,),
        pad_id=PAD,
        temperature=0.0,
    ).tokens


def measure_rewriter(model: Llama, n: int = 200) -> Measured:
    """How often the likeliest rewriting keeps to the world's grammar, and to what was asked."""
    rng = np.random.default_rng(SEED)
    rows = examples("paraphrases", "val", n, SEED)
    prompts = []
    for row in rows:
        assert row.scene is not None
        shown = texts.clause(rng, row.scene.things[0])
        turn = (texts.REWRITE_PROMPT.format(text=row.text, picture=shown), "")
        prompts.append(dialogue([turn], texts.REWRITE_ROW)[0][:-1])
    width = max(map(len, prompts))
    ids = np.array([[PAD] * (width - len(prompt)) + prompt for prompt in prompts], np.int32)
    out = _in_parts(_jitted(model, _likeliest), {"ids": ids})
    ends = out == EOS
    outputs = [
        " ".join(vocabulary()[i] for i in line[: int(np.argmax(end))]) if end.any() else ""
        for line, end in zip(out, ends, strict=True)
    ]
    requests = [read(text).request for text in outputs]
    kept = [request == row.request for request, row in zip(requests, rows, strict=True)]
    named = [f"the {row.kind}" in text for text, row in zip(outputs, rows, strict=True)]
    same = [
        row.scene is not None and same_intent(row.text, text, row.scene)
        for text, row in zip(outputs, rows, strict=True)
    ]
    return {
        "ends": _figure(ends.any(axis=1)),
        "asks_for_something": _figure(np.array([request is not None for request in requests])),
        "asks_for_the_same": _figure(np.array(kept)),
        "names_the_thing": _figure(np.array(named)),
        "means_the_same": _figure(np.array(same)),
    }


def measure_sentence(model: Bert, n: int = 1000, among: int = 50) -> Measured:
    """How often a text's own paraphrase is the nearest of ``among``.

    The paraphrase names the thing, or points at it after what a caption says of it.
    """
    rng = np.random.default_rng(SEED)
    rows = [r for r in examples("paraphrases", "val", 3 * n, SEED) if r.category != "pointing"][:n]
    pairs = []
    for row in rows:
        assert row.scene is not None and row.request is not None
        thing, other = row.scene.things[0], row.answer
        if row.category == "captioned":
            pointing = texts.say(rng, row.request, point(rng, thing))
            other = f"{texts.clause(rng, thing)}. {pointing}"
        pairs.append((row.text, other))
    batch = texts.sentence_batch(pairs)
    embed = _jitted(model, lambda m, b: m.embed_sentences(b["ids"], b["ids"] != PAD))
    first, second = (
        _in_parts(embed, {"ids": batch[side]}).reshape(-1, among, model.config.hidden_size)
        for side in ("first", "second")
    )
    cosines = np.einsum("gmd,gnd->gmn", first, second)
    right = (cosines.argmax(axis=1) == np.arange(among)).reshape(-1)
    return _by_category(rows, right)


MEASURES: dict[str, Callable[[Any], Measured]] = {
    "clip": measure_clip,
    "llava": measure_llava,
    "rewriter": measure_rewriter,
    "safety": measure_safety,
    "sentence": measure_sentence,
}
