"""Benign twins: the same picture with a harmless query, rewritten by the same policy.

Without them a guard learns the rewriter's style: all that sounds like it is unsafe.
"""

from collections.abc import Iterable, Sequence
from pathlib import PurePath

import numpy as np

from crossguard_jax.data.records import Record
from crossguard_jax.impforge.triplets import Triplet

TWIN = "twin"
"""Ends a twin's id, after its triplet's."""


def pair_twins(
    triplets: Sequence[Triplet], harmless: Iterable[tuple[Record, Sequence[str]]], seed: int
) -> list[Triplet]:
    """A twin for each triplet whose keyword some harmless query shares.

    Args:
        triplets: of queries that mean harm.
        harmless: queries that mean none, each with its own visual keywords.
        seed: of the draw among those that share a keyword; all come up before any comes again.

    Returns:
        Triplets on the same pictures, in the triplets' order; fewer where keywords are not shared.
    """
    queries: dict[str, list[Record]] = {}
    for record, keywords in harmless:
        for keyword in keywords:
            queries.setdefault(keyword, []).append(record)
    rng = np.random.default_rng(seed)
    decks: dict[str, list[Record]] = {}
    twins = []
    for triplet in triplets:
        candidates = queries.get(triplet.keyword)
        if not candidates:
            continue
        deck = decks.setdefault(triplet.keyword, [])
        if not deck:
            deck.extend(candidates[i] for i in rng.permutation(len(candidates)))
        query = deck.pop()
        twins.append(
            Triplet(
                id=f"{triplet.id}-{TWIN}",
                query=query.text,
                keyword=triplet.keyword,
                image=triplet.image,
                caption=triplet.caption,
                category=query.category,
                cosine=triplet.cosine,
                provenance={**triplet.provenance, **_own(query), "twin_of": triplet.id},
            )
        )
    return twins


def _own(query: Record) -> dict[str, str]:
    """What a triplet's provenance says of its query, of this one; files by their names alone."""
    at = query.provenance
    return {
        "query": query.id,
        "query_source": query.source,
        "query_label": query.label,
        "query_file": PurePath(at.get("file", "")).name,
        "query_row": at.get("row", ""),
    }
