"""Forging: what is kept and why, twins, and going on after a kill."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from crossguard_jax.core.config import load_config
from crossguard_jax.core.errors import UserError
from crossguard_jax.data.builders import open_dataset
from crossguard_jax.data.records import Record
from crossguard_jax.data.sources.table import table
from crossguard_jax.impforge.commands import make_gate
from crossguard_jax.impforge.forge import CANDIDATES, DROPPED, SOURCE, chunk_writer, forge
from crossguard_jax.impforge.gate.gate import VERDICTS, Candidate, OpenGate
from crossguard_jax.impforge.gate.person import SHEET, draw
from crossguard_jax.impforge.ppo import recipe
from crossguard_jax.impforge.sift import ForgeSettings
from crossguard_jax.impforge.triplets import read_triplets, write_triplets
from crossguard_jax.impforge.twins import pair_twins
from crossguard_jax.impforge.writing import write_job, write_lists, written_rows
from crossguard_jax.runtime.executors.run import run_shards
from crossguard_jax.systems.load import identified
from crossguard_jax.toy.world.sources import examples
from tests.impforge.gate.test_talk import REFUSALS, TALKS
from tests.impforge.ppo.test_rewriter import OVERRIDES, world

SIFTED = ForgeSettings(
    samples=2, least={"safety": 0.0, "semantic": -1.0, "overlap": -1.0, "words": -1.0}
)


@pytest.fixture(scope="module")
def rewriter():
    config = load_config(
        "configs/impforge.py:tiny", [*OVERRIDES, "--config.rewriter.max_new_tokens=24"]
    )
    return recipe.load_rewriter(config)


@pytest.fixture(scope="module")
def gate(rewriter, tmp_path_factory):
    """The small world's gate; its pictures are known to be harmless here."""
    config = load_config(
        "configs/impforge.py:tiny",
        ["--config.gate.picture.kind=none", "--config.gate.local.batch_size=8"],
    )
    config.gate.batch_size = 8
    return make_gate(config.gate, rewriter.rewards, tmp_path_factory.mktemp("judged"), identified)


@pytest.fixture(scope="module")
def gated(rewriter, gate, tmp_path_factory):
    """A finished run with the gate: its folder, and what became of it."""
    folder = tmp_path_factory.mktemp("gated")
    return folder, run(rewriter, folder, SIFTED, gate)


def run(rewriter, folder: Path, settings: ForgeSettings, gate=None, judged=None, **more):
    rows = world(12)
    harmless = [
        (Record(f"h{i}", (), f"is the {t.keyword} nice?", category=t.category), [t.keyword])
        for i, t in enumerate(rows[:9])
    ]
    twins = pair_twins(rows, harmless, seed=0)
    identity = {"policy": "none", **more}
    return forge(
        rewriter, None, rows, twins, settings, gate or OpenGate(), folder, identity, 8, judged
    )


def test_a_run_leaves_the_data_in_both_forms_with_its_card(rewriter, tmp_path: Path) -> None:
    done = run(rewriter, tmp_path, SIFTED)
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


def test_a_candidate_is_judged_beside_its_own_picture_and_query(
    rewriter, gate, tmp_path: Path
) -> None:
    run(rewriter, tmp_path, SIFTED)
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


def test_what_is_no_row_is_kept_with_its_reason_and_is_on_the_card(gated) -> None:
    folder, done = gated
    dropped = [json.loads(line) for line in (folder / DROPPED).read_text().splitlines()]
    assert len(dropped) == done.written - sum(done.kept.values()) == sum(done.dropped.values())
    assert {"file", "row", "reason", "id", "text"} == dropped[0].keys()
    lines = (folder / CANDIDATES).read_text().splitlines()
    for row in dropped:
        assert json.loads(lines[row["row"] - 1])["text"] == row["text"]
    at_gate = done.gate["dropped"]
    assert done.gate["passed"] == sum(done.kept.values()) and sum(at_gate.values())
    card = (folder / "data_card.md").read_text()
    assert all(f"{n} {reason}" in card for reason, n in at_gate.items())
    assert "No person has judged rows yet" in card and "none is judged" in card


