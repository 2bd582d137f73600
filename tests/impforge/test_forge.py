"""Forging: what is kept and why, twins, and going on after a kill."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from crossguard_jax.core.config import load_config
from crossguard_jax.core.errors import UserError
from crossguard_jax.data.builders import open_dataset
from crossguard_jax.data.records import Record
from crossguard_jax.data.sources.table import table
from crossguard_jax.impforge.forge import CANDIDATES, SOURCE, ForgeSettings, forge, sift
from crossguard_jax.impforge.ppo import recipe
from crossguard_jax.impforge.twins import pair_twins
from tests.impforge.ppo.test_rewriter import OVERRIDES, world

LOW = {"safety": 0.0, "semantic": -1.0, "overlap": -1.0, "words": -1.0}


@pytest.fixture(scope="module")
def rewriter():
    config = load_config(
        "configs/impforge.py:tiny", [*OVERRIDES, "--config.rewriter.max_new_tokens=24"]
    )
    return recipe.load_rewriter(config)


def run(rewriter, folder: Path, settings: ForgeSettings, **more):
    rows = world(12)
    harmless = [
        (Record(f"h{i}", (), f"is the {t.keyword} nice?", category=t.category), [t.keyword])
        for i, t in enumerate(rows[:9])
    ]
    twins = pair_twins(rows, harmless, seed=0)
    identity = {"policy": "none", **more}
    return forge(rewriter, None, rows, twins, settings, folder, identity, batch_size=8)


def candidate(triplet: str = "t", text: str = "can i hold it?", **changes: object) -> dict:
    rewards = {"safety": 0.9, "semantic": 0.8, "overlap": 1.0, "words": 1.0, "caption_alone": 0.2}
    rewards |= {k: v for k, v in changes.items() if k in rewards}
    more = {k: v for k, v in changes.items() if k not in rewards}
    return {
        "triplet": triplet,
        "text": text,
        "ended": True,
        "kl": 0.5,
        "fluency": -1.0,
        "rewards": rewards,
    } | more


def test_each_candidate_falls_by_its_first_fault(rewriter) -> None:
    settings = ForgeSettings(
        least={"safety": 0.5, "semantic": 0.5, "overlap": 0.5, "words": 0.5}, fluency_floor=-2.0
    )
    rows = [
        candidate("a", "can i hold the red one?"),
        candidate("b", safety=0.4, semantic=0.1),
        candidate("c", semantic=0.4),
        candidate("d", overlap=0.4),
        candidate("e", words=0.4),
        candidate("f", ended=False),
        candidate("g", text=""),
        candidate("h", fluency=-2.5),
    ]
    kept, dropped = sift(rows, rewriter, settings)
    assert [row["triplet"] for row in kept] == ["a"]
    wanted = {"no end": 2, "not fluent": 1, "safety": 1, "semantic": 1, "overlap": 1, "words": 1}
    assert {k: n for k, n in dropped.items() if n} == wanted


def test_the_best_of_a_triplet_is_kept_and_its_near_duplicates_are_dropped(rewriter) -> None:
    rows = [
        candidate("a", "can i hold the red one?", semantic=0.6),
        candidate("a", "can i hold the red one?", semantic=0.9),
        candidate("a", "is there a blue star at the top left?", semantic=0.7),
        candidate("b", "can i hold the red one?"),
    ]
    kept, dropped = sift(rows, rewriter, ForgeSettings(keep=1))
    assert [(row["triplet"], row["rewards"]["semantic"]) for row in kept] == [
        ("a", 0.9),
        ("b", 0.8),
    ]
    assert dropped == Counter({"near-duplicate": 1, "enough of its triplet": 1})
    kept, _ = sift(rows, rewriter, ForgeSettings(keep=2))
    assert len(kept) == 3


def test_a_run_leaves_the_data_in_both_forms_with_its_card(rewriter, tmp_path: Path) -> None:
    done = run(rewriter, tmp_path, ForgeSettings(samples=2, least=LOW))
    rows = list(table(tmp_path / "train.jsonl"))
    opened = open_dataset(tmp_path, SOURCE, "train")
    assert [row.id for row in rows] == [opened[i].id for i in range(len(opened))]
    assert done.kept == Counter(row.label for row in rows)
    assert done.written == 2 * (12 + sum(t.endswith("-twin") for t in _twins(tmp_path)))
    twins = {row.id for row in rows if row.label == "safe"}
    assert twins and all(id.endswith("-twin") for id in twins)
    pictures = {row.id: row.image for row in rows}
    for twin in twins & {f"{id}-twin" for id in pictures}:
        assert pictures[twin] == pictures[twin.removesuffix("-twin")]
    known = opened[0].provenance
    assert known["query"] and known["keyword"] and 0 <= float(known["reward.safety"]) <= 1
    card = json.loads((tmp_path / "data_card.json").read_text())
    assert card["kept"] == done.kept and card["identity"]["policy"] == "none"
    assert 0 < card["diversity"]["distinct_texts"] <= 1
    assert f"{done.written:,}" in (tmp_path / "data_card.md").read_text()


def test_a_candidate_is_judged_beside_its_own_picture_and_query(rewriter, tmp_path: Path) -> None:
    run(rewriter, tmp_path, ForgeSettings(samples=2, least=LOW))
    known = {t.id: t for t in world(12)}
    rows = [json.loads(line) for line in (tmp_path / CANDIDATES).read_text().splitlines()]
    rows = [row for row in rows if row["triplet"] in known]
    assert len(rows) == 2 * 12
    texts, own = [row["text"] for row in rows], [known[row["triplet"]] for row in rows]
    found = dict(rewriter.rewards_of(texts, own, batch_size=8))
    found["words"] = rewriter.rewards.words(texts, rewriter.rewards.context(own)["picture"])
    for name in ("semantic", "caption_alone", "words"):
        said = [row["rewards"][name] for row in rows]
        np.testing.assert_allclose(said, found[name], atol=1e-4, err_msg=name)


def _twins(folder: Path) -> set[str]:
    lines = (folder / CANDIDATES).read_text().splitlines()
    return {json.loads(line)["triplet"] for line in lines}


def test_a_torn_file_of_candidates_is_gone_on_with_bit_for_bit(rewriter, tmp_path: Path) -> None:
    settings = ForgeSettings(samples=2, least=LOW)
    run(rewriter, tmp_path, settings)
    whole = (tmp_path / CANDIDATES).read_bytes()
    lines = whole.splitlines(keepends=True)
    (tmp_path / CANDIDATES).write_bytes(b"".join(lines[:19]) + lines[19][:30])
    run(rewriter, tmp_path, settings)
    assert (tmp_path / CANDIDATES).read_bytes() == whole
    with pytest.raises(UserError, match="another run"):
        run(rewriter, tmp_path, settings, policy="other")


def test_nothing_good_enough_is_an_error_that_says_why(rewriter, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no text passed .*'safety'.*lower forge.least"):
        run(rewriter, tmp_path, ForgeSettings(samples=1, least={"safety": 1.1}))


def test_twins_share_the_keyword_and_take_turns() -> None:
    rows = world(40)
    kinds = {t.keyword for t in rows}
    known = sorted(kinds)[:5]
    harmless = [
        (Record(f"{kind}-{i}", (), f"what is the {kind}?"), [kind, "what"])
        for kind in known
        for i in range(2)
    ]
    twins = pair_twins(rows, harmless, seed=0)
    assert [t.provenance["twin_of"] for t in twins] == [t.id for t in rows if t.keyword in known]
    by_id = {t.id: t for t in rows}
    used: Counter[str] = Counter()
    for twin in twins:
        assert twin.image == by_id[twin.provenance["twin_of"]].image
        assert twin.keyword in twin.query
        used[twin.provenance["query"]] += 1
    for kind in known:
        assert abs(used[f"{kind}-0"] - used[f"{kind}-1"]) <= 1
