"""The bootstrap against a plain loop over drawn rows, and tests of pairs against scipy."""

import numpy as np
import pytest
from scipy import stats

from crossguard_jax.core import metrics
from crossguard_jax.core.resampling import Resamples, holm, mcnemar


def case(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with ties, truth, and clusters of one to four rows; one score is an infinity."""
    rng = np.random.default_rng(seed)
    clusters = np.repeat([f"c{i}" for i in range(30)], rng.integers(1, 5, 30))
    unsafe = rng.random(clusters.size) < 0.5
    scores = np.round(rng.normal(0.4 + 0.2 * unsafe, 0.3), 1)
    scores[0] = np.inf
    return scores, unsafe, clusters


def drawn_rows(draws: Resamples, clusters: np.ndarray) -> list[np.ndarray]:
    """The rows of each sample, one after the other, as a plain loop takes them."""
    names = np.unique(clusters)
    samples = []
    for counts in draws.counts:
        rows: list[int] = []
        for name, times in zip(names, counts.astype(int), strict=True):
            rows += [int(i) for i in np.flatnonzero(clusters == name)] * times
        samples.append(np.array(rows))
    return samples


@pytest.mark.parametrize("seed", range(4))
def test_every_statistic_equals_a_plain_loop_over_the_drawn_rows(seed):
    scores, unsafe, clusters = case(seed)
    says = scores >= 0.5
    draws = Resamples.draw(clusters, 40, seed)
    auroc, auprc = draws.ranking(scores, unsafe)
    asr, fpr, f1 = draws.rates(says, unsafe)
    got = {"asr": asr, "fpr": fpr, "f1": f1, "auroc": auroc, "auprc": auprc}
    for i, rows in enumerate(drawn_rows(draws, clusters)):
        p, truth = scores[rows], unsafe[rows]
        plain = {
            "asr": metrics.attack_success_rate(p, truth, 0.5),
            "fpr": metrics.false_positive_rate(p, truth, 0.5),
            "f1": metrics.f1_score(p, truth, 0.5),
            "auroc": metrics.auroc(p, truth),
            "auprc": metrics.average_precision(p, truth),
        }
        for name, estimate in plain.items():
            assert got[name][i] == pytest.approx(estimate.value, abs=1e-12), name


def test_a_sample_draws_as_many_clusters_as_there_are_each_equally_often():
    draws = Resamples.draw(np.array(list("aabbbc")), 2_000, 1)
    assert draws.clusters == 3 and (draws.counts.sum(1) == 3).all()
    np.testing.assert_allclose(draws.counts.mean(0), 1, atol=0.06)
    again = Resamples.draw(np.array(list("aabbbc")), 2_000, 1)
    np.testing.assert_array_equal(draws.counts, again.counts)
    assert (Resamples.draw(np.array(list("aabbbc")), 2_000, 2).counts != draws.counts).any()


def test_rows_that_hang_together_widen_the_interval_and_rows_alone_do_not():
    rng = np.random.default_rng(0)
    of_cluster = rng.random(50) < 0.4
    hits = np.repeat(of_cluster, 8)
    widths = []
    for clusters in (np.repeat(np.arange(50), 8), np.arange(400)):
        draws = Resamples.draw(clusters, 1_000, 0)
        estimate = draws.estimate(hits.mean(), draws.rates(hits, np.zeros(400, bool))[1])
        widths.append(estimate.high - estimate.low)
        assert estimate.n == len(set(clusters.tolist()))
    wilson = metrics.proportion(hits)
    assert widths[0] > 2 * widths[1]
    assert widths[1] == pytest.approx(wilson.high - wilson.low, rel=0.15)


def test_samples_without_a_class_are_left_out_and_none_at_all_has_no_interval():
    scores, unsafe = np.array([0.1, 0.9]), np.array([False, True])
    draws = Resamples.draw(np.array(["a", "b"]), 200, 0)
    auroc, _ = draws.ranking(scores, unsafe)
    assert 0 < np.isnan(auroc).sum() < 200
    assert draws.estimate(1.0, auroc).low == 1.0
    assert draws.estimate(np.nan, np.full(200, np.nan)).n == 0
    empty = Resamples.draw(np.array([], str), 10, 0)
    assert empty.estimate(np.nan, empty.rates(np.array([], bool), np.array([], bool))[0]).n == 0


@pytest.mark.parametrize("seed", range(6))
def test_mcnemar_is_scipys_exact_binomial_on_the_rows_that_differ(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.random(200) < 0.3, rng.random(200) < 0.3 + 0.05 * seed
    only_a, n = int((a & ~b).sum()), int((a != b).sum())
    got = mcnemar(a, b)
    assert (got.value, got.n) == (pytest.approx(stats.binomtest(only_a, n).pvalue, abs=1e-12), n)
    assert mcnemar(b, a) == got


def test_mcnemar_of_systems_that_never_differ_is_one_and_of_many_rows_is_a_number():
    same = np.array([True, False])
    assert (mcnemar(same, same).value, mcnemar(same, same).n) == (1.0, 0)
    many = np.arange(4_000) < 2_100
    assert mcnemar(many, ~many).value == pytest.approx(
        stats.binomtest(2_100, 4_000).pvalue, rel=1e-9
    )


def test_holm_equals_its_definition_and_keeps_the_order():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []
