"""The gate that a configuration names."""

import pytest

from crossguard_jax.core.config import load_config
from crossguard_jax.core.errors import UserError
from crossguard_jax.impforge.commands import make_gate
from crossguard_jax.systems.load import identified
from tests.impforge.gate.test_local import Words


def made(folder, *overrides: str, variant: str = "tiny"):
    config = load_config(
        f"configs/impforge.py:{variant}", [f"--config.gate.{o}" for o in overrides]
    )
    return make_gate(config.gate, Words(), folder, identified)


@pytest.mark.parametrize(
    ("overrides", "kind", "pictures"),
    [
        (("picture.kind=none",), "local", "none"),
        (("picture.kind=described",), "local", "described:"),
        (("picture.kind=endpoint", "picture.endpoint.model=m"), "local", "endpoint:m:"),
        (("kind=endpoint", "endpoint.model=m", "votes.votes=3"), "endpoint", None),
        (("kind=none",), None, None),
    ],
)
def test_every_kind_is_reached_from_a_configuration(tmp_path, overrides, kind, pictures) -> None:
    gate = made(tmp_path, *overrides)
    assert gate.identity.get("kind") == kind
    assert pictures is None or gate.identity["pictures"].startswith(pictures)
    assert gate.remembers is (kind != "local")


def test_without_a_gate_is_an_ablation(tmp_path) -> None:
    assert not made(tmp_path, variant="no_gate").identity


@pytest.mark.parametrize(
    ("override", "words"), [("kind=all", "gate.kind"), ("picture.kind=x", "gate.picture.kind")]
)
def test_a_kind_that_is_none_is_named_with_those_that_are(tmp_path, override, words) -> None:
    with pytest.raises(UserError, match=f"{words} .*is none of none"):
        made(tmp_path, override)
