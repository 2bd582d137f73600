"""The rows that a model was trained on: listed beside its card, and found again by content."""

import hashlib
import random
import shutil

import pytest

from crossguard_jax import Guard
from crossguard_jax.core.errors import UserError
from crossguard_jax.hf.export import ModelCard, save_model
from crossguard_jax.hf.load import load_model, resolve_folder
from crossguard_jax.hf.trained import (
    TRAINING_DATA,
    TrainedRow,
    content_hash,
    read_training_data,
    trained_on,
    write_training_data,
)
from tests.hf import hub_models

ROWS = [TrainedRow(f"row {n}", "implicit", content_hash(f"text {n}", (b"png",))) for n in range(5)]


def test_a_row_is_known_by_its_pictures_and_text_and_by_nothing_else():
    hashes = [
        content_hash("a", ()),
        content_hash("a ", ()),
        content_hash("a", (b"1",)),
        content_hash("a", (b"1", b"2")),
        content_hash("a", (b"2", b"1")),
        content_hash("a", (b"12",)),
        content_hash("", (b"1",)),
        content_hash("", (b"1", b"a")),
    ]
    assert len(set(hashes)) == len(hashes) and all(len(each) == 32 for each in hashes)
    assert content_hash("a", (b"1",)) == content_hash("a", (b"1",))
    content_hash("half a pair \ud83c", ())


def test_a_list_is_the_same_file_for_the_same_rows(tmp_path):
    digest = write_training_data(tmp_path, ROWS)
    first = (tmp_path / TRAINING_DATA).read_bytes()
    assert write_training_data(tmp_path, random.Random(0).sample(ROWS + ROWS, 10)) == digest
    assert (tmp_path / TRAINING_DATA).read_bytes() == first
    assert digest == hashlib.sha256(first).hexdigest()
    assert read_training_data(tmp_path) == ROWS
    assert trained_on(tmp_path) == {row.content for row in ROWS}


def test_a_folder_without_a_list_says_nothing_and_a_damaged_one_is_named(tmp_path):
    assert trained_on(tmp_path, tmp_path / "not there") == set()
    write_training_data(tmp_path, ROWS)
    path = tmp_path / TRAINING_DATA
    for data in (path.read_bytes()[:-9], b"no gzip", b""):
        path.write_bytes(data)
        with pytest.raises(UserError, match=f"{TRAINING_DATA}: damaged"):
            trained_on(tmp_path)


def test_an_export_lists_what_its_source_learned_from_and_its_own_rows(tmp_path):
    source = tmp_path / "source"
    hub_models.draw_causal(random.Random(0)).save_pretrained(source)
    model = load_model(source)
    save_model(model, tmp_path / "one", source, ModelCard(rows=ROWS[:2]))
    save_model(model, tmp_path / "two", tmp_path / "one", ModelCard(rows=ROWS[2:]))
    assert read_training_data(tmp_path / "two") == ROWS
    card = (tmp_path / "two" / "README.md").read_text()
    digest = hashlib.sha256((tmp_path / "two" / TRAINING_DATA).read_bytes()).hexdigest()
    assert "lists the 5 rows" in card and digest in card
    save_model(model, tmp_path / "two", source, ModelCard())
    assert not (tmp_path / "two" / TRAINING_DATA).exists(), "an older model's"


def test_an_adapters_rows_go_where_it_goes(tmp_path):
    base = resolve_folder("toy://llava")
    adapter = tmp_path / "adapter"
    shutil.copytree(resolve_folder("toy://llava").parents[1] / "adapters", tmp_path / "all")
    shutil.copytree(next((tmp_path / "all").iterdir()), adapter)
    write_training_data(adapter, ROWS)
    guard = Guard.from_pretrained(base, adapter)
    for form in ("peft", "merged"):
        guard.save_pretrained(tmp_path / form, form)
        assert read_training_data(tmp_path / form) == ROWS
