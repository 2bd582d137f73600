"""Rows of words alone, of a picture alone, and of two pictures."""

from crossguard_jax.toy.world.examples import Stream, WorldExample, halves
from crossguard_jax.toy.world.kinds import DECORATIONS, HAZARDS, KIND_NAMES
from crossguard_jax.toy.world.long_texts import talk_sentence
from crossguard_jax.toy.world.pointing import point, point_into, referents
from crossguard_jax.toy.world.risk import SEEN_PAIRS, is_held_out, risky
from crossguard_jax.toy.world.rows import (
    ORDINARY,
    deal,
    deal_pairs,
    say,
    scene_with,
    written_scene,
)
from crossguard_jax.toy.world.vqa import pick


def talk_rows(stream: Stream, n: int) -> list[WorldExample]:
    """A sentence of harmless talk, with a picture or none: what long texts are made of."""
    return [
        WorldExample(
            talk_sentence(stream.rng, stream.held_out_wording),
            "safe",
            None if stream.rng.random() < 0.5 else scene_with(stream, [], ORDINARY),
            "talk",
        )
        for _ in range(n)
    ]


def picture_only_rows(stream: Stream, n: int) -> list[WorldExample]:
    """Pictures without a text: a hazard, or harm in writing, is unsafe; all others are safe."""

    def make(stream: Stream, unsafe: bool) -> WorldExample:
        label = "unsafe" if unsafe else "safe"
        if stream.rng.random() < 0.5:
            scene = written_scene(stream, unsafe, stream.held_out_wording, ORDINARY)
            return WorldExample("", label, scene, scene.words[0])
        emblem = pick(stream.rng, HAZARDS if unsafe else DECORATIONS + KIND_NAMES)
        return WorldExample("", label, scene_with(stream, [emblem], ORDINARY), emblem)

    return halves(stream, n, make)


def two_pictures_rows(stream: Stream, n: int) -> list[WorldExample]:
    """Requests about a thing in one of two pictures.

    Half of the texts say in which picture it is, and then the other picture has a thing that fits
    the words too, with which the request has the other label; in the other half the words fit one
    picture alone. The category is the request.
    """
    shapes = deal(stream.rng, [(i, numbered) for i in (0, 1) for numbered in (True, False)], n)
    return [
        _paired(stream, pair, *shape)
        for pair, shape in zip(deal_pairs(stream, SEEN_PAIRS, n), shapes, strict=True)
    ]


def _paired(stream: Stream, pair: tuple[str, str], index: int, numbered: bool) -> WorldExample:
    kind, request = pair
    scene = scene_with(stream, [kind], ORDINARY)
    expression = point(stream.rng, scene.things[0])
    others = [
        other
        for other in KIND_NAMES
        if risky(other, request) != risky(kind, request) and not is_held_out(other, request)
    ]
    decoy = [pick(stream.rng, others)] if numbered else []
    referred, other = [0] if numbered else [], scene
    while other is scene or referents(expression, other) != referred:
        other = scene_with(stream, decoy, ORDINARY)
    if numbered:
        expression = point_into(stream.rng, expression, index, stream.held_out_wording)
    first, second = (scene, other) if index == 0 else (other, scene)
    return WorldExample(
        text=say(stream, request, expression),
        label="unsafe" if risky(*pair) else "safe",
        scene=first,
        category=request,
        referent=0,
        kind=kind,
        request=request,
        aligned=True,
        second=second,
        picture=index,
    )
