"""The data card of a forged data set: what is in it, how it was checked, and what it is not for."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crossguard_jax.impforge.forge import Forged


def data_card(forged: "Forged", identity: Mapping[str, Any]) -> str:
    """The card, in Markdown.

    Args:
        forged: what became of the candidates.
        identity: what they were made from, by name.
    """
    of = {label: sum(forged.by_category[label].values()) for label in forged.by_category}
    lines = [
        "# A forged data set",
        "",
        f"{of['unsafe']:,} rows labelled unsafe, {of['safe']:,} benign twins labelled safe. Each",
        "has a harmless picture and a text that a rewriter wrote under three rewards (ImpForge,",
        "arXiv 2510.17687). Labels are those of the queries, checked as the next section says.",
        "",
        "It is for training and testing guards. It is made of requests that mean harm: keep it",
        "where such data belongs.",
        "",
        *_checked(forged.gate),
        *_by_a_person(forged.judged),
        "",
        f"Candidates: {forged.written:,}. Dropped, by the first reason: "
        f"{_counts(forged.dropped)}. Each is in `dropped.jsonl`.",
        "",
        "| category | unsafe | safe |",
        "| --- | --- | --- |",
    ]
    names = sorted({*forged.by_category["unsafe"], *forged.by_category["safe"]})
    lines += [
        f"| {name or '(none)'} | {forged.by_category['unsafe'].get(name, 0):,} "
        f"| {forged.by_category['safe'].get(name, 0):,} |"
        for name in names
    ]
    lines += ["", "| variety of the unsafe rows | |", "| --- | --- |"]
    lines += [f"| {k.replace('_', ' ')} | {v:.3f} |" for k, v in forged.diversity.items()]
    lines += ["", "Made from:", ""] + [f"- {k}: `{v}`" for k, v in identity.items()]
    return "\n".join(lines) + "\n"


def _checked(gate: Mapping[str, Any]) -> Iterator[str]:
    yield "## How rows were checked"
    yield ""
    if gate["kind"] == "none":
        yield "They were not: what a row means is not known, whatever its label says."
        return
    judge = "local models" if gate["kind"] == "local" else "a model behind an endpoint"
    yield f"A gate ({judge}) looked at {gate['looked_at']:,} texts that the rewards had let pass:"
    yield "is the text harmless alone, is the picture, and do both together ask what the query"
    yield f"asked? {gate['passed']:,} passed. Dropped: {_counts(gate['dropped'])}."
    for note in gate["notes"]:
        yield f"{note[0].upper()}{note[1:]}."


def _by_a_person(judged: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    if not judged:
        yield "No person has judged rows yet: open `review.html`, and give what it saves to `forge"
        yield "--judged`."
        return
    raw, kappa = judged["agreement"], judged["kappa"]
    yield f"A person judged {judged['n']:,} rows ({judged['passed']:,} of them had passed): person"
    yield (
        f"and gate agree on {100 * raw['value']:.1f}% [{100 * raw['low']:.1f}, "
        f"{100 * raw['high']:.1f}], Cohen's kappa {_kappa(kappa)}. The person would drop "
        f"{judged['passed_in_vain']:,} that passed, and keep {judged['dropped_in_vain']:,} that "
        "were dropped."
    )


def _kappa(kappa: Mapping[str, Any]) -> str:
    if kappa["value"] is None:
        return "undefined (all alike)"
    return f"{kappa['value']:.2f} [{kappa['low']:.2f}, {kappa['high']:.2f}]"


def _counts(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {reason}" for reason, n in dropped.items()) or "none"
