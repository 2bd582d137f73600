"""What of a configuration decides a run's arithmetic, and so which checkpoint it may go on from.

The rest may change between two starts of a run: where files lie (hashes of models and of rows
stand in a run's identity instead), how the work is spread and what is kept in memory, how often it
saves and measures, what is done with the result.
"""

import fnmatch
import json
from typing import Any

GOES_ON = (
    *("*.path", "*.text_path", "*.vision_tower", "*.remat", "mesh.*", "axis_rules*"),
    # Of the rows, the weight alone is not in their hash; a source without weight is not read.
    *("data.validation*", "data.augment.talk.*"),
    *(
        f"data.sources.*.{field}"
        for field in ("reader", "path", "split", "limit", "labels", "tenth")
    ),
    *("*.save_every", "*.eval_every", "*.log_every", "*.keep_best"),
    # What checks, judges and forges, once it has been learned.
    *("arm.branches", "attack.*", "match.*", "forge.*", "gate.*"),
)
"""Fields, by their dotted paths, that a run goes on with when they have changed."""


def deciding(config: Any) -> dict[str, Any]:
    """The fields of a configuration that a run does not go on with when they have changed.

    Args:
        config: an ml_collections configuration of any recipe.

    Returns:
        Values fit for JSON by dotted path.
    """
    fields = dict(flattened(json.loads(config.to_json())))
    unread = [
        f"{name.removesuffix('weight')}*"
        for name, value in fields.items()
        if fnmatch.fnmatchcase(name, "data.sources.*.weight") and not value
    ]
    return {name: v for name, v in fields.items() if not _matches(name, (*GOES_ON, *unread))}


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def flattened(value: dict[str, Any], path: str = "") -> list[tuple[str, Any]]:
    """The leaves of nested dicts with their dotted paths; an empty dict is one."""
    leaves: list[tuple[str, Any]] = []
    for name, inner in value.items():
        here = f"{path}.{name}".lstrip(".")
        if isinstance(inner, dict) and inner:
            leaves += flattened(inner, here)
        else:
            leaves.append((here, inner))
    return leaves
