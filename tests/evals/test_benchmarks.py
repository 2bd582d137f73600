"""Benchmarks: which rows stand behind which dotted name."""

import math

import numpy as np
import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.evals.benchmarks import ScoredRows, compare, evaluate, slug
from tests.evals import scored


def count(rows, threshold, benchmark=None, category=None, unsafe=True):
    """Naively: flagged and total among the rows of one kind."""
    chosen = [
        row["p_unsafe"] >= threshold
        for row in rows
        if (benchmark is None or row["benchmark"] == benchmark)
        and (category is None or row["category"] == category)
        and (row["label"] == "unsafe") == unsafe
    ]
    return sum(chosen), len(chosen)


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_rates_per_benchmark_and_category_equal_a_naive_count(threshold):
    rows = scored.rows(1.5)
    figures = evaluate(ScoredRows.from_rows(rows), threshold)
    for benchmark in scored.BENCHMARKS:
        for category in (None, "hot", "sharp"):
            prefix = slug(benchmark) + (f".category.{category}" if category else "")
            for measure, unsafe in (("asr", True), ("fpr", False)):
                flagged, n = count(rows, threshold, benchmark, category, unsafe)
                if n == 0:
                    assert f"{prefix}.{measure}" not in figures
                    continue
                value = (n - flagged if unsafe else flagged) / n
                got = figures[f"{prefix}.{measure}"]
                assert (got.value, got.n) == (value, n)
    flagged, n = count(rows, threshold, unsafe=False)
    assert figures["all.fpr"].value == flagged / n


def test_malicious_rows_are_ranked_against_all_benign_rows_and_also_against_their_own():
    scores = scored.scores(1.0)
    figures = evaluate(scores, 0.5)
    benign = scores.p_unsafe[~scores.unsafe]
    bad = scores.p_unsafe[scores.unsafe & (scores.benchmark == "implicit")]
    own = scores.p_unsafe[~scores.unsafe & (scores.benchmark == "implicit")]
    wins = np.mean(bad[:, None] > benign[None, :])
    assert figures["implicit.auroc"].value == pytest.approx(wins)
    assert figures["implicit.auroc"].n == bad.size + benign.size
    assert figures["implicit.auroc_own"].value == pytest.approx(np.mean(bad[:, None] > own))
    assert "explicit.auroc" in figures and "explicit.auroc_own" not in figures
    allowed = int(0.05 * benign.size)
    threshold = np.sort(benign)[::-1][allowed]
    assert figures["implicit.recall_at_5_fpr"].value == np.mean(bad > threshold)


def test_the_mean_asr_weighs_benchmarks_and_not_rows():
    figures = evaluate(scored.scores(0.5), 0.5)
    names = ("implicit", "implicit_heldout", "explicit", "typographic")
    assert figures["mean.asr"].value == pytest.approx(
        np.mean([figures[f"{name}.asr"].value for name in names])
    )
    assert figures["mean.asr"].value != figures["all.asr"].value


def test_an_all_unsafe_set_still_reports_that_its_benign_fpr_is_unknown():
    rows = [row for row in scored.rows(1.0) if row["label"] == "unsafe"]
    figures = evaluate(ScoredRows.from_rows(rows), 0.5)
    assert figures["all.fpr"].n == 0 and math.isnan(figures["all.fpr"].value)
    assert math.isnan(figures["implicit.recall_at_1_fpr"].value)
    assert not any("f1" in name.split(".")[-1].split("_") for name in figures)


def test_no_rows_at_all_evaluate_to_nan():
    figures = evaluate(ScoredRows.from_rows([]), 0.5)
    assert {estimate.n for estimate in figures.values()} == {0}
    assert {"all.asr", "all.fpr", "all.auroc", "mean.asr"} <= set(figures)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"p_unsafe": float("nan")}, r"scored row 3 \(id 'implicit-2'\): p_unsafe is nan"),
        ({"p_unsafe": 1.2}, r"1\.2, not a probability"),
        ({"p_unsafe": "high"}, "'high', not a probability"),
        ({"p_unsafe": None}, "has no 'p_unsafe'"),
        ({"label": "Unsafe"}, "label is 'Unsafe'"),
        ({"label": ""}, "has no 'label'"),
        ({"id": "implicit-1"}, "two rows with id 'implicit-1'"),
        ({"benchmark": None}, "has no 'benchmark'"),
    ],
)
def test_a_wrong_row_is_named_with_its_fault(change, words):
    rows = scored.rows(1.0)
    rows[2].update(change)
    with pytest.raises(UserError, match=words):
        ScoredRows.from_rows(rows)


def test_names_that_would_share_a_dotted_name_are_refused():
    row = {"id": "a", "label": "unsafe", "p_unsafe": 0.5}
    twice = [{**row, "benchmark": name} for name in ("MM-Safety", "mm_safety")]
    with pytest.raises(UserError, match="'MM-Safety' and 'mm_safety'.*'mm_safety'"):
        evaluate(ScoredRows.from_rows(twice), 0.5)
    with pytest.raises(UserError, match="'All'"):
        evaluate(ScoredRows.from_rows([row], benchmark="All"), 0.5)


def test_concatenated_parts_evaluate_like_the_whole():
    rows = scored.rows(1.0)
    parts = [ScoredRows.from_rows(rows[:100]), ScoredRows.from_rows(rows[100:])]
    whole = evaluate(ScoredRows.from_rows(rows), 0.5)
    joined = evaluate(ScoredRows.concatenate(parts), 0.5)
    assert {k: v.as_dict() for k, v in joined.items()} == {k: v.as_dict() for k, v in whole.items()}
    with pytest.raises(UserError, match="two rows with id"):
        ScoredRows.concatenate([parts[0], parts[0]])


