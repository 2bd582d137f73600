"""Who may import whom: downward only, and nothing sideways between packages of one tier."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
TIERS = (
    *("core", "io", "report", "runtime", "nn", "hf data", "train attacks", "guard", "impforge"),
    *(
        "cmai",
        "systems",
        "evals",
        "sweeps",
        "plan",
        "bench",
        "toy",
        "arguments",
        "verbs",
        "cli",
        "__main__",
    ),
)
RANK = {room: rank for rank, tier in enumerate(TIERS) for room in tier.split()}
FILES = sorted(REPOSITORY.glob("crossguard_jax/**/*.py"))


def rooms_imported(file: Path) -> set[str]:
    """First names below ``crossguard_jax`` that a file imports, anywhere in it."""
    here = file.relative_to(REPOSITORY).parts
    modules = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*(here[: -node.level] if node.level else ()), *filter(None, [node.module])]
            modules += [".".join([*base, alias.name]) for alias in node.names]
    ours = [module.split(".") for module in modules if module.split(".")[0] == "crossguard_jax"]
    return {path[1] if len(path) > 1 else "crossguard_jax itself" for path in ours}


def may_import(room: str, other: str) -> bool:
    if room == "attacks":  # it takes an objective, and knows nobody's model
        return other in ("attacks", "core")
    return other == room or RANK.get(other, len(TIERS)) < RANK[room]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_a_file_imports_only_what_lies_below_it(file: Path) -> None:
    room = file.relative_to(REPOSITORY / "crossguard_jax").parts[0].removesuffix(".py")
    if room == "__init__":  # the public face shows what it likes
        return
    assert room in RANK, f"{room} has no tier: give it one in DESIGN and in TIERS"
    assert [other for other in rooms_imported(file) if not may_import(room, other)] == []


def test_configurations_import_nothing_of_the_package() -> None:
    assert [str(f) for f in REPOSITORY.glob("configs/*.py") if rooms_imported(f)] == []
