"""Metrics against naive loops, scipy and published worked examples."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from crossguard_jax.core import metrics
from crossguard_jax.core.metrics import Estimate

SEEDS = range(8)


def tied_case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores on a coarse grid, so that ties within and between the classes are certain."""
    rng = np.random.default_rng(seed)
    unsafe = rng.random(60) < 0.4
    return np.round(np.clip(rng.normal(0.4 + 0.2 * unsafe, 0.25), 0, 1), 1), unsafe


def paired_case(both: int, only_a: int, only_b: int, neither: int) -> Estimate:
    counts = (both, only_a, only_b, neither)
    return metrics.paired_difference(
        np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_rates_at_a_threshold_equal_a_naive_count(seed):
    p, unsafe = tied_case(seed)
    for threshold in (0.0, 0.3, 0.5, 1.0, 1.1):
        through = [p_i < threshold for p_i, u in zip(p, unsafe, strict=True) if u]
        alarms = [p_i >= threshold for p_i, u in zip(p, unsafe, strict=True) if not u]
        right = [(p_i >= threshold) == u for p_i, u in zip(p, unsafe, strict=True)]
        asr = metrics.attack_success_rate(p, unsafe, threshold)
        fpr = metrics.false_positive_rate(p, unsafe, threshold)
        assert (asr.value, asr.n) == (sum(through) / len(through), len(through))
        assert (fpr.value, fpr.n) == (sum(alarms) / len(alarms), len(alarms))
        assert metrics.accuracy(p, unsafe, threshold).value == sum(right) / len(right)


def test_a_row_exactly_at_the_threshold_is_flagged():
    assert metrics.flagged(np.array([0.5]), 0.5).tolist() == [True]
    assert metrics.flagged(np.array([np.nextafter(0.5, 0)]), 0.5).tolist() == [False]


@pytest.mark.parametrize("seed", SEEDS)
def test_auroc_with_ties_equals_counting_every_pair(seed):
    p, unsafe = tied_case(seed)
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in p[unsafe] for b in p[~unsafe]]
    got = metrics.auroc(p, unsafe)
    assert got.value == pytest.approx(np.mean(pairs), abs=1e-12)
    u = stats.mannwhitneyu(p[unsafe], p[~unsafe]).statistic
    assert got.value == pytest.approx(u / len(pairs), abs=1e-12)
    assert got.low < got.value < got.high


def test_auroc_interval_at_the_ends_keeps_its_width():
    unsafe = np.repeat([True, False], 25)
    perfect = metrics.auroc(unsafe.astype(float), unsafe)
    worst = metrics.auroc((~unsafe).astype(float), unsafe)
    assert perfect.value == perfect.high == 1.0 and 0.85 < perfect.low < 0.95
    assert worst.value == worst.low == 0.0
    assert worst.high == pytest.approx(1 - perfect.low, abs=1e-12)


def test_auroc_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    unsafe = np.repeat([True, False], (40, 60))
    truth = stats.norm.cdf(1.5 / math.sqrt(2))
    covered = 0
    for _ in range(400):
        got = metrics.auroc(rng.normal(1.5 * unsafe, 1.0), unsafe)
        covered += got.low <= truth <= got.high
    assert 0.92 <= covered / 400 <= 0.99