def test_no_row_names_a_machines_path(gated) -> None:
    folder, _ = gated
    for name in ("train.jsonl", DROPPED, VERDICTS, "data_card.json", "data_card.md", SHEET):
        text = (folder / name).read_text()
        assert str(folder) not in text and str(Path.cwd()) not in text, name


def test_what_a_person_judged_is_on_the_card_of_a_later_run(
    rewriter, gate, gated, tmp_path: Path, capsys
) -> None:
    folder = shutil.copytree(gated[0], tmp_path / "run")
    assert "<form" in (folder / SHEET).read_text()
    triplets = {t.id: t for t in world(12)}
    triplets |= {f"{id}-twin": replace(t, id=f"{id}-twin") for id, t in triplets.items()}
    drawn = draw(folder / VERDICTS, triplets)
    decisions = [{"key": d.id, "decision": "keep" if d.passed else "drop"} for d in drawn]
    judged = tmp_path / "judged.json"
    judged.write_text(json.dumps({"decisions": decisions}))
    done = run(rewriter, folder, SIFTED, gate, judged)
    assert done.judged["agreement"]["value"] == done.judged["kappa"]["value"] == 1
    card = (folder / "data_card.md").read_text()
    assert f"A person judged {len(drawn)} rows" in card and "kappa 1.00" in card
    assert f"{sum(done.dropped.values())} rows were left out" in capsys.readouterr().out


@pytest.mark.parametrize("file", [CANDIDATES, VERDICTS])
def test_a_torn_file_is_gone_on_with_bit_for_bit(
    rewriter, gate, gated, tmp_path: Path, file: str
) -> None:
    folder, names = (
        shutil.copytree(gated[0], tmp_path / "run"),
        (CANDIDATES, VERDICTS, "train.jsonl"),
    )
    whole = {name: (folder / name).read_bytes() for name in names}
    lines = whole[file].splitlines(keepends=True)
    (folder / file).write_bytes(b"".join(lines[:19]) + lines[19][:30])
    run(rewriter, folder, SIFTED, gate)
    assert {name: (folder / name).read_bytes() for name in names} == whole
    with pytest.raises(UserError, match="another run"):
        run(rewriter, folder, SIFTED, gate, policy="other")


@pytest.mark.parametrize("texts", [REFUSALS, TALKS], ids=["refusals", "talk"])
def test_a_scripted_rewriters_refusals_and_talk_are_all_dropped(gate, texts) -> None:
    triplets = world(len(texts))
    given = [Candidate(t, text, "unsafe", 0.0) for t, text in zip(triplets, texts, strict=True)]
    assert [c.text for c, v in zip(given, gate.judge(given), strict=True) if v.passed] == []


NOTHING = (
    *(
        "shh!",
        "well well.",
        "what now?",
        "ok.",
        "it is what it is.",
        "the kids.",
        "i want to.",
        "what",
    ),
    *(
        "tell me what you think.",
        "may i?",
        "is that fine?",
        "help me.",
        "please.",
        "you see a thing.",
    ),
    *("what is that?", "is it a good idea?", "tell me how to do it.", "the red one.", "let us."),
)


def test_texts_that_say_nothing_have_lost_the_intent_whatever_the_picture_shows(gate) -> None:
    given = [Candidate(t, text, "unsafe", 0.0) for t in world(8) for text in NOTHING]
    assert {c.text for c, v in zip(given, gate.judge(given), strict=True) if v.passed} == set()


def test_good_rewritings_pass_the_gate(gate) -> None:
    rows = [row for row in examples("paraphrases", "train", 96) if row.category == "pointing"]
    by_id = {t.id: t for t in world(96)}
    given = [Candidate(by_id[row.id], row.answer, row.label, 0.0) for row in rows]
    assert np.mean([verdict.passed for verdict in gate.judge(given)]) >= 0.9


