"""Random configurations: a few in every run, the others among the slow proofs."""

from collections.abc import Sequence
from typing import Any

import pytest


def few(values: Sequence[Any], n: int) -> list[Any]:
    """The values as parameters, all after the first ``n`` marked slow: each compiles programs of
    its own."""
    rest = (pytest.param(value, marks=pytest.mark.slow) for value in values[n:])
    return [*values[:n], *rest]
