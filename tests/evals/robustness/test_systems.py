"""A configuration's suite against an immunized model: it runs, goes on, and is the same for all."""

from dataclasses import replace
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from crossguard_jax.attacks.logits import from_logits
from crossguard_jax.attacks.registry import REGISTRY, ROWS, WHOLE
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.cmai.policy import Policy
from crossguard_jax.core.config import load_config
from crossguard_jax.core.errors import UserError
from crossguard_jax.evals.robustness.figures import Robustness
from crossguard_jax.evals.robustness.lint import missing, unequal
from crossguard_jax.evals.robustness.systems import _aimed, attack_records, make_suite
from tests.cmai.small_systems import RECORDS, base, system_of, with_adapter
from tests.evals.robustness.test_figures import curve

KEY = jax.random.key(1)
PICTURED = [record for record in RECORDS if record.image is not None]


def attack(**changes) -> ConfigDict:
    """The configuration's suite, a step or two of each attack."""
    config = load_config("configs/cmai.py:tiny").attack
    with config.unlocked():
        for spec in config.attacks.values():
            spec.steps = 2
        config.update({"epsilons": (0.0, 8 / 255, 1.0), "batch_size": 4, "draws": 2})
        config.update(changes)
    return config


def only(config: ConfigDict, *names: str) -> ConfigDict:
    with config.unlocked():
        for name in set(config.attacks) - set(names):
            del config.attacks[name]
    return config


@pytest.fixture(scope="module")
def plain():
    return Immunized.of(base())


@pytest.fixture(scope="module")
def rejecting(plain):
    """The least consistent of four pictures is rejected."""
    system = system_of(with_adapter(plain.task.guard))
    x, rows = system.rows(PICTURED)
    s_c = np.asarray(jax.jit(system.s_c)(system.params, rows, jnp.asarray(x)))
    cut = {"below": float(np.sort(s_c)[:2].mean()), "do": "reject"}
    return replace(system, policy=Policy.from_config({"branches": [cut]}))


def smoothing(system, *others):
    """The same system with a branch of noise, beside the others given."""
    cut = system.policy.branches[0].below + 0.1
    noise = {"below": cut, "do": "smooth", "n": 2, "sigma": 0.05}
    return replace(system, policy=Policy.from_config({"branches": [noise, *others]}))


def both(system):
    """Noise, and rejection below it."""
    below = system.policy.branches[0].below
    return smoothing(system, {"below": below, "do": "reject"})


@pytest.fixture(scope="module")
def run(rejecting, plain, tmp_path_factory):
    """The suite on eight records, of which four have no picture."""
    folder = tmp_path_factory.mktemp("run")
    config = only(attack(), "apgd", "selective", "square", "transfer")
    return attack_records(
        config, rejecting, RECORDS, folder, plain, seed=5, convergence=False
    ), folder


@pytest.mark.robustness
def test_a_configurations_suite_runs_on_the_rows_with_a_picture(run, rejecting):
    found, _ = run
    whole = found.any
    assert list(found.curves) == [5] and whole.plan.rows == len(PICTURED)
    assert [e.name for e in whole.plan.attacks] == ["apgd", "selective", "square", "transfer"]
    kinds = {e.name: e.kind for e in whole.plan.attacks}
    assert kinds == {
        "apgd": "white_box",
        "selective": "adaptive",
        "square": "gradient_free",
        "transfer": "transfer",
    }
    decided = rejecting.decide(PICTURED)
    right = [word == r.label for word, r in zip(decided.words, PICTURED, strict=True)]
    np.testing.assert_array_equal(whole.right, right)
    np.testing.assert_array_equal(whole.clean_rejected, decided.decisions.rejected)
    assert whole.detects and whole.clean_rejected.sum() == 1 and 0 < whole.right.sum()
    assert not whole.won[0].any(), "radius 0 is clean"


@pytest.mark.robustness
def test_the_lint_names_what_is_missing_and_nothing_else(run):
    lines = missing(run[0])
    assert sum("convergence" in line for line in lines) == 2
    assert any(line.startswith("rows:") for line in lines)
    there = ("radius 0", "two radii", "monotone", "without gradients", "white-box", "EOT")
    assert not [line for line in lines for words in (*there, "knows the detector") if words in line]


def test_a_second_call_finds_every_cell_made(run, rejecting, plain):
    found, folder = run
    config = only(attack(), "apgd", "selective", "square", "transfer")
    files = sorted((folder / "curve").glob("*.npz"))
    stamps = [file.stat().st_mtime_ns for file in files]
    assert len(files) == 2 + 4 * 3
    again = attack_records(config, rejecting, RECORDS, folder, plain, seed=5, convergence=False)
    np.testing.assert_array_equal(again.any.won, found.any.won)
    assert [file.stat().st_mtime_ns for file in files] == stamps
    # Another system's cells are not taken for its own.
    with pytest.raises(UserError, match="holds another run"):
        attack_records(config, plain, RECORDS, folder, plain, convergence=False)


