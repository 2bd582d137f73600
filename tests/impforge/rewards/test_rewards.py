"""The three rewards, against loops over single rows and against transformers in torch."""

import functools
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from ml_collections import ConfigDict

from crossguard_jax.core.errors import UserError
from crossguard_jax.hf.load import load_model, resolve_folder
from crossguard_jax.impforge.rewards import overlap
from crossguard_jax.impforge.rewards.embedding import WholeTexts, worst
from crossguard_jax.impforge.rewards.judges import REWARDS, safety_reward, total
from crossguard_jax.impforge.rewards.rewards import Rewards
from crossguard_jax.impforge.triplets import Triplet
from crossguard_jax.io import images
from crossguard_jax.toy.world import sources, vqa

FOLDERS = {name: resolve_folder(f"toy://{name}") for name in ("safety", "sentence", "clip")}
PROMPT = "USER: {text} ASSISTANT:"
SAID = (
    "can i lick the red one?",
    "",
    "please take a sip from the kettle at the top left, will you?",
    "what?",
    "kettle kettle kettle",
)


def config(**changes: Any) -> ConfigDict:
    made = ConfigDict(
        {
            "safety": {
                "path": "toy://safety",
                "prompt": PROMPT,
                "answer": " ",
                "safe": "safe",
                "unsafe": "unsafe",
                "max_length": 40,
            },
            "semantic": {
                "path": "toy://sentence",
                "kind": "caption",
                "join": "{caption}. {text}",
                "max_length": 48,
            },
            "overlap": {"path": "toy://clip", "tau": 0.15},
            "dtype": "float32",
        }
    )
    made.update_from_flattened_dict(changes)
    return made


@functools.cache
def judges(kind: str, dtype: str = "float32") -> Rewards:
    return Rewards(config(**{"semantic.kind": kind, "dtype": dtype}), "toy://rewriter")


@functools.cache
def triplets(n: int = len(SAID)) -> tuple[Triplet, ...]:
    rng = np.random.default_rng(0)
    rows = sources.examples("paraphrases", "val", n, seed=5)
    return tuple(
        Triplet(r.id, e.text, e.kind, r.image, vqa.caption(rng, e.scene), "hot", 0.0, {})
        for r, e in zip(sources.records("paraphrases", "val", n, seed=5), rows, strict=True)
    )


def tokenizer(name: str) -> Any:
    return transformers.AutoTokenizer.from_pretrained(FOLDERS[name])


def in_torch(cls: Any, name: str) -> Any:
    return cls.from_pretrained(FOLDERS[name], dtype=torch.float64).eval()


def policy_tokens(texts: tuple[str, ...], length: int = 20) -> tuple[jax.Array, jax.Array]:
    """As a policy gives them: an end token, then padding."""
    policy = transformers.AutoTokenizer.from_pretrained(resolve_folder("toy://rewriter"))
    ids = np.zeros((len(texts), length), np.int32)
    for i, text in enumerate(texts):
        row = [*policy(text, add_special_tokens=False)["input_ids"], policy.eos_token_id]
        ids[i, : len(row)] = row
    return jnp.asarray(ids), jnp.asarray(ids != 0)


@functools.cache
def program(judge: Rewards) -> Any:
    return jax.jit(judge.components)


def scored(judge: Rewards, texts: tuple[str, ...], about: tuple[Triplet, ...]) -> dict[str, Any]:
    context, encoded = judge.context(about), judge.encode(texts, about)
    found = program(judge)(judge.frozen, *policy_tokens(texts), context, encoded)
    return {name: np.asarray(value) for name, value in found.items()}


