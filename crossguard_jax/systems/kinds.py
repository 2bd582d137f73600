"""How systems that are no folder of ours are called: ``KIND`` or ``KIND:WHAT``.

Nothing heavy is imported here: the command line asks before anything is loaded.
"""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path

from crossguard_jax.core.errors import UserError

CONSTANTS = {
    "always_safe": "lets everything pass",
    "always_unsafe": "stops everything",
}
CONTROLS = {
    "text_only": "any system here, without the rows' pictures",
    "picture_only": "any system here, without the texts of rows that have a picture",
}
ASKED = {
    "endpoint": "a guard behind an OpenAI-compatible endpoint; WHAT is a .json",
    "answers": "a model that answers, judged by whether it refuses; WHAT is a LLaVA folder, or a "
    ".json",
}
TORCH = {
    "llavaguard": "LlavaGuard, which judges pictures alone",
    "llama_guard_3_vision": "Llama Guard 3 Vision, of one picture and a text",
    "llama_guard_4": "Llama Guard 4",
    "shieldgemma_2": "ShieldGemma 2, which judges pictures alone",
    "qwen_2_5_vl": "Qwen2.5-VL, prompted",
    "qwen_3_vl": "Qwen3-VL, prompted",
    "singguard": "SingGuard",
}
"""Hub folders that torch and transformers run."""
KINDS = {**CONSTANTS, **CONTROLS, **ASKED, **TORCH}


def parse(spec: str) -> tuple[str, str]:
    """The kind and what it is of; no kind for a folder.

    Example:
        >>> parse("text_only:runs/guard"), parse("runs/guard")
        (('text_only', 'runs/guard'), ('', 'runs/guard'))

    Raises:
        UserError: a kind that wants something after it has nothing, or the other way round; or
            what is no folder and looks like a kind.
    """
    kind, colon, rest = spec.partition(":")
    if kind in CONSTANTS and not Path(spec).is_dir():
        if colon:
            raise UserError(f"{spec}: {kind} is of nothing; write it alone")
        return kind, ""
    if kind in KINDS and colon:
        if not rest:
            raise UserError(f"{spec}: say of what, as in {kind}:FOLDER")
        return kind, rest
    if not colon and not Path(spec).exists():
        if near := difflib.get_close_matches(spec, CONSTANTS, n=1, cutoff=0.8):
            raise UserError(f"{spec}: no such folder; did you mean {near[0]}?")
    word = colon and re.fullmatch(r"\w+", kind) and not rest.startswith("//")
    if (word or kind in KINDS) and not Path(spec).exists():
        nearest = difflib.get_close_matches(kind, KINDS, n=1, cutoff=0.0)[0]
        raise UserError(
            f"{spec}: no folder, and no kind of system; did you mean {nearest}"
            f"{'' if nearest in CONSTANTS else ':FOLDER'}? (there are {', '.join(KINDS)})"
        )
    return "", spec


def name_of(spec: str) -> str:
    """What a system is called where it was given no name."""
    kind, rest = parse(spec)
    if not rest:
        return kind
    if kind in CONTROLS or kind == "answers":
        return f"{kind}_{name_of(rest)}"
    return Path(rest).name.removesuffix(".json")


def named(spec: str) -> tuple[str, str]:
    """``[NAME=]WHAT`` as name, which may be "", and what: a path may have an equals sign, too."""
    name, equals, rest = spec.partition("=")
    if not equals or set("/:") & set(name) or Path(spec.partition("+")[0]).exists():
        return "", spec
    return name, rest


def needs_torch(spec: str) -> bool:
    """Whether torch runs it."""
    return any(kind in TORCH for kind in _kinds(spec))


def _kinds(spec: str) -> Iterator[str]:
    """The kinds in a system's name, from without."""
    rest = named(spec)[1]
    while rest:
        kind, _, rest = rest.partition(":")
        yield kind
