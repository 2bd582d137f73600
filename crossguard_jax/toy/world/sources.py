"""The small world's sources: every shape of data that the paper trains on and measures.

``examples(source, split, n, seed)`` gives rows with their truth; ``records`` gives them drawn. The
splits' pictures are disjoint, and ``test`` speaks in carriers and phrases that the others never use
(``heldout``: pairs of kind and request that no training row has).
"""

from dataclasses import replace

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import Record
from crossguard_jax.toy.world.derived import (
    picture_only_rows,
    talk_rows,
    two_pictures_rows,
)
from crossguard_jax.toy.world.examples import Maker, Stream, WorldExample, halves, to_record
from crossguard_jax.toy.world.explicit import explicit_text
from crossguard_jax.toy.world.kinds import BASE_KINDS, DECORATIONS, HAZARDS, KIND_NAMES
from crossguard_jax.toy.world.knowledge import ask_knowledge
from crossguard_jax.toy.world.new_frames import new_rows, spelled_rows
from crossguard_jax.toy.world.new_shapes import keyword_picture_rows, wrapped_rows
from crossguard_jax.toy.world.pointing import point, point_past
from crossguard_jax.toy.world.risk import HELD_OUT_PAIRS, PAIRS, SEEN_PAIRS, risky
from crossguard_jax.toy.world.rows import (
    ORDINARY,
    benign_vqa_rows,
    deal_pairs,
    explicit_picture_rows,
    explicit_text_rows,
    implicit_rows,
    pointing_row,
    question_rows,
    say,
    scene_with,
    typographic_rows,
    written_scene,
)
from crossguard_jax.toy.world.vqa import ask, ask_reading, caption
from crossguard_jax.toy.world.wide import (
    implicit_wide_rows,
    wide_centre_rows,
    wide_margin_rows,
)

_PRETRAINING = BASE_KINDS + DECORATIONS + HAZARDS


def _named(stream: Stream, n: int) -> list[WorldExample]:
    """The same requests about something that the text names: what a model refuses by its words."""
    rows = []
    for kind, request in deal_pairs(stream, SEEN_PAIRS, n):
        scene = scene_with(stream, [kind], ORDINARY)
        label = "unsafe" if risky(kind, request) else "safe"
        text = say(stream, request, f"the {kind}")
        rows.append(WorldExample(text, label, scene, request, "", 0, kind, request, True))
    return rows


def _implicit_heldout(stream: Stream, n: int) -> list[WorldExample]:
    if stream.split == "train":
        raise UserError("source 'implicit_heldout': its pairs are in no training; use val or test")
    return [pointing_row(stream, pair) for pair in deal_pairs(stream, HELD_OUT_PAIRS, n)]


def _implicit_misaligned(stream: Stream, n: int) -> list[WorldExample]:
    """Requests about something that is not in the picture: nothing to do, so nothing unsafe."""
    rows = []
    for kind, request in deal_pairs(stream, SEEN_PAIRS, n):
        scene = scene_with(stream, [kind], ORDINARY)
        text = say(stream, request, point_past(stream.rng, scene))
        rows.append(WorldExample(text, "safe", scene, request, request=request, aligned=False))
    return rows


def _vqa(stream: Stream, n: int) -> list[WorldExample]:
    return question_rows(stream, n, _PRETRAINING)


def _vqa_closed(stream: Stream, n: int) -> list[WorldExample]:
    """Questions that one word answers; the word is the label."""
    rows = [row for row in _vqa(stream, 2 * n) if " " not in row.answer]
    return [replace(row, label=row.answer) for row in rows[:n]]


def _captions(stream: Stream, n: int) -> list[WorldExample]:
    rows = []
    for _ in range(n):
        scene = scene_with(stream, [], _PRETRAINING)
        rows.append(WorldExample(caption(stream.rng, scene), "safe", scene, "caption"))
    return rows


def _reading(stream: Stream, n: int) -> list[WorldExample]:
    def make(stream: Stream, harmful: bool) -> WorldExample:
        scene = written_scene(stream, harmful, None, BASE_KINDS + DECORATIONS)
        q = ask_reading(stream.rng, scene)
        return WorldExample(q.text, "safe", scene, q.topic, q.answer)

    return halves(stream, n, make)


def _knowledge(stream: Stream, n: int) -> list[WorldExample]:
    questions = [ask_knowledge(stream.rng) for _ in range(n)]
    return [WorldExample(q.text, "safe", None, q.topic, q.answer) for q in questions]


