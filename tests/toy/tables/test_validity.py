"""``toy validity``: the verb's own figures, each seed's and all seeds' together."""

import argparse
import json
from types import SimpleNamespace

import pytest

from crossguard_jax.data.records import Rejected
from crossguard_jax.evals.validity import Compared, outcomes, read_attempts
from crossguard_jax.systems.load import load
from crossguard_jax.toy.tables import validity
from tests.evals.test_validity import files
from tests.random_llava import llava_folder

__all__ = ["files", "llava_folder"]


@pytest.fixture
def args(tmp_path):
    return argparse.Namespace(out=tmp_path, only=None, seeds=[0, 1], rows=6, steps=1.0)


def test_figures_are_the_verbs_and_a_triplet_is_one_seeds(args, files, llava_folder, monkeypatch):
    triplets, forged = files

    def forge_world(config, folder, n, seed):
        place = folder / "forged"
        place.mkdir(parents=True, exist_ok=True)
        for picture in forged.parent.iterdir():
            if not (place / picture.name).exists():
                (place / picture.name).symlink_to(picture)
        return SimpleNamespace(triplets=triplets), None

    target = load(str(llava_folder), None, "float32", prompt="short")
    monkeypatch.setattr(validity, "forge_world", forge_world)
    monkeypatch.setattr(validity, "target_of", lambda *_: target)
    validity.main(args)

    attempts = [each for each in read_attempts(*files) if not isinstance(each, Rejected)]
    alone = Compared.of(outcomes(target, attempts, args.out / "alone.jsonl")).figures()["guard"]
    left = json.loads((args.out / "validity.json").read_text())["figures"]
    assert {name.split(".")[0] for name in left} == set(validity.ROWS)
    for column in validity.COLUMNS:
        figure = left[f"explicit_only.{column}"]
        assert figure["value"] == pytest.approx(alone[column].value)
        assert figure["n"] == 2 * alone[column].n  # not one: two seeds' ids are the same here
        assert figure["seeds"] == [alone[column].value] * 2
    assert (args.out / "validity.md").read_text().count("| Guard of explicit data | ") == 1
