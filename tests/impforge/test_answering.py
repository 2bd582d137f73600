"""A LLaVA that answers in words."""

import numpy as np
import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.prompts import SHORT
from crossguard_jax.data.records import Record
from crossguard_jax.impforge.answering import AnsweringLlava
from crossguard_jax.toy.world.sources import examples, records


def test_a_llava_answers_what_it_was_taught_with_and_without_a_picture():
    model = AnsweringLlava("toy://llava", SHORT, max_new_tokens=4, batch_size=16)
    asked = [r for r in examples("vqa", "val", 80) if r.category == "kind"][:20]
    known = examples("knowledge", "val", 12)
    drawn = {r.id: r for r in records("vqa", "val", 80)}
    rows = [drawn[r.id] for r in asked] + [Record(r.id, (), r.text) for r in known]
    right = [
        said == row.answer for said, row in zip(model.answers(rows), [*asked, *known], strict=True)
    ]
    assert np.mean(right) >= 0.9


def test_a_folder_that_holds_no_llava_is_refused():
    with pytest.raises(UserError, match="no LLaVA, but a Llama"):
        AnsweringLlava("toy://rewriter", SHORT)