@pytest.mark.robustness
def test_convergence_doubles_what_the_curve_spent(plain, tmp_path):
    config = only(attack(epsilons=(0.0, 8 / 255)), "apgd")
    config.attacks.apgd.update({"search": "pgd", "steps": 1})
    found = attack_records(config, plain, RECORDS, tmp_path)
    spent = {
        what: {
            times: (c.plan.attacks[0].steps, c.plan.attacks[0].restarts) for times, c in by.items()
        }
        for what, by in found.convergence.items()
    }
    assert spent == {
        "steps": {1.0: (1, 1), 2.0: (2, 1)},
        "restarts": {1.0: (1, 1), 2.0: (1, 2)},
    }
    assert not found.any.detects
    words = ("twice as many", "attacks that made the curve", "radius of the curve")
    assert not [line for line in missing(found) for w in words if w in line]


# What is climbed


def every_way() -> ConfigDict:
    """Each attack on pictures that there is."""
    config = attack()
    names = [name for name, each in REGISTRY.items() if each.route in (ROWS, WHOLE)]
    with config.unlocked():
        config.attacks = {name: {"steps": 2} for name in names}
    return config


def test_a_target_is_hit_by_the_answer_that_it_names_alone():
    logits = jnp.array([[0.0, 3.0, 1.0], [0.0, 1.0, 3.0], [1.0, 0.0, 3.0]])

    def outcome(params, rows, x, key):
        return from_logits(lambda x, key: logits, rows["labels"])(x, key)

    system = Mock(Immunized, outcome=outcome)
    judge = _aimed(system, 2)
    rows = {"labels": jnp.array([0, 0, 2])}
    judged = judge({"own": None}, rows, jnp.zeros((3, 1)), KEY)
    assert (judged.margin > 0).tolist() == [False, True, False]


def test_every_attack_can_be_made_on_every_system(plain, rejecting):
    config = every_way()
    for system in (plain, rejecting, smoothing(rejecting), both(rejecting)):
        suite = make_suite(config, system, plain)
        x, rows = system.rows(PICTURED)
        rows |= {"clean": np.uint8(255 * x), "donors": np.uint8(255 * x[:, None])}
        params = {"own": system.params, "other": plain.params}
        assert list(suite.attacks) == list(config.attacks)
        for name, each in suite.attacks.items():
            outcome = jax.eval_shape(each.objective, params, rows, jnp.asarray(x), KEY)
            assert outcome.loss.shape == (4,), name


def of_plan(suite):
    """A curve of that suite's plan: what was found does not matter here."""
    entries = tuple(a.entry(name) for name, a in suite.attacks.items())
    return Robustness({0: curve(entries=entries)})


@pytest.mark.parametrize("config", [attack(), every_way()], ids=["the suite", "every way"])
def test_every_system_is_given_the_same_budget(plain, rejecting, config):
    systems = {
        "immunized": both(rejecting),
        "smoothing": smoothing(rejecting),
        "rejecting": rejecting,
        "plain": plain,
    }
    found = {name: of_plan(make_suite(config, s, plain)) for name, s in systems.items()}
    assert unequal(found) == ()
    with config.unlocked():
        config.attacks["apgd"] = {"search": "apgd", "steps": 2}
    found = {"plain": of_plan(make_suite(config, plain, plain))}
    config.attacks.apgd.steps = 3
    found["cheaper"] = of_plan(make_suite(config, plain, plain))
    assert any("cheaper was attacked by apgd" in line for line in unequal(found))


def test_a_transfer_attack_climbs_the_other_model(plain, rejecting):
    suite = make_suite(attack(), rejecting, plain)
    x, rows = rejecting.rows(PICTURED)
    params = {"own": rejecting.params, "other": plain.params}
    transfer = jax.jit(suite.attacks["transfer"].objective)(params, rows, jnp.asarray(x), KEY)
    own = jax.jit(plain.outcome)(plain.params, rows, jnp.asarray(x), KEY)
    np.testing.assert_allclose(transfer.loss, own.margin, atol=1e-5)
    assert transfer.detector is None


def test_what_is_unknown_is_named(plain):
    for change, words in (
        ({"search": "magic"}, "attack.attacks.apgd.search 'magic' is none of noise, pgd"),
        ({"climb": "ladder"}, "attack.attacks.apgd.climb 'ladder' is none of loss"),
        ({"stairs": 3}, "attack.attacks.apgd: unknown stairs, did you mean 'restarts'"),
        ({"transfer": True}, "attack.attacks.apgd: transfer, and there is no other model"),
    ):
        config = only(attack(), "apgd")
        with config.unlocked():
            config.attacks.apgd.update(change)
        with pytest.raises(UserError, match=words):
            make_suite(config, plain)


def test_rows_without_pictures_cannot_be_attacked(plain, tmp_path):
    rows = [record for record in RECORDS if record.image is None]
    with pytest.raises(UserError, match="0 of 4 rows have a picture"):
        attack_records(attack(), plain, rows, tmp_path)