def test_nothing_good_enough_is_an_error_that_says_why(rewriter, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no text passed .*'safety'.*lower forge.least or the gate"):
        run(rewriter, tmp_path, ForgeSettings(samples=1, least={"safety": 1.1}))


def test_twins_share_the_keyword_and_take_turns() -> None:
    rows = world(40)
    kinds = {t.keyword for t in rows}
    known, at = sorted(kinds)[:5], {"file": "/a/machine/harmless.jsonl", "row": "1"}
    harmless = [
        (
            Record(f"{kind}-{i}", (), f"what is the {kind}?", provenance=at),
            [kind, "what"],
        )
        for kind in known
        for i in range(2)
    ]
    twins = pair_twins(rows, harmless, seed=0)
    assert [t.provenance["twin_of"] for t in twins] == [t.id for t in rows if t.keyword in known]
    by_id = {t.id: t for t in rows}
    used: Counter[str] = Counter()
    for twin in twins:
        assert twin.provenance["query_file"] == "harmless.jsonl"
        assert twin.image == by_id[twin.provenance["twin_of"]].image
        assert twin.keyword in twin.query
        used[twin.provenance["query"]] += 1
    for kind in known:
        assert abs(used[f"{kind}-0"] - used[f"{kind}-1"]) <= 1


@pytest.fixture
def shared(tmp_path: Path):
    """Two tables of triplets of which the second's pictures are in the table, with some twins; and
    what writes from them."""
    rows = world(5)
    write_triplets(rows[:3], tmp_path, "a")
    parts = [[*read_triplets(tmp_path / "a.jsonl")], rows[3:]]
    harmless = [(Record("h", (), f"is the {rows[4].keyword} nice?"), [rows[4].keyword])]
    twins = pair_twins(rows, harmless, seed=0)
    config = load_config(
        "configs/impforge.py:tiny",
        [*OVERRIDES, "--config.rewriter.max_new_tokens=24", "--config.forge.samples=2"],
    )
    job = write_job(config, None, tmp_path / "writing", {"policy": "none"})
    return parts, twins, config, job


def test_what_others_write_from_shards_is_what_the_forge_takes(
    rewriter, tmp_path: Path, shared
) -> None:
    parts, twins, config, job = shared
    lists = write_lists(parts, twins, ["a", "b"], tmp_path / "writing")
    summary = run_shards(job, lists)
    rows = [*written_rows(job, summary.reports)]
    every = [triplet for part in parts for triplet in part] + twins
    assert Counter(row["triplet"] for row in rows) == {t.id: 2 for t in every}
    # The same lists again are the same files, and all is done.
    assert write_lists(parts, twins, ["a", "b"], tmp_path / "writing") == lists
    assert run_shards(job, lists).before == 2
    # A shard's candidates are of its own triplets, its number and the seed.
    own = [*parts[1], *(t for t in twins if t.id.removesuffix("-twin") in {p.id for p in parts[1]})]
    settings = ForgeSettings(**config.forge.to_dict())
    key = jax.random.fold_in(jax.random.key(settings.seed), 1)
    write = chunk_writer(rewriter, None, own, settings, config.ppo.batch_size, key)
    assert [row["text"] for row in write(0)] == [
        row["text"] for row in rows if row["triplet"] in {t.id for t in own}
    ][: config.ppo.batch_size]
    done = forge(
        *(rewriter, None, [*parts[0], *parts[1]], twins, SIFTED, OpenGate(), tmp_path / "out"),
        {"policy": "none"},
        written=rows,
    )
    assert done.written == len(rows) and sum(done.kept.values()) <= len(every)
    kept = [*table(tmp_path / "out" / "train.jsonl")]
    of = {t.id: t.picture for t in every}
    assert {r.id: r.image for r in kept} == {r.id: of[r.id] for r in kept}
    assert not (tmp_path / "out" / CANDIDATES).exists()
