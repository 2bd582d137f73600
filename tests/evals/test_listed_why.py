"""``evaluate --why``: what unsafe verdicts rest on, on the page of the system that they are of."""

import json
import re

import pytest

from crossguard_jax import cli
from crossguard_jax.evals.listed_why import in_words
from crossguard_jax.guard.why import Why
from crossguard_jax.toy.world.sources import records


def test_a_reason_is_one_line():
    assert in_words(Why()) == ""
    both = Why(text_alone=0.021, picture_alone=0.4, joint_only=True)
    assert in_words(both) == "unsafe only in combination; text alone 0.02; picture alone 0.40"
    named = Why(category="heat", p_category=0.987, joint_only=False)
    assert in_words(named) == "heat (99%)"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Rows of three sources, the last one of a text alone."""
    folder = tmp_path_factory.mktemp("rows")
    rows = [r for s in ("explicit_picture", "explicit_text") for r in records(s, "test", 6)]
    lines = []
    for i, record in enumerate(rows):
        row = {"id": f"{i}", "text": record.text, "label": record.label, "source": "mixed"}
        row["image"] = None
        if record.image is not None:
            (folder / f"{i}.png").write_bytes(record.image)
            row["image"] = f"{i}.png"
        lines.append(json.dumps(row))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "rows.jsonl"


def test_the_main_systems_page_explains_its_unsafe_verdicts_and_no_other_ones(tmp_path, table):
    words = ["evaluate", "--data", str(table), "--out", str(tmp_path / "out"), "--why"]
    words += ["--model", "guard=toy://guard_explicit_only", "--model", "always_unsafe"]
    words += ["--threshold", "0.02"]  # not the guard's own
    assert cli.main([*words, "--store", str(tmp_path / "store"), "--prompt", "short"]) == 0
    out = tmp_path / "out"
    main, control = ((out / f"systems/{n}.html").read_text() for n in ("guard", "always_unsafe"))
    verdicts = [json.loads(v) for v in (out / "guard.verdicts.jsonl").read_text().splitlines()]
    unsafe = {v["id"] for v in verdicts if v["p_unsafe"] >= 0.02}
    # What the file says is what the report counts.
    assert {v["id"] for v in verdicts if v["unsafe"]} == unsafe
    assert {(v["threshold"], v["unsafe"], v["label"]) for v in verdicts} == {
        (0.02, True, "unsafe"),
        (0.02, False, "safe"),
    }
    cards = re.findall(r'<div class="card.*?</div>\n</div>', main, re.DOTALL)
    assert len(cards) == len(verdicts) and 0 < len(unsafe) < len(cards)
    for card in cards:
        (row,) = re.findall(r'<div class="id">.*?: (\d+)</div>', card)
        explained = row in unsafe and 'alt="picture of' in card
        assert ('alt="map of' in card) == explained
        # Nothing was fitted that a text alone could stand beside.
        assert 'class="why"' not in card
    assert 'alt="map of' in main
    assert 'class="why"' not in control and "map of" not in control
    assert "what it rests on" in main and "what it rests on" not in control


def test_shards_are_not_explained(tmp_path, table, capsys):
    words = ["evaluate", "--shards", str(table), "--model", "always_unsafe", "--why"]
    assert cli.main([*words, "--out", str(tmp_path)]) == cli.USAGE
    assert "--why goes without --shards" in capsys.readouterr().err
