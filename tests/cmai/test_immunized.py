"""An immunized model: what attacks see is what users get, and a folder keeps all of it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossguard_jax.cmai import immunized as module
from crossguard_jax.cmai.features import picture_features
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.cmai.policy import Policy, as_config
from crossguard_jax.cmai.review import ReviewQueue, read_queue
from crossguard_jax.cmai.threshold import Threshold
from crossguard_jax.core.errors import UserError
from crossguard_jax.guard.guard import Guard
from crossguard_jax.nn import lora
from tests.cmai.small_systems import LENGTH, RECORDS, base, system_of, with_adapter

KEY = jax.random.key(3)
SEEN = np.array([record.image is not None for record in RECORDS])


@pytest.fixture(scope="module")
def plain():
    return base()


@pytest.fixture(scope="module")
def guard(plain):
    return with_adapter(plain)


@pytest.fixture(scope="module")
def trained(guard):
    """Everything but a policy, with the rows as an attack takes them and their S_c."""
    system = system_of(guard)
    x, rows = system.rows(RECORDS, LENGTH)
    s_c = np.asarray(jax.jit(system.s_c)(system.params, rows, jnp.asarray(x)))
    return system, x, rows, s_c


def between(s_c, k):
    """A score above those of the k least consistent pictures."""
    low, high = np.sort(s_c[SEEN])[k - 1 : k + 1]
    return float(low + high) / 2


@pytest.fixture(scope="module")
def rejecting(trained):
    system, _, _, s_c = trained
    cut = {"below": between(s_c, 2), "do": "reject"}
    return replace(system, policy=Policy.from_config({"branches": [cut]}))


@pytest.fixture(scope="module")
def noisy(trained):
    """The two least consistent pictures are rejected, the next one is smoothed."""
    system, _, _, s_c = trained
    branches = [
        {"below": between(s_c, 2), "do": "reject"},
        {"below": between(s_c, 3), "do": "smooth", "n": 2, "sigma": 0.1, "scales": [0.0, 1.0]},
    ]
    policy = Policy.from_config({"branches": branches})
    threshold = Threshold(branches[0]["below"], 0.5, 0.5, 4)
    return replace(system, policy=policy, threshold=threshold)


def seen_by_attacks(system, x, rows):
    outcome = jax.jit(system.outcome)(system.params, rows, jnp.asarray(x), KEY)
    return {name: np.asarray(getattr(outcome, name)) for name in ("loss", "margin", "detector")}


def agree(outcome, decided, rows):
    """Same rows rejected, and of the others the same ones right."""
    np.testing.assert_array_equal(outcome["detector"] > 0, decided.decisions.rejected)
    answered = ~decided.decisions.rejected
    right = [word == r.label for word, r in zip(decided.words, rows, strict=True)]
    np.testing.assert_array_equal(outcome["margin"][answered] <= 0, np.array(right)[answered])
    return np.array(right)[answered]


@pytest.mark.robustness
def test_what_attacks_see_is_what_users_get(trained, rejecting, guard):
    _, x, rows, s_c = trained
    decided = rejecting.decide(RECORDS, length=LENGTH)
    right = agree(seen_by_attacks(rejecting, x, rows), decided, RECORDS)
    assert 0 < right.sum() < len(right), "all alike: it would show nothing"
    assert decided.decisions.rejected.sum() == 2 and decided.labels == ("safe", "unsafe")
    np.testing.assert_allclose(decided.s_c, s_c, atol=1e-5)
    # What is answered, the guard answers too.
    p = [v.p_unsafe for v in guard.score([r.image for r in RECORDS], [r.text for r in RECORDS])]
    answered = ~decided.decisions.rejected
    found = decided.decisions.answers[answered, 1]
    np.testing.assert_allclose(found, np.array(p)[answered], atol=1e-5)
    assert [word == "" for word in decided.words] == decided.decisions.rejected.tolist()
    assert np.isnan(decided.decisions.answers[~answered]).all()


@pytest.mark.robustness
def test_it_is_so_through_noise_and_every_branch(trained, noisy, monkeypatch):
    _, x, rows, _ = trained
    # The only difference between the two is whose noise a row gets: give it the same.
    monkeypatch.setattr(module, "row_keys", lambda key, ids: jax.random.split(key, len(ids)))
    decided = noisy.decide(RECORDS, key=KEY, length=LENGTH)
    outcome = seen_by_attacks(noisy, x, rows)
    agree(outcome, decided, RECORDS)
    assert decided.decisions.passes.tolist().count(2) == 1
    label = np.asarray(rows["labels"])
    p = decided.decisions.answers[np.arange(len(label)), label]
    answered = ~decided.decisions.rejected
    np.testing.assert_allclose(np.exp(-outcome["loss"])[answered], p[answered], atol=1e-5)


@pytest.mark.robustness
def test_an_attack_held_to_the_last_branch_has_the_plain_answer(trained, noisy):
    _, x, rows, _ = trained
    found = jax.jit(noisy.accepted)(noisy.params, rows, jnp.asarray(x), KEY)
    decided = noisy.decide(RECORDS, length=LENGTH)
    last = len(noisy.policy.branches) - 1
    np.testing.assert_array_equal(
        np.asarray(found.detector) > 0, decided.decisions.branches != last
    )
    undefended = seen_by_attacks(replace(noisy, policy=Policy()), x, rows) | {"detector": None}
    np.testing.assert_allclose(found.margin, undefended["margin"], atol=1e-5)


def test_without_branches_nothing_detects(plain):
    system = Immunized.of(plain)
    x, rows = system.rows(RECORDS[:2], LENGTH)
    for of in (system.outcome, system.accepted):
        assert jax.eval_shape(of, system.params, rows, jnp.asarray(x), KEY).detector is None


# Requests


@pytest.mark.robustness
def test_no_label_is_looked_at_and_no_neighbour(noisy):
    whole = noisy.decide(RECORDS, length=LENGTH)
    asked = [replace(r, label=word) for r, word in zip(RECORDS, ["", "perhaps"] * 4, strict=True)]
    few = noisy.decide(asked, length=LENGTH, batch_size=4)
    np.testing.assert_allclose(few.decisions.answers, whole.decisions.answers, atol=1e-5)
    np.testing.assert_array_equal(few.decisions.branches, whole.decisions.branches)
    assert few.words == whole.words and set(whole.words) == {"", "safe", "unsafe"}
    # Other noise is another answer, where there is noise at all.
    other = noisy.decide(RECORDS, key=KEY, length=LENGTH)
    moved = np.abs(other.decisions.answers - whole.decisions.answers).max(axis=1) > 1e-6
    np.testing.assert_array_equal(moved, whole.decisions.passes == 2)


def test_requests_of_one_name_are_refused(rejecting):
    with pytest.raises(UserError, match="occurs twice"):
        rejecting.decide([RECORDS[0], RECORDS[0]], length=LENGTH)


def test_what_is_flagged_is_in_the_queue(trained, tmp_path):
    system, _, _, s_c = trained
    cut = {"below": between(s_c, 2), "do": "flag"}
    flagging = replace(system, policy=Policy.from_config({"branches": [cut]}))
    with pytest.raises(UserError, match="give a queue"):
        flagging.decide(RECORDS, length=LENGTH)
    path = tmp_path / "queue.jsonl"
    decided = flagging.decide(RECORDS, queue=ReviewQueue(path), length=LENGTH, batch_size=4)
    flagged = decided.decisions.flagged
    assert flagged.sum() == 2 and "" not in decided.words
    rows = list(read_queue(path))
    assert [row.id for row in rows] == [r.id for r, f in zip(RECORDS, flagged, strict=True) if f]
    assert {row.reason.split()[0] for row in rows} == {"S_c"}
    np.testing.assert_allclose([row.s_c for row in rows], decided.s_c[flagged])
    np.testing.assert_allclose(
        [row.p_unsafe for row in rows], decided.decisions.answers[flagged, 1]
    )
    assert [row.images() for row in rows] == [RECORDS[i].images for i in np.flatnonzero(flagged)]


# The regime


@pytest.mark.robustness
def test_the_regime_is_where_nothing_is_suspicious(trained, plain, guard):
    system, x, rows, _ = trained
    images, texts = [r.image for r in RECORDS], [r.text for r in RECORDS]
    p = [np.array([v.p_unsafe for v in g.score(images, texts)]) for g in (plain, guard)]
    relaxed = replace(system, regime=0.0)
    inputs = rows | {"pixels": jnp.asarray(x)}
    scale = np.array([0.0, 1.0] * 4, np.float32)
    found = np.asarray(jax.jit(relaxed.predict)(relaxed.params, inputs, jnp.asarray(scale)))
    np.testing.assert_allclose(found[:, 1], np.where(scale == 0, *p), atol=1e-5)
    outcome = seen_by_attacks_plainly(relaxed, x, rows)
    label = rows["labels"]
    right = np.where(label, p[0], 1 - p[0])
    np.testing.assert_allclose(np.exp(-outcome.loss), right, atol=1e-5)
    # S_c is of the pictures as that regime sees them.
    pixels = plain.encoder.pixels([image for image in images if image is not None])
    layers = plain.model.config.vision_feature_layer
    h_v = jax.jit(lambda t, x: picture_features(t, x, layers))(plain.model.vision_tower, pixels)
    check = system.task.check(system.trainable)
    s_c = jax.jit(relaxed.s_c)(relaxed.params, rows, jnp.asarray(x))
    np.testing.assert_allclose(s_c[SEEN], check(h_v, jnp.asarray(rows["h_t"][SEEN])), atol=1e-4)


def seen_by_attacks_plainly(system, x, rows):
    return jax.jit(system.outcome)(system.params, rows, jnp.asarray(x), KEY)


# Folders


def test_a_folder_gives_the_same_outcome_and_the_same_policy(trained, noisy, tmp_path):
    _, x, rows, _ = trained
    noisy.save_pretrained(tmp_path / "model")
    again = Immunized.from_pretrained(tmp_path / "model")
    assert again.policy == noisy.policy and again.threshold == noisy.threshold
    assert again.task.labels == noisy.task.labels
    x_again, rows_again = again.rows(RECORDS, LENGTH)
    np.testing.assert_array_equal(x_again, x)
    before, after = seen_by_attacks(noisy, x, rows), seen_by_attacks(again, x_again, rows_again)
    for name in before:
        np.testing.assert_allclose(after[name], before[name], atol=2e-4, err_msg=name)


def test_a_folder_without_a_check_is_a_model_as_it_is(plain, tmp_path):
    Immunized.of(plain, ("red", "green", "blue")).save_pretrained(tmp_path / "k")
    again = Immunized.from_pretrained(tmp_path / "k")
    assert again.task.labels == ("red", "green", "blue")
    assert again.policy == Policy() and again.threshold is None and again.task.reader is None
    ordinary = Immunized.from_pretrained("toy://llava", prompt="short")
    assert ordinary.task.labels == ("safe", "unsafe")


def test_a_policy_that_blends_is_not_merged(trained, tmp_path):
    system, *_ = trained
    robust = Policy.from_config({"branches": [{"below": 0.1, "do": "robust"}]})
    for blending in (replace(system, policy=robust), replace(system, regime=0.5)):
        with pytest.raises(UserError, match="blends the adapter"):
            blending.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_check_that_reads_with_the_model_as_it_was_is_not_saved_without_it(guard, tmp_path):
    with pytest.raises(UserError, match="text_source language_model"):
        system_of(guard, "language_model").save_pretrained(tmp_path / "model")
    tower = lora.attach(lora.detach(guard.model), r"vision_tower\..*\.q_proj", 2, 2.0, KEY)
    seeing = Guard(tower, guard.folder, guard.settings)
    system_of(seeing, "language_model").save_pretrained(tmp_path / "model")
    again = Immunized.from_pretrained(tmp_path / "model")
    assert again.task.reader.source == "language_model" and again.task.reader.graphdef is None


def test_systems_that_differ_in_their_cuts_alone_are_one_program(trained, noisy):
    _, x, rows, s_c = trained
    branches = [{"below": between(s_c, 1), "do": "reject"}]
    branches += [{**as_config(noisy.policy.branches[1]), "below": between(s_c, 3)}]
    other = replace(noisy, policy=Policy.from_config({"branches": branches}))
    inputs = (rows, jnp.asarray(x), KEY)
    programs = {
        jax.jit(system.outcome).lower(system.params, *inputs).as_text() for system in (noisy, other)
    }
    assert len(programs) == 1
    caught = [seen_by_attacks(system, x, rows)["detector"] > 0 for system in (noisy, other)]
    assert caught[0].sum() == 2 and caught[1].sum() == 1
