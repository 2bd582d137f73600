"""--mesh, --dtype and --remat mean the same for every verb, and one line says what is wrong."""

import argparse

import jax
import pytest

from crossguard_jax.cli import VERBS
from crossguard_jax.core.errors import UserError
from crossguard_jax.runtime import flags, mesh

COMPUTING = ("train", "immunize", "forge", "match", "score", "evaluate", "attack", "tasks")
CONFIGURED = ("train", "immunize", "forge", "match")


def parsed(verb: str, *argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    VERBS[verb].add_arguments(parser)
    for action in parser._actions:
        action.required = False
    return parser.parse_args([*argv])


@pytest.mark.parametrize("verb", [*COMPUTING, "doctor", "export"])
def test_every_verb_that_computes_takes_a_mesh_and_a_dtype(verb: str) -> None:
    assert VERBS[verb].uses_jax
    args = parsed(verb, "--mesh", "fsdp=2", "--dtype", "bfloat16")
    assert (args.mesh, args.dtype) == ("fsdp=2", "bfloat16")


@pytest.mark.parametrize("verb", CONFIGURED)
def test_a_flag_is_a_short_way_to_a_configurations_fields(verb: str) -> None:
    from crossguard_jax.core.config import load_config

    args = parsed(verb, "--mesh", "data=2,fsdp=-1", "--dtype", "bfloat16")
    if args.remat_fields:
        args.remat = "full"
    config = load_config(f"{args.config_file}:tiny", [*flags.overrides(args)])
    assert dict(config.mesh) == {"data": 2, "fsdp": -1, "tensor": 1}
    for fields, value in ((args.dtype_fields, "bfloat16"), (args.remat_fields, "full")):
        for field in fields:
            section, name = field.split(".")
            assert config[section][name] == value
    assert [*flags.overrides(parsed(verb))] == []


@pytest.mark.parametrize("text", ["", "data", "data=", "data=two", "rows=2", "data=1,data=2"])
def test_a_mesh_that_is_none_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match=f"--mesh {text}: "):
        flags.parse_mesh(text)


def test_one_device_needs_no_mesh_and_the_hardware_says_which_arithmetic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert mesh.inference_mesh(None) is None
    assert mesh.inference_mesh("data=-1").size == 1
    assert mesh.default_dtype() == "float32"
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert mesh.default_dtype() == "bfloat16"
    assert mesh.described() == "1 cpu device, 1 process"
