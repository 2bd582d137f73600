"""Random configurations: a few in every run, the others in a group of slow ones."""

from collections.abc import Iterable
from typing import Any

import pytest


def few(values: Iterable[Any], n: int) -> list[Any]:
    """The values as parameters, those after the first ``n`` in the group ``parity``: each compiles
    programs of its own."""
    values = list(values)
    rest = (pytest.param(value, marks=pytest.mark.parity) for value in values[n:])
    return [*values[:n], *rest]