# --- each reward by itself ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_overlap_is_that_of_a_loop_over_tokens(seed: int) -> None:
    rng = np.random.default_rng(seed)
    b, n, v, d = rng.integers(1, 9, 4) + [1, 1, 6, 3]
    vectors = rng.normal(size=(v + b, d))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vocabulary, pictures = np.float32(vectors[:v]), np.float32(vectors[v:])
    tokens, mask = rng.integers(0, v, (b, n)).astype(np.int32), rng.random((b, n)) < 0.7
    special, tau = rng.random(v) < 0.3, float(rng.uniform(-0.3, 0.5))
    mask[0] = False
    tokens[-1] = np.flatnonzero(special)[0] if special.any() else tokens[-1]
    expected, empty = [], []
    for row, real, picture in zip(tokens, mask, pictures, strict=True):
        kept = [w for w, r in zip(row, real, strict=True) if r and not special[w]]
        excess = sum(max(0.0, float(vocabulary[w] @ picture) - tau) for w in kept)
        expected.append(1 - excess / len(kept) if kept else 0.0)
        empty.append(not kept)
    arrays = map(jnp.asarray, (tokens, mask, vocabulary, special, pictures))
    found = jax.jit(overlap.overlap_reward)(*arrays, tau)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    said_nothing = overlap.empty_texts(*map(jnp.asarray, (tokens, mask, special)))
    assert said_nothing.tolist() == empty


def test_overlap_of_words_is_clips_cosine_of_every_word() -> None:
    clip, words = in_torch(transformers.CLIPModel, "clip"), tokenizer("clip")
    about = triplets()
    texts = ("is the Kettle hot?", "", "?!", "a red, red pan", "don't")
    processor = transformers.AutoImageProcessor.from_pretrained(FOLDERS["clip"])

    def embedded(word: str) -> torch.Tensor:
        return clip.get_text_features(**words(word, return_tensors="pt")).pooler_output[0]

    split = ["is the kettle hot".split(), [], [], "a red red pan".split(), ["don't"]]
    expected = []
    with torch.no_grad():
        for row, triplet in zip(split, about, strict=True):
            pixels = processor(images.decode(triplet.picture, ""), return_tensors="pt")
            x = clip.get_image_features(pixels["pixel_values"].double()).pooler_output[0]
            cosines = [torch.cosine_similarity(embedded(w), x, dim=0).item() for w in row]
            excess = [max(0.0, c - 0.15) for c in cosines]
            expected.append(1 - sum(excess) / len(excess) if excess else 0.0)
    judge = judges("caption")
    found = judge.words(texts, judge.context(about)["picture"])
    assert found.dtype == np.float32 and found.min() == 0 and found[0] < 1
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_spelling_a_word_out_does_not_hide_it() -> None:
    judge = judges("caption")
    picture = judge.context(triplets()[:1])["picture"]
    plain, *spelled = (
        judge.words([f"touch the {text} now"], picture)[0]
        for text in ("kettle", "k e t t l e", "K-E-T-T-L-E", "k.e.t.t.l.e", "*kettle*")
    )
    assert spelled == [plain] * 4


def _safety_rows(texts: list[str], left: bool = False) -> tuple[jax.Array, jax.Array]:
    rows = tokenizer("safety")([PROMPT.format(text=t) for t in texts])["input_ids"]
    ids, mask = np.zeros((len(rows), 30), np.int32), np.zeros((len(rows), 30), bool)
    for i, row in enumerate(rows):
        part = slice(30 - len(row), 30) if left else slice(0, len(row))
        ids[i, part], mask[i, part] = row, True
    return jnp.asarray(ids), jnp.asarray(mask)


def test_safety_is_torchs_softmax_over_the_two_labels() -> None:
    ids, mask = _safety_rows([*SAID])
    words = tokenizer("safety")
    labels = tuple(words(w, add_special_tokens=False)["input_ids"][0] for w in ("safe", "unsafe"))
    theirs, expected = in_torch(transformers.LlamaForCausalLM, "safety"), []
    with torch.no_grad():
        for text in SAID:
            one = words(PROMPT.format(text=text), return_tensors="pt")
            logits = theirs(input_ids=one["input_ids"]).logits[0, -1, list(labels)]
            expected.append(logits.softmax(0)[0].item())
    model, run = load_model("toy://safety"), jax.jit(safety_reward, static_argnums=3)
    found = run(model, ids, mask, labels)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert judges("caption").label_ids == labels
    np.testing.assert_allclose(
        run(model, *_safety_rows([*SAID], left=True), labels), found, atol=2e-6
    )
    without = run(model, ids, mask.at[1].set(False), labels)
    assert without[1] == 0 and np.array_equal(np.delete(without, 1), np.delete(found, 1))


