"""Plots of few dots, which are drawn fast."""

from collections.abc import Iterator

import pytest

from crossguard_jax.report import drawing


@pytest.fixture(autouse=True, scope="package")
def few_dots() -> Iterator[None]:
    """40 dots an inch, for 200."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "DPI", 40)
        yield
