"""The table of what the gate buys, a few steps of it."""

import argparse
import json

import pytest

from crossguard_jax.core.config import load_config
from crossguard_jax.core.errors import UserError
from crossguard_jax.toy.tables import gated
from tests.toy.test_quickstart import FORGE


def arguments(out, **more):
    given = {"seeds": [3], "rows": 48, "only": None, "rewriter": None, "sentence": None}
    return argparse.Namespace(out=str(out), **(given | more))


@pytest.mark.tables
def test_the_gates_rows_and_those_without_it_are_of_one_run(monkeypatch, tmp_path):
    monkeypatch.setattr(
        gated, "load_config", lambda path, overrides: load_config(path, [*FORGE, *overrides])
    )
    gated.main(arguments(tmp_path))
    figures = json.loads((tmp_path / "gate.json").read_text())["figures"]
    assert figures["no_gate.yield"]["value"] == 1 > figures["gate.yield"]["value"] > 0
    assert figures["gate.yield"]["n"] == figures["no_gate.yield"]["n"]
    for name in ("implicit", "same_intent"):
        assert figures[f"gate.{name}"]["value"] >= figures[f"no_gate.{name}"]["value"]
    before = (tmp_path / "gate.md").read_text()
    gated.main(arguments(tmp_path))
    assert (tmp_path / "gate.md").read_text() == before


@pytest.mark.parametrize("given", [{"rewriter": "a"}, {"sentence": "a"}])
def test_a_real_rewriter_and_its_encoder_come_together(tmp_path, given):
    with pytest.raises(UserError, match="together, or neither"):
        gated.main(arguments(tmp_path, **given))
