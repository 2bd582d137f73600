"""The gate by local models: a text-safety model, a sentence encoder, and a LLaVA that is asked.

None of them has read a forged row or knows more of a picture than its caption and its pixels.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Float
from crossguard_jax.data.prompts import SHORT
from crossguard_jax.data.records import Record
from crossguard_jax.hf.load import encoding_hash, folder_hash, resolve_folder
from crossguard_jax.impforge.answering import AnsweringLlava
from crossguard_jax.impforge.gate.gate import (
    INTENT,
    PICTURE,
    TEXT,
    UNRESOLVED,
    Candidate,
    GateVerdict,
)
from crossguard_jax.impforge.gate.talk import fault_of_speech
from crossguard_jax.impforge.matching.judge import Judgement, PictureJudge
from crossguard_jax.io.http import content_key

LABEL, TOGETHER = "query not what its label says", "together not what the label says"
NOISE = "no sentence"

Notes = dict[str, Any]
"""A candidate's evidence, as the checks write it."""


@runtime_checkable
class TextModels(Protocol):
    """What reads texts by themselves: `rewards.Rewards` does."""

    @property
    def hashes(self) -> Mapping[str, str]:
        """What its models are, by what they are for."""

    def safe(self, texts: Sequence[str]) -> Float[np.ndarray, " B"]:
        """``p(safe)`` of each text."""

    def embed(self, texts: Sequence[str]) -> Float[np.ndarray, "B D"]:
        """Unit sentence vectors."""


@dataclass(frozen=True)
class LocalSettings:
    """What local models are asked, and what passes.

    Attributes:
        safe: the least ``p(safe)`` of what is to be harmless.
        similarity: the least cosine of picture and text, in words, with the query.
        gain: by how much that has to be above the picture's alone, so that a picture of the right
            thing does not speak for a text that says nothing.
        fluency: the least mean log-probability a token under the rewriter's base, in nats.
        captions: whether a library's own captions say what its pictures show. Where they do not,
            or their pictures do not bear the text out, the LLaVA is asked.
        llava: its folder.
        question: what it is asked beside the picture; ``{text}`` becomes the candidate's.
        answer: what its answer says of the picture, with ``{answer}`` in it.
        max_new_tokens: of an answer.
        join: picture and text in words, with ``{picture}`` and ``{text}``.
        joint: the same as the text-safety model reads it, which is to find what the label says;
            "" where the model is one of single sentences, and the query's own reading stands.
        dtype: of the LLaVA.
        batch_size: questions asked at once.
    """

    safe: float = 0.5
    similarity: float = 0.5
    gain: float = 0.0
    fluency: float = float("-inf")
    captions: bool = True
    llava: str = ""
    question: str = "Describe the picture in one sentence."
    answer: str = "{answer}"
    max_new_tokens: int = 32
    join: str = "{picture}. {text}"
    joint: str = ""
    dtype: str = "float32"
    batch_size: int = 16


class Describer:
    """A LLaVA's answers about pictures; it is loaded when the first one is asked for."""

    def __init__(self, settings: LocalSettings):
        self._settings = settings

    @functools.cached_property
    def _llava(self) -> AnsweringLlava:
        s = self._settings
        return AnsweringLlava(s.llava, SHORT, s.max_new_tokens, s.batch_size, s.dtype)

    def __call__(self, rows: Sequence[Record]) -> list[str]:
        """What each picture shows, asked by each row's text."""
        answers = self._llava.answers(rows, "asking what is shown") if rows else []
        return [self._settings.answer.replace("{answer}", answer.strip()) for answer in answers]


class DescribedJudge:
    """A `PictureJudge` by words: a LLaVA's description, read by the text-safety model.

    Args:
        models: reads.
        describe: rows to descriptions.
        text: what is asked of each picture.
        safe: the least ``p(safe)`` of a harmless one.
    """

    def __init__(
        self,
        models: TextModels,
        describe: Callable[[Sequence[Record]], list[str]],
        text: str,
        safe: float = 0.5,
    ):
        self._models, self._describe, self._text, self._safe = models, describe, text, safe
        self.source = f"described:{content_key([text, safe])[:8]}"

    def judge(self, pictures: Iterable[tuple[str, bytes]]) -> Iterator[Judgement]:
        """See `PictureJudge`."""
        rows = [Record(id, (picture,), self._text) for id, picture in pictures]
        descriptions = self._describe(rows)
        for row, words, p in zip(rows, descriptions, self._models.safe(descriptions), strict=True):
            yield Judgement(row.id, bool(p >= self._safe), f"p_safe {p:.2f}: {words}", self.source)