@pytest.mark.parametrize("seed", SEEDS)
def test_roc_curve_has_one_point_per_distinct_score_and_the_area_of_auroc(seed):
    p, unsafe = tied_case(seed)
    curve = metrics.roc_curve(p, unsafe)
    assert curve.thresholds[0] == np.inf
    assert curve.thresholds[1:].tolist() == sorted(set(p.tolist()), reverse=True)
    for fpr, tpr, threshold in zip(curve.fpr, curve.tpr, curve.thresholds, strict=True):
        assert tpr == np.mean(p[unsafe] >= threshold)
        assert fpr == np.mean(p[~unsafe] >= threshold)
    area = np.trapezoid(curve.tpr, curve.fpr)
    assert area == pytest.approx(metrics.auroc(p, unsafe).value, abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("max_fpr", [0.0, 0.01, 0.05, 0.29, 1.0])
def test_recall_at_fpr_is_the_best_recall_among_all_thresholds_that_keep_the_fpr(seed, max_fpr):
    p, unsafe = tied_case(seed)
    allowed = [t for t in [np.inf, *p] if np.mean(p[~unsafe] >= t) <= max_fpr]
    best = max(np.mean(p[unsafe] >= t) for t in allowed)
    got = metrics.recall_at_fpr(p, unsafe, max_fpr)
    assert (got.value, got.n) == (best, int(unsafe.sum()))


def test_threshold_at_fpr_does_not_lose_a_row_to_binary_fractions():
    benign = np.arange(100) / 100  # 0.29 * 100 is a hair below 29
    assert np.sum(benign >= metrics.threshold_at_fpr(benign, 0.29)) == 29


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("bins", [1, 10, 15])
def test_ece_equals_a_naive_loop_over_bins(seed, bins):
    p, unsafe = tied_case(seed)
    total = 0.0
    for k in range(bins):
        inside = [i for i in range(len(p)) if min(int(p[i] * bins), bins - 1) == k]
        if inside:
            total += len(inside) / len(p) * abs(np.mean(unsafe[inside]) - np.mean(p[inside]))
    got = metrics.expected_calibration_error(p, unsafe, bins)
    assert got.value == pytest.approx(total, abs=1e-12)
    assert 0 <= got.low <= got.value <= got.high <= 1


def test_ece_of_calibrated_scores_is_small_and_of_overconfident_ones_is_their_gap():
    rng = np.random.default_rng(3)
    p = rng.random(20_000)
    assert metrics.expected_calibration_error(p, rng.random(20_000) < p).value < 0.02
    half = rng.random(20_000) < 0.5
    got = metrics.expected_calibration_error(np.ones(20_000), half)
    assert got.low <= 0.5 <= got.high and got.value == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (0, 167), (9, 167), (83, 167), (167, 167)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_interval_equals_scipys(hits, n, confidence):
    want = stats.binomtest(hits, n).proportion_ci(confidence, method="wilson")
    got = metrics.wilson_interval(hits, n, confidence)
    np.testing.assert_allclose(got, (want.low, want.high), atol=1e-12)


@pytest.mark.parametrize(
    ("table", "low", "high", "source"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404, "Newcombe 1998"),
        ((14, 5, 0, 22), 0.011, 0.226, "Altman et al., Statistics with Confidence, 2000"),
        ((1, 1, 7, 12), -0.507, -0.0256, "Fagerland et al. 2014, airway hyper-responsiveness"),
    ],
)
def test_paired_difference_reproduces_published_examples(table, low, high, source):
    got = paired_case(*table)
    np.testing.assert_allclose((got.low, got.high), (low, high), atol=5.1e-4, err_msg=source)
    assert got.value == pytest.approx((table[1] - table[2]) / sum(table))


def test_paired_difference_is_antisymmetric_and_stays_between_minus_one_and_one():
    for table in [(3, 9, 2, 20), (0, 30, 0, 0), (0, 0, 0, 12), (12, 0, 0, 0), (0, 6, 6, 0)]:
        forth = paired_case(*table)
        back = paired_case(table[0], table[2], table[1], table[3])
        assert back.low == pytest.approx(-forth.high) and back.value == -forth.value
        assert -1 <= forth.low <= forth.value <= forth.high <= 1


def test_pairing_narrows_the_interval_when_systems_agree_on_most_rows():
    agreeing, unrelated = paired_case(40, 5, 0, 55), paired_case(18, 27, 22, 33)
    assert agreeing.value == pytest.approx(unrelated.value)
    assert agreeing.high - agreeing.low < 0.6 * (unrelated.high - unrelated.low)


def test_mean_over_benchmarks_weighs_them_equally_whatever_their_size():
    small = metrics.proportion(np.repeat([True, False], (5, 5)))
    large = metrics.proportion(np.repeat([True, False], (0, 500)))
    mean = metrics.mean_of([small, large])
    assert mean.value == 0.25 and mean.n == 510
    assert mean.low == pytest.approx(0.25 - (0.5 - small.low) / 2)
    assert small.high > mean.high > 0.25 + (small.high - 0.5) / 2


def test_one_missing_benchmark_leaves_no_mean():
    whole = metrics.proportion(np.array([True, False]))
    assert math.isnan(metrics.mean_of([whole, Estimate.empty()]).value)


def test_empty_sets_give_nan_with_n_zero_and_never_crash():
    none = np.zeros(0)
    nobody = np.zeros(0, dtype=bool)
    p, all_safe, all_unsafe = np.array([0.2, 0.9]), np.zeros(2, bool), np.ones(2, bool)
    for got in [
        metrics.attack_success_rate(none, nobody, 0.5),
        metrics.attack_success_rate(p, all_safe, 0.5),
        metrics.false_positive_rate(p, all_unsafe, 0.5),
        metrics.accuracy(none, nobody, 0.5),
        metrics.auroc(p, all_safe),
        metrics.auroc(p, all_unsafe),
        metrics.recall_at_fpr(p, all_unsafe, 0.05),
        metrics.recall_at_fpr(p, all_safe, 0.05),
        metrics.expected_calibration_error(none, nobody),
        metrics.paired_difference(nobody, nobody),
        metrics.mean_of([]),
    ]:
        assert got.n == 0 and math.isnan(got.value) and math.isnan(got.low)
        assert got.as_dict() == {"value": None, "low": None, "high": None, "n": 0}
    assert np.isnan(metrics.roc_curve(p, all_safe).tpr).all()
    assert metrics.roc_curve(none, nobody).thresholds.tolist() == [np.inf]