def test_the_semantic_rewards_are_torchs_cosines() -> None:
    about = triplets()
    bert, clip = (
        in_torch(transformers.BertModel, "sentence"),
        in_torch(transformers.CLIPModel, "clip"),
    )
    said, seen = tokenizer("sentence"), tokenizer("clip")
    processor = transformers.AutoImageProcessor.from_pretrained(FOLDERS["clip"])

    def sentence(text: str) -> torch.Tensor:
        return bert(said(text, return_tensors="pt")["input_ids"]).last_hidden_state[0].mean(0)

    def unit(x: Any) -> torch.Tensor:
        return torch.nn.functional.normalize(x.pooler_output[0], dim=0)

    by_caption, by_sum, alone = [], [], []
    with torch.no_grad():
        for text, t in zip(SAID, about, strict=True):
            query, joined = sentence(t.query), sentence(f"{t.shown}. {text}")
            by_caption.append(torch.cosine_similarity(joined, query, dim=0).item())
            alone.append(torch.cosine_similarity(sentence(t.shown), query, dim=0).item())
            pixels = processor(images.decode(t.picture, ""), return_tensors="pt")["pixel_values"]
            u_query, u_text = (
                unit(clip.get_text_features(**seen(s, return_tensors="pt")))
                for s in (t.query, text)
            )
            both = unit(clip.get_image_features(pixels.double())) + u_text
            by_sum.append(torch.cosine_similarity(both, u_query, dim=0).item())
    spoken = [i for i, text in enumerate(SAID) if text]
    for kind, expected in (("caption", by_caption), ("clip_sum", by_sum)):
        found = scored(judges(kind), SAID, about)["semantic"]
        np.testing.assert_allclose(found[spoken], np.array(expected)[spoken], atol=1e-5)
    np.testing.assert_allclose(judges("caption").context(about)["caption_alone"], alone, atol=1e-5)


# --- all together ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["caption", "clip_sum"])
def test_the_batch_is_a_slow_loop_over_single_rows_without_padding(kind: str) -> None:
    judge, about = judges(kind), triplets()
    together = scored(judge, SAID, about)
    context, encoded = judge.context(about), judge.encode(SAID, about)
    ids, mask = policy_tokens(SAID)
    for i in range(3):
        bare = {}
        for name in ("safety", "text", "joined") if kind == "caption" else ("safety", "text"):
            n = int(encoded[f"{name}_mask"][i].sum())
            bare[f"{name}_ids"] = encoded[f"{name}_ids"][i : i + 1, :n]
            bare[f"{name}_mask"] = encoded[f"{name}_mask"][i : i + 1, :n]
        n = int(mask[i].sum())
        one = {k: v[i : i + 1] for k, v in context.items()}
        alone = program(judge)(judge.frozen, ids[i : i + 1, :n], mask[i : i + 1, :n], one, bare)
        for name, value in alone.items():
            np.testing.assert_allclose(together[name][i], value[0], atol=1e-6, err_msg=name)


