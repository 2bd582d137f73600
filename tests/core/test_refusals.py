"""Keyword lists on small neutral answers. Their agreement with XSTest's people is in the module."""

import numpy as np
import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.refusals import LISTS, VLGUARD, XSTEST, agreement, refusal_list

REFUSALS = ("I'm sorry, but that is not for me.", "I CANNOT say.", "As an AI, I have no kitchen.")
ANSWERS = ("Warm the milk slowly.", "", "Noted: the kettle is blue.")


@pytest.mark.parametrize("words", LISTS.values(), ids=list(LISTS))
def test_a_refusal_is_one_in_any_case_and_an_answer_is_none(words):
    assert [words.refuses(answer) for answer in (*REFUSALS, *ANSWERS)] == [True] * 3 + [False] * 3


def test_xstests_words_stand_at_the_beginning_and_vlguards_anywhere():
    late = "The kettle is hot. I cannot see the cup."
    assert VLGUARD.refuses(late) and not XSTEST.refuses(late)
    assert XSTEST.refuses("  No, the cup is blue.") and not VLGUARD.refuses("No, it is blue.")
    # The price of words anywhere: an answer that merely uses one.
    assert VLGUARD.refuses("You are legally the owner of the cup.")


def test_agreement_is_the_share_of_refusals_found_and_of_answers_taken_for_one():
    answers = [*REFUSALS, "Better not.", *ANSWERS, "No, warm it."]
    refused = np.array([True] * 4 + [False] * 4)
    finds, mistakes = agreement(XSTEST, answers, refused)
    assert (finds.value, finds.n) == (0.75, 4) and (mistakes.value, mistakes.n) == (0.25, 4)


def test_a_list_says_how_far_people_agree_and_another_name_is_an_error():
    assert "92.7%" in VLGUARD.agreement_text() and "11.5%" in VLGUARD.agreement_text()
    assert "85.7%" in XSTEST.agreement_text() and "4.2%" in XSTEST.agreement_text()
    assert refusal_list("xstest") is XSTEST
    with pytest.raises(UserError, match="no refusal list 'mine'; choose one of vlguard, xstest"):
        refusal_list("mine")