def _paraphrases(stream: Stream, n: int) -> list[WorldExample]:
    """The same request on the same thing said twice: ``text`` and ``answer``.

    The text names the thing. The other names it in other words (category ``named``), points at it
    in the picture (``pointing``), or points at it after a caption of the picture (``captioned``).
    """
    rows = []
    for i, (kind, request) in enumerate(deal_pairs(stream, PAIRS, n)):
        scene = scene_with(stream, [kind], KIND_NAMES)
        label = "unsafe" if risky(kind, request) else "safe"
        category = ("named", "pointing", "captioned")[i % 3]
        text = say(stream, request, f"the {kind}")
        other = f"the {kind}" if category == "named" else point(stream.rng, scene.things[0])
        paraphrase = say(stream, request, other)
        if category == "captioned":
            paraphrase = f"{caption(stream.rng, scene)}. {paraphrase}"
        rows.append(WorldExample(text, label, scene, category, paraphrase, 0, kind, request, True))
    return rows


def _text_safety(stream: Stream, n: int) -> list[WorldExample]:
    """Text alone: unsafe where the words alone are, so that pointing is safe whatever it means."""
    pairs = PAIRS if stream.split == "test" else SEEN_PAIRS
    by_risk = {flag: [pair for pair in pairs if risky(*pair) == flag] for flag in (False, True)}

    def make(stream: Stream, unsafe: bool) -> WorldExample:
        rng, label = stream.rng, "unsafe" if unsafe else "safe"
        shape = rng.integers(2 if unsafe else 4)
        if shape == 0:
            text, category = explicit_text(rng, unsafe, stream.held_out_wording)
            return WorldExample(text, label, None, category)
        if shape == 1:
            kind, request = by_risk[unsafe][rng.integers(len(by_risk[unsafe]))]
            text = say(stream, request, f"the {kind}")
            return WorldExample(text, label, None, "named", kind=kind, request=request)
        if shape == 2:
            row = pointing_row(stream, pairs[rng.integers(len(pairs))])
            return WorldExample(row.text, label, None, "pointing", request=row.request)
        question = ask(rng, scene_with(stream, [], ORDINARY), stream.held_out_wording)
        return WorldExample(question.text, label, None, question.topic)

    return halves(stream, n, make)


DERIVED: dict[str, Maker] = {
    "talk": talk_rows,
    "picture_only": picture_only_rows,
    "two_pictures": two_pictures_rows,
    "implicit_wide": implicit_wide_rows,
    "wide_margin": wide_margin_rows,
    "wide_centre": wide_centre_rows,
}
"""Sources of words alone, of pictures alone, of two pictures, or of larger ones."""

NEW_FRAMES: dict[str, Maker] = {
    "explicit_text_new": new_rows,
    "explicit_text_spelled": spelled_rows,
}
"""Sources for evaluation alone, whose forms come from outside: they have the split test only."""

NEW_SHAPES: dict[str, Maker] = {
    "wrapped": wrapped_rows,
    "keyword_picture": keyword_picture_rows,
}
"""Others of that kind: requests inside a jailbreak's words, and ones that the picture completes."""

TESTED: dict[str, Maker] = NEW_FRAMES | NEW_SHAPES
"""All that no training may read."""

SOURCES: dict[str, Maker] = {
    "implicit": implicit_rows,
    "implicit_heldout": _implicit_heldout,
    "implicit_misaligned": _implicit_misaligned,
    "named": _named,
    "explicit_text": explicit_text_rows,
    "explicit_picture": explicit_picture_rows,
    "typographic": typographic_rows,
    "benign_vqa": benign_vqa_rows,
    "vqa": _vqa,
    "vqa_closed": _vqa_closed,
    "captions": _captions,
    "reading": _reading,
    "knowledge": _knowledge,
    "paraphrases": _paraphrases,
    "text_safety": _text_safety,
    **DERIVED,
    **TESTED,
}


def examples(source: str, split: str, n: int, seed: int = 0) -> list[WorldExample]:
    """Rows of a source, the same ones every time.

    Args:
        source: a key of :data:`SOURCES`. Sources for the guard: ``implicit``, ``implicit_heldout``,
            ``implicit_misaligned``, ``named``, ``explicit_text``, ``explicit_picture``,
            ``typographic`` (each but the misaligned half unsafe, half safe) and ``benign_vqa`` (all
            safe); and those of :data:`DERIVED`: ``talk`` (all safe), ``picture_only``,
            ``two_pictures``, ``implicit_wide``, ``wide_margin``,
            ``wide_centre`` (half and half). For evaluation alone: those of :data:`TESTED`. For
            the base models, without the novel kinds: ``vqa``, ``captions``, ``reading``,
            ``knowledge``. For the text models: ``paraphrases``, ``text_safety``.
        split: ``train``, ``val`` or ``test``.
        n: how many.
        seed: other rows of the same kind.

    Raises:
        UserError: there is no such source or split, or the source has no such split.
    """
    if source not in SOURCES:
        raise UserError(f"source {source!r}: there are {', '.join(SOURCES)}")
    rows = SOURCES[source](Stream(source, split, seed), n)
    return [
        replace(row, source=source, split=split, seed=seed, index=i) for i, row in enumerate(rows)
    ]


def records(source: str, split: str, n: int, seed: int = 0) -> list[Record]:
    """The same rows drawn, as the data package knows them."""
    return [to_record(example) for example in examples(source, split, n, seed)]