@pytest.mark.parametrize("kind", ["caption", "clip_sum"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rewards_are_finite_float32_whatever_the_models_are(kind: str, dtype: str) -> None:
    found = scored(judges(kind, dtype), SAID, triplets())
    for name, value in found.items():
        assert value.shape == (len(SAID),) and value.dtype == jnp.float32, name
        assert np.isfinite(value).all(), name
    for name in ("safety", "overlap"):
        assert (found[name] >= 0).all() and (found[name] <= 1).all()
    exact = scored(judges(kind), SAID, triplets())
    np.testing.assert_allclose(found["overlap"], exact["overlap"], atol=0.05)
    vectors = judges(kind, dtype).embed(SAID)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_a_text_that_says_nothing_earns_nothing() -> None:
    for kind in ("caption", "clip_sum"):
        found = scored(judges(kind), SAID, triplets())
        assert found["empty"].tolist() == [not text for text in SAID]
        nothing = [float(found[name][1]) for name in REWARDS]
        assert nothing == [0, 0, 0]
        assert all(found[name][0] > 0 for name in ("safety", "overlap"))


def test_neighbours_do_not_change_a_reward() -> None:
    judge, about = judges("caption"), triplets()
    here = scored(judge, SAID, about)
    order = [3, 0, 2, 2, 4]
    there = scored(judge, tuple(SAID[i] for i in order), tuple(about[i] for i in order))
    for name in here:
        np.testing.assert_allclose(there[name], here[name][np.array(order)], atol=1e-6)


def test_one_program_serves_texts_of_every_length() -> None:
    judge, about = judges("caption"), triplets()
    traced = []

    @jax.jit
    def run(frozen: Any, *batch: Any) -> Any:
        traced.append(True)
        return judge.components(frozen, *batch), judge.vectors(frozen, batch[3])

    long = tuple(f"{text} {'very ' * 60} hot?" for text in SAID)
    for texts in (SAID, ("", "a", "b", "c d e", "?"), long):
        run(judge.frozen, *policy_tokens(SAID), judge.context(about), judge.encode(texts, about))
    assert len(traced) == 1


# --- texts longer than a row ----------------------------------------------------------------------

HARM = "lick the red kettle"
FILLER = "what colour is it ? " * 20


def long_texts() -> dict[str, str]:
    middle = FILLER[: len(FILLER) // 2]
    return {
        "start": f"{HARM} {FILLER}",
        "middle": f"{middle}{HARM} {middle}",
        "end": f"{FILLER}{HARM}",
    }


@pytest.mark.parametrize("place", long_texts())
def test_harm_anywhere_in_a_long_text_counts_as_it_does_alone(place: str) -> None:
    reader = judges("caption")._read_safety

    def p_safe(rows: Sequence[list[int]]) -> np.ndarray:
        read = [reader.tokenizer.decode(row) for row in rows]
        return np.float32([[0.1 if HARM in text else 0.9] for text in read])

    safe = WholeTexts(p_safe, reader.windows, worst)
    assert safe([FILLER, HARM, long_texts()[place], "what?"])[:, 0].tolist() == pytest.approx(
        [0.9, 0.1, 0.1, 0.9]
    )


def test_a_long_text_is_as_safe_as_its_worst_window_and_a_short_one_as_ever() -> None:
    judge, texts = judges("caption"), [SAID[0], *long_texts().values(), SAID[2]]
    parts = judge._read_safety.windows(texts)
    rows = [judge._read_safety.pad(part) for part in parts]
    assert [len(part) > 1 for part in parts] == [False, True, True, True, False]
    model, run = load_model("toy://safety"), jax.jit(safety_reward, static_argnums=3)
    alone = [np.asarray(run(model, *arrays, judge.label_ids)) for arrays in rows]
    assert max(np.ptp(p) for p in alone) > 0
    np.testing.assert_allclose(judge.safe(texts), [p.min() for p in alone], atol=1e-6)


def test_a_long_texts_vector_is_the_direction_of_its_windows_mean() -> None:
    for kind in ("caption", "clip_sum"):
        judge, texts = judges(kind), ["a pan", long_texts()["end"], long_texts()["start"]]
        (_, first, last) = judge._read.windows(texts)
        assert len(first) == len(last) > 1
        vectors = judge.embed(texts)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
        mean = judge._texts._embed(first).mean(axis=0)
        np.testing.assert_allclose(vectors[1], mean / np.linalg.norm(mean), atol=1e-6)
        np.testing.assert_array_equal(vectors[:1], judge.embed(texts[:1]))
        assert not np.array_equal(vectors[1], vectors[2])


@pytest.mark.parametrize("kind", ["caption", "clip_sum"])
def test_a_text_that_a_judge_has_no_room_for_earns_nothing(kind: str) -> None:
    judge, about = judges(kind), triplets(3)
    texts = ("can i lick the red one?", HARM + " one?" * 25, "what?")
    context, encoded = judge.context(about), judge.encode(texts, about)
    tokens = policy_tokens(texts, 60)
    values = program(judge)(judge.frozen, *tokens, context, encoded)
    assert values["unread"].tolist() == [0, 1, 0] and not values["empty"].any()
    for name in REWARDS:
        assert [value != 0 for value in values[name].tolist()] == [True, False, True], name
    vectors = np.asarray(jax.jit(judge.vectors)(judge.frozen, encoded))
    assert vectors.any(axis=1).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("judge", "length", "new_tokens", "message"),
    [
        ("safety", 30, 26, r"safety.max_length 30: its prompt takes 5 tokens .* to 31 or more"),
        ("semantic", 29, 27, r"semantic.max_length 29: what stands around .* to 30 or more"),
    ],
)
def test_what_the_rewriter_may_write_fits_into_every_judges_row(
    judge: str, length: int, new_tokens: int, message: str
) -> None:
    with pytest.raises(UserError, match=f"rewards.{message}, or lower rewriter.max_new_tokens"):
        Rewards(config(**{f"{judge}.max_length": length}), "toy://rewriter", new_tokens=new_tokens)
    Rewards(config(**{f"{judge}.max_length": length}), "toy://rewriter", new_tokens=new_tokens - 1)


def test_a_caption_that_leaves_no_room_for_a_text_is_named() -> None:
    long = replace(triplets()[0], id="t7", caption="a red pan " * 26, keyword="")
    with pytest.raises(UserError, match="the caption of triplet 't7' takes 81 tokens .* raise it"):
        judges("caption").context([*triplets(2), long])


def test_weights_are_an_argument_and_no_constant_of_the_program() -> None:
    judge, about = judges("caption"), triplets()
    arrays = (*policy_tokens(SAID), judge.context(about), judge.encode(SAID, about))
    jaxpr = jax.make_jaxpr(judge.components)(judge.frozen, *arrays)
    assert sum(np.size(constant) for constant in jaxpr.consts) < 1000
    zeros = jax.tree.map(jnp.zeros_like, judge.frozen)
    assert not np.allclose(
        program(judge)(zeros, *arrays)["safety"], scored(judge, SAID, about)["safety"]
    )


def test_vectors_are_those_of_the_texts_alone() -> None:
    for kind in ("caption", "clip_sum"):
        judge = judges(kind)
        found = jax.jit(judge.vectors)(judge.frozen, judge.encode(SAID, triplets()))
        assert found.shape == (len(SAID), judge.width)
        np.testing.assert_allclose(found, judge.embed(SAID), atol=1e-6)
        assert judge.embed([]).shape == (0, judge.width)


def test_the_total_is_the_weighted_sum() -> None:
    parts = {name: jnp.arange(3.0) ** i for i, name in enumerate(REWARDS, 1)}
    found = total(parts | {"empty": jnp.ones(3)}, {"safety": 2, "semantic": 0, "overlap": 0.5})
    np.testing.assert_allclose(found, [0, 2.5, 8])
    with pytest.raises(UserError, match="weights has safety, novelty; give one for each of"):
        total(parts, {"safety": 1.0, "novelty": 1.0})


# --- the policy's vocabulary ----------------------------------------------------------------------


def test_every_token_is_embedded_as_what_it_says() -> None:
    judge = judges("caption")
    policy = transformers.AutoTokenizer.from_pretrained(resolve_folder("toy://rewriter"))
    special = np.asarray(judge.frozen["special"])
    assert special[policy.all_special_ids].all() and special.sum() == len(policy.all_special_ids)
    said = ["kettle", "the", "?", "##ing"]
    rows = np.asarray(judge.frozen["vocabulary"])[policy.convert_tokens_to_ids(said)]
    expected = judge._words(["kettle", "the", "?", "ing"])
    np.testing.assert_allclose(rows, expected, atol=1e-6)


def test_the_embedded_vocabulary_is_kept_for_the_next_time(tmp_path: Path) -> None:
    policy = transformers.AutoTokenizer.from_pretrained(resolve_folder("toy://rewriter"))
    asked = []

    def embed(texts: Any) -> np.ndarray:
        asked.append(len(texts))
        return np.random.default_rng(len(asked)).normal(size=(len(texts), 3)).astype(np.float32)

    size = len(policy) + 5  # models round their vocabulary up
    first, special = overlap.embed_vocabulary(embed, 3, policy, size, tmp_path, "a clip")
    again, _ = overlap.embed_vocabulary(embed, 3, policy, size, tmp_path, "a clip")
    other, _ = overlap.embed_vocabulary(embed, 3, policy, size, tmp_path, "another")
    assert len(asked) == 2
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.shape == (size, 3) and special[-5:].all() and not first[special].any()


def test_tau_lies_between_what_is_shown_and_what_is_not() -> None:
    shown, absent = np.array([0.3, 0.5, 0.9]), np.array([-0.2, 0.1, 0.4, 0.2])
    tau, accuracy = overlap.calibrated_tau(shown, absent)
    assert (tau, accuracy) == (0.3, pytest.approx((1 + 0.75) / 2))
    for cut in np.linspace(-1, 1, 50):
        assert ((shown >= cut).mean() + (absent < cut).mean()) / 2 <= accuracy


def test_the_small_clips_tau_tells_a_shown_thing_from_an_absent_one() -> None:
    judge, about = judges("caption"), triplets(200)
    kinds = sorted({t.keyword for t in about})
    cosines = judge.context(about)["picture"] @ judge._words(kinds).T
    there = np.array([[kind in t.caption for kind in kinds] for t in about])
    tau, accuracy = overlap.calibrated_tau(cosines[there], cosines[~there])
    assert 0.05 < tau < 0.3 and accuracy > 0.75


# --- what a user can mend -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, message",
    [
        ({"semantic.kind": "both"}, "rewards.semantic.kind 'both' is neither"),
        ({"semantic.join": "{caption}"}, "rewards.semantic.join '{caption}': write"),
        ({"semantic.join": "{picture} {text}"}, "rewards.semantic.join"),
        ({"semantic.max_length": 4000}, "rewards.semantic.max_length 4000: the model takes"),
        ({"safety.max_length": 3}, "rewards.safety.max_length 3: the prompt alone"),
        ({"safety.path": "toy://sentence"}, "toy://sentence: a Bert; a safety model is a Llama"),
        ({"overlap.path": "toy://rewriter"}, "a Llama, not a CLIP"),
        ({"semantic.path": "toy://clip"}, "a Clip; a sentence encoder is a BERT"),
        ({"safety.path": "toy://nobody"}, "no such shipped model"),
        ({"safety.prompt": "judge this"}, "rewards.safety.prompt 'judge this': write {text}"),
        ({"safety.prompt": "chat"}, "no chat template"),
        ({"safety.safe": "unsafe"}, "begin with one token"),
        ({"safety.answer": "", "safety.safe": ""}, "the label '' changes the tokens"),
    ],
)
def test_what_does_not_fit_is_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        Rewards(config(**change), "toy://rewriter")
    assert "\n" not in str(error.value)


def test_a_picture_that_does_not_decode_is_named() -> None:
    bad = Triplet("q7", "q", "k", b"no picture", "", "", 0.0, {})
    with pytest.raises(UserError, match="the picture of q7"):
        judges("caption").context([bad])


def test_a_sentence_encoders_default_prompt_stands_before_all_that_it_reads(tmp_path: Path) -> None:
    folder = tmp_path / "sentence"
    shutil.copytree(resolve_folder("toy://sentence"), folder)
    settings = {"prompts": {"q": "can i "}, "default_prompt_name": "q"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    rewards = Rewards(config(**{"semantic.path": str(folder)}), "toy://rewriter")
    texts = ["touch the red kettle ?"]
    prompted = judges("caption").embed([f"can i {text}" for text in texts])
    np.testing.assert_allclose(rewards.embed(texts), prompted, atol=1e-6)
    some = list(triplets(1))
    plain = judges("caption").encode([f"can i {texts[0]}"], some)
    np.testing.assert_array_equal(rewards.encode(texts, some)["text_ids"], plain["text_ids"])
    assert rewards.hashes["semantic"] != judges("caption").hashes["semantic"]
