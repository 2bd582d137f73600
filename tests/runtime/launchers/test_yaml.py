"""YAML written without a library is what a library reads."""

import pytest
import yaml

from crossguard_jax.runtime.launchers.yaml import Node, dump

HARD = (
    *("plain", "two words", "a: b", "a #b", "'", '"', "it's", "\\n", "$(HOME)", "${X}", "`x`"),
    *(
        "yes",
        "NO",
        "on",
        "null",
        "~",
        "true",
        "",
        "1",
        "1e3",
        "0x1",
        "4x4",
        "12:30:00",
        "2026-01-01",
    ),
    *(
        "- a",
        "? a",
        "&a",
        "*a",
        "!a",
        "%a",
        "@a",
        "{a}",
        "[a]",
        "a, b",
        " a",
        "a ",
        "café",
        "日本",
        "😀",
    ),
)


@pytest.mark.parametrize("text", HARD)
def test_a_string_stays_what_it_is_as_value_key_and_item(text: str) -> None:
    node: Node = {"value": text, text or "empty": "key", "items": [text, {"in": text}]}
    assert yaml.safe_load(dump(node)) == node


@pytest.mark.parametrize(
    "node",
    [
        {"a": {}, "b": [], "c": True, "d": 0, "e": {"f": [{"g": 1, "h": [2, {"i": "j"}]}]}},
        {"script": "first\n  second: 'x'\n\nlast\n"},
        {"list": ["-c", "first\n  second\n", "after"]},
        [{"a": ["b\nc\n"]}],
    ],
)
def test_a_document_stays_what_it_is(node: Node) -> None:
    assert yaml.safe_load(dump(node)) == node


def test_documents_follow_one_another() -> None:
    assert [*yaml.safe_load_all(dump({"a": 1}, {"b": 2}))] == [{"a": 1}, {"b": 2}]