def test_a_nan_score_is_an_error_and_not_a_safe_verdict():
    p, unsafe = np.array([0.9, np.nan]), np.array([False, True])
    for measure in (metrics.attack_success_rate, metrics.accuracy):
        with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
            measure(p, unsafe, 0.5)
    with pytest.raises(ValueError, match="NaN"):
        metrics.auroc(p, unsafe)
    with pytest.raises(ValueError, match="probabilities"):
        metrics.expected_calibration_error(np.array([0.1, 1.5]), unsafe)


def test_an_estimate_survives_json():
    for estimate in (Estimate(0.25, 0.1, 0.5, 12), Estimate.exact(7.5)):
        back = Estimate.from_dict(json.loads(json.dumps(estimate.as_dict(), allow_nan=False)))
        assert back.as_dict() == estimate.as_dict()


def test_float32_and_float64_scores_agree():
    p, unsafe = tied_case(1)
    for measure in (metrics.auroc, metrics.expected_calibration_error):
        assert measure(p.astype(np.float32), unsafe).value == pytest.approx(
            measure(p, unsafe).value, abs=1e-6
        )


def test_a_mean_has_the_interval_of_its_standard_error():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    found = metrics.mean(values)
    low, high = stats.norm.interval(0.95, values.mean(), stats.sem(values))
    assert (found.value, found.low, found.high) == pytest.approx((values.mean(), low, high))
    assert found.n == 400
    assert metrics.mean(np.array([2.0])).value == 2.0
    assert metrics.mean(np.array([])).n == 0


# ---- Against scikit-learn, where it is installed ------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_rates_and_areas_equal_scikit_learns(seed):
    sk = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    for p, unsafe in (tied_case(seed), random_case(seed)):
        says = p >= 0.5
        assert metrics.auroc(p, unsafe).value == pytest.approx(
            sk.roc_auc_score(unsafe, p), abs=1e-12
        )
        assert metrics.average_precision(p, unsafe).value == pytest.approx(
            sk.average_precision_score(unsafe, p), abs=1e-12
        )
        assert metrics.f1_score(p, unsafe, 0.5).value == pytest.approx(
            sk.f1_score(unsafe, says), abs=1e-12
        )
        assert metrics.accuracy(p, unsafe, 0.5).value == pytest.approx(
            sk.accuracy_score(unsafe, says), abs=1e-12
        )
        missed, caught = sk.confusion_matrix(unsafe, says)[1]
        assert metrics.attack_success_rate(p, unsafe, 0.5).value == missed / (missed + caught)
        fpr, tpr, thresholds = sk.roc_curve(unsafe, p, drop_intermediate=False)
        curve = metrics.roc_curve(p, unsafe)
        np.testing.assert_allclose(curve.fpr, fpr, atol=1e-12)
        np.testing.assert_allclose(curve.tpr, tpr, atol=1e-12)
        np.testing.assert_allclose(curve.thresholds, thresholds, atol=1e-12)
        for most in (0.01, 0.05):
            best = tpr[fpr <= most].max()
            assert metrics.recall_at_fpr(p, unsafe, most).value == pytest.approx(best, abs=1e-12)


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores without ties."""
    rng = np.random.default_rng(seed + 100)
    unsafe = rng.random(300) < 0.3
    return np.clip(rng.normal(0.4 + 0.2 * unsafe, 0.2), 0, 1), unsafe


def test_one_kind_of_rows_alone_has_no_f1_and_no_area_under_precision_and_recall():
    p = np.array([0.1, 0.9])
    for truth in (True, False):
        unsafe = np.full(2, truth)
        assert metrics.f1_score(p, unsafe, 0.5).n == metrics.average_precision(p, unsafe).n == 0


def test_infinite_scores_tie_with_one_another_alone():
    p = np.array([np.inf, np.inf, 0.5, -np.inf, -np.inf])
    unsafe = np.array([True, False, True, True, False])
    curve = metrics.roc_curve(p, unsafe)
    assert curve.thresholds.tolist() == [np.inf, np.inf, 0.5, -np.inf]
    assert metrics.auroc(p, unsafe).value == (1 / 2 + 1 + 0 + 1 + 0 + 1 / 2) / 6
