import json

from crossguard_jax.core.metrics import Estimate
from crossguard_jax.sweeps.results import figures_of


def test_a_report_keeps_its_names_and_intervals(tmp_path) -> None:
    estimate = Estimate(0.2, 0.1, 0.3, 50)
    document = {"meta": {"title": "t"}, "guard.all.asr": estimate.as_dict()}
    (tmp_path / "report.json").write_text(json.dumps(document))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    assert figures_of(tmp_path) == {"guard.all.asr": estimate}


def test_of_a_forge_come_the_rewriters_last_metrics_and_the_cards_counts(tmp_path) -> None:
    (tmp_path / "rewriter").mkdir()
    rows = [{"step": 1, "reward": 1.0}, {"step": 2, "reward": 2.0}, {"step": 2, "eval/kl": 0.5}]
    log = "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 3, "rew'  # killed
    (tmp_path / "rewriter/metrics.jsonl").write_text(log)
    card = {"kept": {"unsafe": 7}, "diversity": {"vendi": 3.5}, "identity": {"seed": 0}}
    (tmp_path / "data_card.json").write_text(json.dumps(card))
    values = {name: estimate.value for name, estimate in figures_of(tmp_path).items()}
    assert values == {
        "rewriter.reward": 2.0,
        "rewriter.eval.kl": 0.5,
        "forged.kept.unsafe": 7.0,
        "forged.diversity.vendi": 3.5,
    }


def test_a_folder_without_any_has_no_figures(tmp_path) -> None:
    assert figures_of(tmp_path) == {}