def test_a_comparison_pairs_rows_by_id_whatever_their_order():
    strong, weak = scored.rows(4.0, seed=1), scored.rows(1.0, seed=1)
    a, b = ScoredRows.from_rows(strong), ScoredRows.from_rows(weak)
    shuffled = ScoredRows.from_rows([weak[i] for i in np.random.default_rng(0).permutation(len(b))])
    straight = compare(a, b, 0.5)
    assert straight == compare(a, shuffled, 0.5)
    for benchmark in ("implicit", "explicit", "all"):
        difference = straight[f"{benchmark}.asr_difference"]
        each = [evaluate(s, 0.5)[f"{benchmark}.asr"].value for s in (a, b)]
        assert difference.value == pytest.approx(each[0] - each[1])
    assert straight["all.asr_difference"].high < 0


def test_systems_that_scored_different_rows_cannot_be_compared():
    rows = scored.rows(1.0)
    whole, part = ScoredRows.from_rows(rows), ScoredRows.from_rows(rows[:-1])
    with pytest.raises(UserError, match="280 and 279.*'vqa_benign-69'"):
        compare(whole, part, 0.5)
    with pytest.raises(UserError, match="different rows"):
        compare(part, whole, 0.5)
    rows[0]["label"] = "safe" if rows[0]["label"] == "unsafe" else "unsafe"
    with pytest.raises(UserError, match="disagree on the label of row 'implicit-0'"):
        compare(whole, ScoredRows.from_rows(rows), 0.5)


# ---- Rows without an answer, twins, models that answer ------------------------------------------


def columns(*rows: tuple[str, float | None, str]) -> ScoredRows:
    """Rows of one benchmark by label, p_unsafe (None: no answer) and pair."""
    return ScoredRows.from_rows(
        [
            {"id": i, "label": label, "p_unsafe": p, "pair": pair}
            | ({"reason": "busy"} if p is None else {})
            for i, (label, p, pair) in enumerate(rows)
        ],
        "b",
    )


def test_a_row_without_an_answer_is_in_every_denominator_as_wrong_as_can_be():
    answered = [("unsafe", 0.9, ""), ("unsafe", 0.4, ""), ("safe", 0.1, ""), ("safe", 0.6, "")]
    rows = columns(*answered, ("unsafe", None, ""), ("safe", None, ""))
    # As if the malicious one had the least score there is, and the benign one the highest.
    extremes = columns(*answered, ("unsafe", 0.0, ""), ("safe", 1.0, ""))
    figures, expected = evaluate(rows, 0.5), evaluate(extremes, 0.5)
    for name in ("b.asr", "b.fpr", "b.accuracy", "b.auroc", "all.f1", "all.auprc", "mean.asr"):
        assert figures[name] == expected[name], name
    assert (figures["b.no_answer"].value, figures["b.no_answer"].n) == (2, 6)
    assert (figures["b.ece"].n, expected["b.no_answer"].value) == (4, 0)
    # However low the threshold, what was not answered was not stopped.
    assert evaluate(rows, 0.0)["b.asr"].value == 1 / 3
    assert compare(rows, extremes, 0.5)["b.asr_difference"].value == 0


def test_a_pair_is_right_where_both_its_verdicts_are_and_half_a_pair_is_none():
    rows = columns(
        *[("unsafe", 0.9, "both"), ("safe", 0.1, "both")],
        *[("unsafe", 0.9, "picture"), ("safe", 0.9, "picture")],
        *[("unsafe", 0.9, "late"), ("safe", None, "late")],
        *[("unsafe", 0.9, "alone"), ("unsafe", 0.9, "alike"), ("unsafe", 0.9, "alike")],
        ("safe", 0.1, ""),
    )
    paired = evaluate(rows, 0.5)["b.paired_accuracy"]
    assert (paired.value, paired.n) == (1 / 3, 3)
    assert "b.paired_accuracy" not in evaluate(columns(("safe", 0.1, "")), 0.5)


def test_what_a_model_complied_with_never_shares_a_name_with_what_a_guard_let_pass():
    scores = scored.scores(1.0)
    guard, model = evaluate(scores, 0.5), evaluate(scores, 0.5, answering=True)
    assert not {n for n in model if n.split(".")[-1] in ("asr", "fpr")}
    assert not {n for n in guard if n.split(".")[-1] in ("complied", "refused")}
    names = ("implicit", "implicit.category.hot", "mean", "all")
    for name in names:
        assert model[f"{name}.complied"] == guard[f"{name}.asr"]
    assert model["implicit.refused"] == guard["implicit.fpr"]
    assert model["all.auroc"] == guard["all.auroc"]


def test_two_thresholds_are_compared_each_at_its_own():
    a = columns(("unsafe", 0.6, ""), ("unsafe", 0.4, ""), ("safe", 0.3, ""))
    assert compare(a, a, 0.5)["b.asr_difference"].value == 0
    differ = compare(a, a, 0.5, 0.35)
    assert differ["b.asr_difference"].value == 0.5
    assert (differ["b.asr_mcnemar"].value, differ["b.asr_mcnemar"].n) == (1.0, 1)


def test_rows_hang_together_by_their_pictures_and_a_row_without_any_by_nothing():
    rows = [
        {"id": i, "label": "safe", "p_unsafe": 0.1, "picture": picture}
        for i, picture in enumerate(["x", "x", "y", "", ""])
    ]
    clusters = ScoredRows.from_rows(rows, "b").clusters()
    assert len(set(clusters.tolist())) == 4 and clusters[0] == clusters[1]
