"""Thresholds and files of a trained check."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from crossguard_jax.cmai.consistency import ConsistencyConfig, make_check
from crossguard_jax.cmai.storage import SETTINGS, WEIGHTS, load_check, save_check
from crossguard_jax.cmai.threshold import Threshold, choose_threshold
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.tree import digest


def scores(n, seed=0):
    return np.random.default_rng(seed).normal(0.5, 0.2, n).astype(np.float32)


@pytest.mark.parametrize(("rate", "confidence"), [(0.9, 0.95), (0.99, 0.95), (0.99, 0.5)])
def test_the_share_passes_beyond_the_pairs_it_was_chosen_on(rate, confidence):
    n, tries = 500, 400
    taus = [choose_threshold(scores(n, s), rate, confidence).tau for s in range(tries)]
    truly = stats.norm.sf(taus, 0.5, 0.2)
    holds = int((truly >= rate).sum())
    # As often as promised, and no more cautious than an order statistic must be.
    assert holds >= stats.binom.ppf(1e-4, tries, confidence)
    assert np.mean(truly) < rate + 3 * np.sqrt(rate * (1 - rate) / n)
    for s in range(10):
        assert (scores(n, s) >= taus[s]).mean() >= rate


def test_a_lower_score_could_not_have_been_left_out():
    """The next order statistic up breaks the promise."""
    n, rate, confidence = 700, 0.98, 0.9
    tau = choose_threshold(scores(n), rate, confidence).tau
    k = int((np.sort(scores(n)) <= tau).sum())
    assert stats.binom.sf(k - 1, n, 1 - rate) >= confidence > stats.binom.sf(k, n, 1 - rate)


def test_the_pair_at_the_threshold_passes_also_in_float32():
    found = scores(400)
    tau = choose_threshold(found).tau
    assert np.isin(np.float32(tau), found)
    assert bool((jnp.asarray(found) >= tau)[int(np.argmax(found == np.float32(tau)))])


def test_too_few_pairs_are_an_error_that_says_how_many():
    with pytest.raises(UserError, match="at least 299"):
        choose_threshold(scores(298), 0.99, 0.95)
    assert choose_threshold(scores(299), 0.99, 0.95).tau == scores(299).min()


@pytest.mark.parametrize("bad", [{"pass_rate": 1.0}, {"confidence": 0.0}])
def test_a_bad_share_is_named(bad):
    with pytest.raises(UserError, match=f"cmcv.{next(iter(bad))}"):
        choose_threshold(scores(300), **bad)


def test_scores_that_are_no_numbers_are_refused():
    found = scores(400)
    found[7] = np.nan
    with pytest.raises(UserError, match="1 of 400"):
        choose_threshold(found)


@pytest.fixture
def check():
    config = ConsistencyConfig(6, 4, "verifier", 8, 16, (-2, 1), "language_model")
    return make_check(config, jax.random.key(3))


def test_a_check_comes_back_bit_for_bit(tmp_path, check):
    threshold = Threshold(0.1 + 0.2, 0.99, 0.95, 700)
    save_check(tmp_path / "new", check, threshold)
    again, cut = load_check(tmp_path / "new")
    assert cut == threshold and again.config == check.config
    assert digest(again) == digest(check)
    save_check(tmp_path, check)
    assert load_check(tmp_path)[1] is None


@pytest.mark.parametrize("file", [SETTINGS, WEIGHTS])
@pytest.mark.parametrize("harm", ["missing", "torn"])
def test_a_missing_or_torn_file_is_named(tmp_path, check, file, harm):
    save_check(tmp_path, check)
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).unlink()
    if harm == "torn":
        (tmp_path / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=file):
        load_check(tmp_path)


def test_weights_of_another_check_are_refused(tmp_path, check):
    save_check(tmp_path, check)
    settings = json.loads((tmp_path / SETTINGS).read_text())
    settings["check"]["text_width"] = 5
    (tmp_path / SETTINGS).write_text(json.dumps(settings))
    with pytest.raises(UserError, match="text.linear_1.kernel"):
        load_check(tmp_path)
