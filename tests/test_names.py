"""Names are the field's, and a name is one thing's: no two classes share one."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
TREES = {
    str(file.relative_to(REPOSITORY)): ast.parse(file.read_text())
    for file in sorted(REPOSITORY.glob("crossguard_jax/**/*.py"))
}
UNSAYING = {"aim", "asked", "found", "known", "said", "told", "wanted"}
"""Names that say how a value came about and not what it is. DESIGN's, and their like."""


def names_given(tree: ast.AST) -> Iterator[str]:
    """Names of functions, parameters and all that is assigned to; not of attributes and keys, which
    files on disk and callers elsewhere may know."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name.lstrip("_")


def test_no_two_classes_share_a_name() -> None:
    files = defaultdict(list)
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                files[node.name].append(file)
    assert {name: where for name, where in files.items() if len(where) > 1} == {}


def test_a_name_says_what_it_holds() -> None:
    unsaying = {file: UNSAYING.intersection(names_given(tree)) for file, tree in TREES.items()}
    assert {file: names for file, names in unsaying.items() if names} == {}
