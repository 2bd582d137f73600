"""VQA accuracy (Antol et al., ICCV 2015), as the evaluation of VQA v2 computes it.

The rules are those of github.com/GT-Vision-Lab/VQA, its oddities included: figures of other
systems have them too.
"""

import re
from collections.abc import Sequence

import numpy as np

from crossguard_jax.core.metrics import DEFAULT_CONFIDENCE, Estimate
from crossguard_jax.core.tasks.intervals import share
from crossguard_jax.core.typing import Float

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGITS = {"none": "0"} | {
    word: str(number)
    for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
_ARTICLES = ("a", "an", "the")

# Each is also known without one of its apostrophes, whichever: "shouldntve" is not, "shouldn'tve"
# and "shouldnt've" are.
_APOSTROPHES = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't
mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _APOSTROPHES.split()
    for place, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # the wrong way round there, so here too


def normalize_answer(text: str) -> str:
    """An answer in the form in which answers are compared.

    Lower case, without articles and punctuation, numbers to ten as digits, apostrophes put back.
    A punctuation mark is dropped where one of its kind touches a space, or a comma stands between
    two digits; elsewhere a space takes its place. A period stays before a digit.
    """
    comma = re.search(r"\d,\d", text) is not None
    marks: dict[str, str | int | None] = {
        mark: "" if comma or f"{mark} " in text or f" {mark}" in text else " "
        for mark in _PUNCTUATION
    }
    plain = re.sub(r"\.(?!\d)", "", text.translate(str.maketrans(marks)))
    words = [_DIGITS.get(word, word) for word in plain.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_scores(
    predictions: Sequence[str], answers: Sequence[Sequence[str]]
) -> Float[np.ndarray, " B"]:
    """Each row's accuracy: ``min(matches / 3, 1)``, averaged over leaving out one human each.

    Where all humans wrote the very same, the evaluation compares it as written: "Yes" does not
    match ten times "yes".

    Args:
        predictions: one answer a row.
        answers: those of the humans, ten in VQA. Of a single one nobody is left: the score is 0.

    Raises:
        ValueError: a row has no answers, or there are not as many rows of both.
    """
    return np.array(
        [_score(one, humans) for one, humans in zip(predictions, answers, strict=True)], np.float64
    )


def vqa_accuracy(
    predictions: Sequence[str],
    answers: Sequence[Sequence[str]],
    confidence: float = DEFAULT_CONFIDENCE,
) -> Estimate:
    """The mean of ``vqa_scores``, bootstrapped by rows."""
    scores = vqa_scores(predictions, answers)
    return share(scores, np.ones_like(scores), confidence)


def _score(prediction: str, answers: Sequence[str]) -> float:
    if not answers:
        raise ValueError("a question without answers has no accuracy")
    prediction, *humans = (re.sub(r"[\n\t]", " ", text).strip() for text in (prediction, *answers))
    if len(set(humans)) > 1:
        prediction, *humans = map(normalize_answer, (prediction, *humans))
    n, matches = len(humans), humans.count(prediction)
    # Of n subsets, ``matches`` lack one who agrees.
    return (matches * min((matches - 1) / 3, 1) + (n - matches) * min(matches / 3, 1)) / n