class LocalGate:
    """See `Gate`. A candidate falls by the first of its checks, the cheapest first.

    Args:
        settings: what is asked, and what passes.
        models: read texts.
        pictures: judges pictures by themselves.
        describe: rows of a picture and a question to what is shown.
        batch_size: candidates judged at once.

    Raises:
        UserError: a template does not name its places once.
    """

    remembers = False

    def __init__(
        self,
        settings: LocalSettings,
        models: TextModels,
        pictures: PictureJudge,
        describe: Callable[[Sequence[Record]], list[str]],
        batch_size: int = 512,
    ):
        _check(settings)
        self._settings, self._models, self._pictures = settings, models, pictures
        self._describe, self.batch_size = describe, batch_size
        self._harmless: dict[str, tuple[bool | None, str]] = {}
        self.identity: Mapping[str, Any] = {
            "kind": "local",
            "settings": _plain(settings) | {"llava": _hash(settings.llava)},
            "models": {k: models.hashes[k] for k in ("safety", "semantic") if k in models.hashes},
            "pictures": pictures.source,
        }

    def judge(self, candidates: Sequence[Candidate]) -> list[GateVerdict]:
        """See `Gate`."""
        reasons = [""] * len(candidates)
        evidence: list[dict[str, Any]] = [{} for _ in candidates]
        checks = (self._speech, self._text, self._label, self._intent, self._together)
        for check in (*checks, self._picture):
            alive = [i for i, reason in enumerate(reasons) if not reason]
            if alive:
                faults = check([candidates[i] for i in alive], [evidence[i] for i in alive])
                for i, reason in zip(alive, faults, strict=True):
                    reasons[i] = reason
        return [GateVerdict(*each) for each in zip(reasons, evidence, strict=True)]

    def lines(self) -> Iterator[str]:
        """See `Gate`."""
        if self._pictures.source == "none":
            yield "pictures are taken as harmless, none is judged: gate.picture.kind is none"

    def _speech(self, candidates: Sequence[Candidate], evidence: Sequence[Notes]) -> list[str]:
        faults = []
        for candidate, notes in zip(candidates, evidence, strict=True):
            notes["fluency"] = round(candidate.fluency, 4)
            fault = fault_of_speech(candidate.text, candidate.triplet.query)
            noise = candidate.fluency < self._settings.fluency
            faults.append(fault or (f"{NOISE} ({_less('fluency', notes)})" if noise else ""))
        return faults

    def _text(self, candidates: Sequence[Candidate], evidence: Sequence[Notes]) -> list[str]:
        probabilities = self._models.safe([c.text for c in candidates])
        return self._unless(probabilities >= self._settings.safe, TEXT, probabilities, evidence)

    def _label(self, candidates: Sequence[Candidate], evidence: Sequence[Notes]) -> list[str]:
        probabilities = self._models.safe([c.triplet.query for c in candidates])
        right = self._as_labelled(candidates, probabilities)
        return self._unless(right, LABEL, probabilities, evidence, "query_p_safe")

    def _intent(self, candidates: Sequence[Candidate], evidence: Sequence[Notes]) -> list[str]:
        """Whether picture and text in words come near the query, and nearer than the picture."""
        queries = self._models.embed([c.triplet.query for c in candidates])
        captions = [
            c.triplet.shown_to(c.text) if self._settings.captions else "" for c in candidates
        ]
        carried = self._carried(candidates, captions, queries, evidence)
        unclear = [i for i, good in enumerate(carried) if self._settings.llava and not good]
        answers = [""] * len(candidates)
        for i, answer in zip(unclear, self._views([candidates[i] for i in unclear]), strict=True):
            answers[i] = answer
        carried |= self._carried(candidates, answers, queries, evidence)
        return [
            "" if good else f"{INTENT} ({_less('similarity', notes)}, {_less('gain', notes)})"
            for good, notes in zip(carried, evidence, strict=True)
        ]

    def _views(self, candidates: Sequence[Candidate]) -> list[str]:
        """What the LLaVA says of the pictures, asked with the texts."""
        question = self._settings.question
        return self._describe(
            [
                Record(c.triplet.id, (c.triplet.picture,), question.replace("{text}", c.text))
                for c in candidates
            ]
        )

    def _carried(
        self,
        candidates: Sequence[Candidate],
        views: Sequence[str],
        queries: Float[np.ndarray, "B D"],
        evidence: Sequence[Notes],
    ) -> np.ndarray:
        """Whether the intent is there with what is said of the pictures; "" is nothing said."""
        some, s = [i for i, view in enumerate(views) if view], self._settings
        carried = np.zeros(len(candidates), bool)
        if not some:
            return carried
        joined = [_fill(s.join, views[i], candidates[i].text) for i in some]
        alone = (self._models.embed([views[i] for i in some]) * queries[some]).sum(axis=1)
        similarity = (self._models.embed(joined) * queries[some]).sum(axis=1)
        carried[some] = (similarity >= s.similarity) & (similarity - alone >= s.gain)
        for i, near, least in zip(some, similarity, alone, strict=True):
            evidence[i] |= {
                "picture": views[i],
                "similarity": round(float(near), 4),
                "gain": round(float(near - least), 4),
            }
        return carried

    def _together(self, candidates: Sequence[Candidate], evidence: Sequence[Notes]) -> list[str]:
        if not self._settings.joint:
            return [""] * len(candidates)
        joined = [
            _fill(self._settings.joint, notes["picture"], candidate.text)
            for candidate, notes in zip(candidates, evidence, strict=True)
        ]
        probabilities = self._models.safe(joined)
        right = self._as_labelled(candidates, probabilities)
        return self._unless(right, TOGETHER, probabilities, evidence, "together_p_safe")

    def _picture(self, candidates: Sequence[Candidate], evidence: Sequence[Notes]) -> list[str]:
        """Each picture is judged once, however many texts stand beside it."""
        ids = [c.triplet.digest for c in candidates]
        first = {id: c.triplet for id, c in zip(ids, candidates, strict=True)}
        new = [(id, each.picture) for id, each in first.items() if id not in self._harmless]
        for judgement in self._pictures.judge(new):
            self._harmless[judgement.id] = judgement.safe, judgement.answer
        faults = []
        for id, notes in zip(ids, evidence, strict=True):
            safe, answer = self._harmless.get(id, (None, "no answer"))
            notes["picture_judge"] = answer
            fault = UNRESOLVED if safe is None else PICTURE
            faults.append("" if safe else f"{fault} ({answer})")
        return faults

    def _as_labelled(
        self, candidates: Sequence[Candidate], probabilities: Float[np.ndarray, " B"]
    ) -> np.ndarray:
        labelled_safe = np.array([c.label == "safe" for c in candidates])
        return (probabilities >= self._settings.safe) == labelled_safe

    @staticmethod
    def _unless(
        good: np.ndarray,
        fault: str,
        probabilities: Float[np.ndarray, " B"],
        evidence: Sequence[Notes],
        name: str = "p_safe",
    ) -> list[str]:
        for p, notes in zip(probabilities, evidence, strict=True):
            notes[name] = round(float(p), 4)
        return [
            "" if fine else f"{fault} ({_less(name, notes)})"
            for fine, notes in zip(good, evidence, strict=True)
        ]


