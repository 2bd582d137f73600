"""The suite's own ground: devices on demand, types checked at run time, our warnings as errors."""

import warnings

import pytest
from jaxtyping import TypeCheckError

from crossguard_jax.core.config import load_config


def test_code_runs_with_the_devices_it_asks_for(run_with_devices) -> None:
    code = """
        import sys
        import jax

        print(jax.device_count(), sys.argv[1:])
    """
    assert run_with_devices(4, code, "a", "b") == "4 ['a', 'b']\n"


def test_code_that_fails_with_devices_shows_why(run_with_devices) -> None:
    with pytest.raises(pytest.fail.Exception, match="the reason"):
        run_with_devices(2, "raise SystemExit('the reason')")


def test_a_wrong_type_is_caught_while_the_tests_run() -> None:
    with pytest.raises(TypeCheckError):
        load_config(3)  # type: ignore[arg-type]


def test_a_warning_of_ours_is_an_error_and_that_of_others_is_not() -> None:
    def warn(module: str) -> None:
        warnings.warn_explicit("old", DeprecationWarning, "file.py", 1, module=module)

    with pytest.raises(DeprecationWarning):
        warn("crossguard_jax.nn.llama")
    with pytest.warns(DeprecationWarning):
        warn("somebody.else")
