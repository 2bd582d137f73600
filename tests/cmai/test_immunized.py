"""An immunized model: what attacks see is what users get, and a folder keeps all of it."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossguard_jax.cmai import immunized as module
from crossguard_jax.cmai.features import picture_features
from crossguard_jax.cmai.folders import load_immunized, save_immunized
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.cmai.policy import Policy, as_config
from crossguard_jax.cmai.review import ReviewQueue, read_queue
from crossguard_jax.cmai.threshold import Threshold
from crossguard_jax.core.errors import UserError
from crossguard_jax.guard.guard import Guard
from crossguard_jax.systems.load import load
from tests.cmai.small_systems import RECORDS, base, on_device, system_of, with_adapter

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
    x, rows = system.rows(RECORDS)
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
    decided = rejecting.decide(RECORDS)
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
    monkeypatch.setattr(
        module, "content_keys", lambda secret, texts, seen: jax.random.split(KEY, len(texts))
    )
    decided = noisy.decide(RECORDS)
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
    decided = noisy.decide(RECORDS)
    last = len(noisy.policy.branches) - 1
    np.testing.assert_array_equal(
        np.asarray(found.detector) > 0, decided.decisions.branches != last
    )
    undefended = seen_by_attacks(replace(noisy, policy=Policy()), x, rows) | {"detector": None}
    np.testing.assert_allclose(found.margin, undefended["margin"], atol=1e-5)


def test_without_branches_nothing_detects(plain):
    system = Immunized.of(plain)
    x, rows = system.rows(RECORDS[:2])
    for of in (system.outcome, system.accepted):
        assert jax.eval_shape(of, system.params, rows, jnp.asarray(x), KEY).detector is None


# Requests


@pytest.mark.robustness
def test_no_label_is_looked_at_and_no_neighbour(noisy):
    whole = noisy.decide(RECORDS)
    asked = [replace(r, label=word) for r, word in zip(RECORDS, ["", "perhaps"] * 4, strict=True)]
    few = noisy.decide(asked, batch_size=4)
    np.testing.assert_allclose(few.decisions.answers, whole.decisions.answers, atol=1e-5)
    np.testing.assert_array_equal(few.decisions.branches, whole.decisions.branches)
    assert few.words == whole.words and set(whole.words) == {"", "safe", "unsafe"}
    # Another secret is other noise and another answer, where there is noise at all.
    other = replace(noisy, secret=b"another").decide(RECORDS)
    moved = np.abs(other.decisions.answers - whole.decisions.answers).max(axis=1) > 1e-6
    np.testing.assert_array_equal(moved, whole.decisions.passes == 2)


@pytest.mark.robustness
def test_noise_is_of_the_content_and_the_secret_alone(noisy):
    one, two = (replace(r, id=name) for r, name in zip([RECORDS[0]] * 2, "ab", strict=True))
    smooth = Policy.from_config({"branches": [{"below": 2.0, "do": "smooth", "sigma": 0.2}]})
    system = replace(noisy, policy=smooth)
    same = system.decide([one, two, RECORDS[2]]).decisions.answers
    assert same[0].tolist() == same[1].tolist()
    again = system.decide([RECORDS[2], two]).decisions.answers
    np.testing.assert_allclose(again, same[[2, 1]], atol=1e-5)
    asked = replace(one, text=one.text + " ")
    assert not np.allclose(system.decide([asked]).decisions.answers, same[:1], atol=1e-6)


# Long texts and several pictures

LONG = "what colour is it ? is it on the left ? " * 12


@pytest.fixture(scope="module")
def windowed(guard):
    settings = replace(guard.settings, window=32)
    return system_of(Guard(guard.model, guard.folder, settings))


def whole_requests():
    """Long texts, several pictures, and both."""
    shown = [r.images[0] for r in RECORDS if r.images]
    return [
        replace(RECORDS[0], text=LONG + RECORDS[0].text),
        replace(RECORDS[0], images=(shown[0], shown[1])),
        replace(RECORDS[0], images=(shown[0], shown[1], shown[2]), text=RECORDS[0].text + LONG),
        replace(RECORDS[1], text=LONG),
        RECORDS[2],
    ]


@pytest.mark.robustness
def test_without_a_policy_a_whole_request_has_the_guards_own_verdict(windowed):
    records = whole_requests()
    images, texts = [r.images for r in records], [r.text for r in records]
    expected = windowed.guard.score(images, texts)
    found = windowed.score(images, texts)
    assert [v.windows for v in found] == [v.windows for v in expected]
    assert max(v.windows for v in found) > 4
    np.testing.assert_allclose(
        [v.p_unsafe for v in found], [v.p_unsafe for v in expected], atol=1e-5
    )


@pytest.mark.robustness
def test_s_c_is_the_least_over_windows_and_pictures(windowed):
    records = whole_requests()
    decided = windowed.decide(records)
    task = windowed.task
    for record, s_c in zip(records, decided.s_c, strict=True):
        each = [1.0]
        for image in record.images:
            for ids in task.reader.windows([record.text])[0]:
                (request,) = task.encode([record.text], [[image]])
                arrays = on_device(task.stack([replace(request, read=[ids])]))
                batch = task.read(windowed.trainable, windowed.frozen, arrays)
                _, h_v = task.see(windowed.trainable, windowed.frozen, arrays["pixels"])
                each.append(float(task.s_c(windowed.trainable, batch, h_v)[0]))
        np.testing.assert_allclose(s_c, min(each), atol=1e-5)


@pytest.mark.robustness
@pytest.mark.parametrize("which", [None, 0, 1])
def test_what_attacks_see_of_whole_requests_is_what_users_get(windowed, which):
    records = [replace(record, label="unsafe") for record in whole_requests()]
    x, rows = windowed.rows(records, which)
    assert x.ndim == (5 if which is None else 4)
    outcome = seen_by_attacks_plainly(windowed, x, rows)
    decided = windowed.decide(records)
    np.testing.assert_allclose(np.exp(-outcome.loss), decided.decisions.answers[:, 1], atol=1e-5)
    # A step of an attack moves that picture alone.
    other = seen_by_attacks_plainly(windowed, np.clip(x + 0.1, 0, 1), rows)
    assert not np.allclose(other.loss[:3], outcome.loss[:3], atol=1e-6)


def test_a_faulty_request_costs_itself_alone(windowed):
    shown = [RECORDS[0].images, b"no picture", None, None]
    texts = [RECORDS[0].text, "a", "", RECORDS[1].text]
    verdicts = windowed.score_each(shown, texts)
    assert [isinstance(v, UserError) for v in verdicts] == [False, True, True, False]
    alone = windowed.score([shown[3]], [texts[3]])[0]
    np.testing.assert_allclose(verdicts[3].p_unsafe, alone.p_unsafe, atol=1e-5)


def test_a_rejected_request_is_stopped_at_any_threshold(rejecting):
    images, texts = [r.images for r in RECORDS], [r.text for r in RECORDS]
    verdicts = rejecting.score(images, texts, threshold=1.0)
    rejected = [v for v in verdicts if v.rejected]
    assert len(rejected) == 2
    for verdict in rejected:
        assert (verdict.p_unsafe, verdict.unsafe, verdict.branch) == (1.0, True, "reject")
    assert all(v.s_c is not None for v in verdicts)


def test_what_is_flagged_is_in_the_queue(trained, tmp_path):
    system, _, _, s_c = trained
    cut = {"below": between(s_c, 2), "do": "flag"}
    flagging = replace(system, policy=Policy.from_config({"branches": [cut]}))
    with pytest.raises(UserError, match="give a queue"):
        flagging.decide(RECORDS)
    path = tmp_path / "queue.jsonl"
    decided = flagging.decide(RECORDS, queue=ReviewQueue(path), batch_size=4)
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
    np.testing.assert_allclose(s_c[SEEN], check(h_v, jnp.asarray(rows["h_t"][SEEN, 0])), atol=1e-4)


def seen_by_attacks_plainly(system, x, rows):
    return jax.jit(system.outcome)(system.params, rows, jnp.asarray(x), KEY)


# Folders


@pytest.fixture(scope="module")
def saved(noisy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("immunized") / "model"
    save_immunized(noisy, folder)
    return folder


def test_a_folder_gives_the_same_outcome_and_the_same_policy(trained, noisy, saved):
    _, x, rows, _ = trained
    again = load_immunized(saved)
    assert again.policy == noisy.policy and again.threshold == noisy.threshold
    assert again.task.labels == noisy.task.labels
    x_again, rows_again = again.rows(RECORDS)
    np.testing.assert_array_equal(x_again, x)
    before, after = seen_by_attacks(noisy, x, rows), seen_by_attacks(again, x_again, rows_again)
    for name in before:
        np.testing.assert_allclose(after[name], before[name], atol=2e-4, err_msg=name)


def test_a_folder_names_no_place_and_stands_alone_where_it_is_moved(saved, noisy, tmp_path):
    place = tmp_path / "elsewhere"
    shutil.copytree(saved, place)
    for file in (p for p in place.rglob("*.json") if p.is_file()):
        assert "toy://" not in file.read_text() or file.name == "README.md", file
    before, after = (load_immunized(f).decide(RECORDS).decisions for f in (saved, place))
    np.testing.assert_array_equal(after.answers, before.answers)


def test_the_secret_is_the_folders_own(saved, noisy, tmp_path):
    save_immunized(noisy, tmp_path / "model")
    one, other = (load_immunized(folder).secret for folder in (saved, tmp_path / "model"))
    assert len(one) == len(other) == 64 and one != other
    assert (saved / "noise_secret").stat().st_mode & 0o077 == 0
    (tmp_path / "model" / "noise_secret").unlink()
    drawn = {load_immunized(tmp_path / "model").secret for _ in range(2)}
    assert len(drawn) == 2
    seeded = [load_immunized(folder, noise_seed=3).secret for folder in (saved, tmp_path / "model")]
    assert seeded[0] == seeded[1]


def test_programs_are_shared_between_loads(saved):
    one, other = load_immunized(saved, noise_seed=0), load_immunized(saved, noise_seed=0)
    assert one.part == other.part and hash(one.part) == hash(other.part)
    one.decide(RECORDS)
    before = module._scores._cache_size()
    other.decide(RECORDS)
    assert module._scores._cache_size() == before


@pytest.mark.robustness
@pytest.mark.parametrize("source", ["clip", "language_model"])
@pytest.mark.parametrize(
    "blend",
    [
        {"do": "robust"},
        {"do": "robust", "full": -0.5},
        {"do": "smooth", "n": 2, "sigma": 0.0, "scales": [0.0, 1.0]},
    ],
)
def test_a_policy_that_blends_the_adapter_survives_its_folder(guard, source, blend, tmp_path):
    policy = Policy.from_config({"branches": [{"below": 0.1, **blend}]})
    for regime in (0.0, 0.4):
        system = replace(system_of(guard, source), policy=policy, regime=regime)
        save_immunized(system, tmp_path / f"{regime}")
        again = load_immunized(tmp_path / f"{regime}", noise_seed=1)
        before = replace(system, secret=again.secret).decide(RECORDS)
        after = again.decide(RECORDS)
        assert {*before.decisions.branches} == {0, 1}, "one branch alone would show nothing"
        np.testing.assert_array_equal(after.decisions.branches, before.decisions.branches)
        np.testing.assert_allclose(after.s_c, before.s_c, atol=2e-4)
        np.testing.assert_allclose(
            after.decisions.answers, before.decisions.answers, atol=2e-4, rtol=0
        )
    plain = replace(system, policy=Policy(), regime=1.0).decide(RECORDS).decisions.answers
    assert np.abs(plain - before.decisions.answers).max() > 1e-3


def test_a_folder_without_a_check_is_a_model_as_it_is(plain, tmp_path):
    save_immunized(Immunized.of(plain, ("red", "green", "blue")), tmp_path / "k")
    again = load_immunized(tmp_path / "k")
    assert again.task.labels == ("red", "green", "blue")
    assert again.policy == Policy() and again.threshold is None and again.task.reader is None
    ordinary = load_immunized("toy://llava", prompt="short")
    assert ordinary.task.labels == ("safe", "unsafe")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"regime": 2}, "regime 2 is not a number from 0 to 1"),
        ({"branches": "reject"}, "branches 'reject' is no list"),
        ({"branches": [{"below": 0.1, "do": "shrug"}]}, "do 'shrug' is none of"),
    ],
)
def test_a_damaged_policy_is_refused_by_its_field(saved, tmp_path, change, message):
    shutil.copytree(saved, tmp_path / "m")
    path = tmp_path / "m" / "cmai.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        load_immunized(tmp_path / "m")


def test_a_folder_without_its_check_does_not_answer_as_if_nothing_were_missing(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "m")
    shutil.rmtree(tmp_path / "m" / "consistency")
    with pytest.raises(UserError, match="the check is gone"):
        load_immunized(tmp_path / "m")


@pytest.mark.parametrize("left", ["consistency", "noise_secret"])
def test_a_folder_without_its_policy_is_no_plain_model(saved, tmp_path, left):
    shutil.copytree(saved, tmp_path / "m")
    for name in {"cmai.json", "consistency", "noise_secret"} - {left}:
        path = tmp_path / "m" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for opened in (load_immunized, load):
        with pytest.raises(UserError, match=f"has {left} and no cmai.json"):
            opened(tmp_path / "m")


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
