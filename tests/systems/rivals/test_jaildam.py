"""JailDAM's parts against plain rewritings of its description."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from crossguard_jax.core.errors import UserError
from crossguard_jax.evals.calibrate import read_concepts
from crossguard_jax.guard.settings import Settings
from crossguard_jax.hf.clip import load_clip
from crossguard_jax.systems.load import identity, load
from crossguard_jax.systems.rivals import jaildam
from crossguard_jax.systems.rivals.folders import save_detector

CONCEPTS = ["a red kettle", "a hot pan", "a sharp knife", "a blue cup", "a green plate", "a lamp"]


@pytest.fixture(scope="module")
def clip():
    return load_clip("toy://clip")


def parts(k=8, width=6, n=20, seed=0):
    rng = np.random.default_rng(seed)
    concept = rng.normal(size=(k, width)).astype(np.float32)
    memory = np.stack([concept, concept], axis=1)
    rows = rng.normal(size=(n, 2, width)).astype(np.float32)
    encoder = jaildam.train_autoencoder(jaildam.similarities(memory, rows), epochs=1)
    return memory, encoder, rows


def plain_error(encoder, a):
    x = torch.tensor(a)
    for i in range(4):
        x = x @ torch.tensor(encoder[f"kernel_{i}"]) + torch.tensor(encoder[f"bias_{i}"])
        x = torch.relu(x) if i < 3 else x
    return ((x - torch.tensor(a)) ** 2).mean(dim=1).numpy()


def plainly(memory, encoder, rows, form):
    """The description, a row and a side at a time."""
    texts, pictures = memory[:, 0].copy(), memory[:, 1].copy()
    uses, errors = [0.0] * len(memory), []
    for text, picture in rows:
        a = np.concatenate([texts @ text, pictures @ picture])
        errors.append(plain_error(encoder, a[None])[0])
        for vector, concepts in ((text, texts), (picture, pictures)):
            likely = vector if form == "as_released" else concepts @ vector
            p = torch.softmax(torch.tensor(likely), 0).numpy()
            top = sorted(range(len(p)), key=lambda i: -p[i])[:5]
            if p[top[0]] > 4e-4:
                rest = vector - sum(p[i] * concepts[i % len(concepts)] for i in top)
                least = uses.index(min(uses))
                concepts[least] = rest
                uses[least] = max(uses) + 1
    return errors


@pytest.mark.parametrize("form", jaildam.FORMS)
@pytest.mark.parametrize("order", range(5))
def test_errors_of_rows_that_come_one_by_one_are_those_of_the_description(form, order):
    memory, encoder, rows = parts()
    rows = rows[np.random.default_rng(order).permutation(len(rows))]
    ours = list(jaildam.adapted_errors(memory, encoder, rows, form))
    np.testing.assert_allclose(ours, plainly(memory, encoder, rows, form), atol=1e-4)


def test_the_order_of_rows_counts_where_the_memory_adapts_and_nowhere_else():
    memory, encoder, rows = parts()
    kept = memory.copy()
    fixed = jaildam.errors_of(encoder, jaildam.similarities(memory, rows))
    back = jaildam.errors_of(encoder, jaildam.similarities(memory, rows[::-1]))
    np.testing.assert_allclose(back[::-1], fixed, rtol=1e-5)
    forward = np.array(list(jaildam.adapted_errors(memory, encoder, rows)))
    backward = np.array(list(jaildam.adapted_errors(memory, encoder, rows[::-1])))[::-1]
    assert forward[0] == pytest.approx(fixed[0]) and not np.allclose(forward, backward, rtol=0.01)
    np.testing.assert_array_equal(memory, kept)


def test_uses_decide_which_concept_goes_first():
    memory, encoder, rows = parts()
    uses = jaildam.concept_uses(memory, rows)
    assert uses.sum() == 2 * jaildam.NEAREST * len(rows)
    first = list(jaildam.adapted_errors(memory, encoder, rows, uses=uses))
    assert not np.allclose(first, list(jaildam.adapted_errors(memory, encoder, rows)))


def test_embeddings_are_clips_own_before_they_are_made_unit_vectors(clip):
    levels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    both, alone, blank = jaildam.embed(clip, [levels, None, levels], ["a red kettle"] * 2 + [""])
    words = {name: jnp.asarray(x) for name, x in clip.texts(["a red kettle"]).items()}
    expected = clip.model.embed_texts(words["input_ids"], words["attention_mask"])[0]
    np.testing.assert_allclose(both[0] / np.linalg.norm(both[0]), expected, atol=1e-5)
    assert abs(np.linalg.norm(both[0]) - 1) > 1e-3
    np.testing.assert_allclose(alone[0], both[0], atol=1e-5)
    assert not alone[1].any() and both[1].any() and not blank[0].any()


def test_a_saved_detector_gives_the_same_verdicts_and_bad_rows_cost_themselves(clip, tmp_path):
    texts = [f"a {'red' if i % 2 else 'blue'} {'cup' if i % 3 else 'lamp'}" for i in range(40)]
    detector = jaildam.fit(
        clip, Settings(), CONCEPTS, ([None] * 40, texts), np.arange(0, 40, 2), fpr=0.2
    )
    save_detector(tmp_path / "jd", detector, "toy://clip")
    again = load(tmp_path / "jd")
    assert identity(again) == identity(detector)
    *good, bad = again.score_each([None, None, b"no picture"], ["a cup", "a hot pan", "a lamp"])
    assert good == detector.score([None, None], ["a cup", "a hot pan"])
    assert isinstance(bad, UserError)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.txt", "a kettle\n\n a pan \n"),
        ("c.json", '["a kettle", "a pan"]'),
        ("c.json", '{"hot": ["a kettle"], "flat": ["a pan"]}'),
    ],
)
def test_concepts_come_as_lines_or_as_lists(tmp_path, name, content):
    (tmp_path / name).write_text("\ufeff" + content)
    assert read_concepts(tmp_path / name) == ["a kettle", "a pan"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.txt", "", "no concept"),
        ("c.json", "{", "no JSON"),
        ("c.json", "[1]", "no text"),
        ("c.json", "3", "no concept"),
    ],
)
def test_a_file_of_no_concepts_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"{name}: .*{message}"):
        read_concepts(tmp_path / name)


def test_what_jaildam_cannot_use_is_named(clip):
    memory, encoder, rows = parts()
    with pytest.raises(UserError, match="--form 'x' is none of paper, as_released"):
        next(jaildam.adapted_errors(memory, encoder, rows, "x"))
    with pytest.raises(UserError, match="2 of them"):
        jaildam.remember(clip, ["a", "b"])
    with pytest.raises(UserError, match="3 benign rows"):
        jaildam.train_autoencoder(np.zeros((3, 4), np.float32))