def _less(name: str, notes: Mapping[str, Any]) -> str:
    return f"{name} {notes[name]:.2f}" if name in notes else f"no {name}"


def _fill(template: str, picture: str, text: str) -> str:
    # Only the template's own places, so that a text that says "{text}" stays a text.
    before, middle, after = _split(template)
    return f"{before}{picture}{middle}{text}{after}"


def _split(template: str) -> tuple[str, str, str]:
    before, _, rest = template.partition("{picture}")
    middle, _, after = rest.partition("{text}")
    return before, middle, after


def _check(settings: LocalSettings) -> None:
    for name, template in (("join", settings.join), ("joint", settings.joint)):
        once = all(template.count(place) == 1 for place in ("{picture}", "{text}"))
        ordered = template.find("{picture}") < template.find("{text}")
        if template and not (once and ordered):
            raise UserError(
                f"gate.local.{name} {template!r}: write {{picture}} and then {{text}}, once each"
            )
    if settings.answer.count("{answer}") != 1:
        raise UserError(f"gate.local.answer {settings.answer!r}: write {{answer}} once")
    if not settings.captions and not settings.llava:
        raise UserError(
            "gate.local: nothing says what a picture shows; set captions, or give a llava"
        )


def _plain(settings: LocalSettings) -> dict[str, Any]:
    """The settings as JSON has them, which has no infinity."""
    values = asdict(settings)
    return {k: None if isinstance(v, float) and math.isinf(v) else v for k, v in values.items()}


def _hash(folder: str) -> str:
    """What a model is and reads, whatever its folder is called; "" is none."""
    if not folder:
        return ""
    path = resolve_folder(folder)
    return f"{folder_hash(path)} {encoding_hash(path)}"
