"""A model for the benches of guard and attacks whose sizes say nothing about speed."""

import pytest

from crossguard_jax.bench import base

NARROW = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    """The bench's own model, with the widths of a toy."""
    with pytest.MonkeyPatch.context() as patch:
        layers = {"num_hidden_layers": 3, "image_size": 16, "patch_size": 4}
        patch.setattr(base, "VISION", base.VISION | NARROW | layers)
        patch.setattr(base, "TEXT", base.TEXT | NARROW | {"num_hidden_layers": 2})
        return base.make_folder(tmp_path_factory.mktemp("bench"))


@pytest.fixture(autouse=True)
def short_texts(monkeypatch):
    monkeypatch.setattr(base, "N_TEXT", 10)
