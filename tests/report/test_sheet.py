"""A page to judge on: its one script is allowed by its hash, and rows stay text."""

import base64
import hashlib
import re

from crossguard_jax.report.sheet import Question, SheetItem, render


def page(text: str = "a text", id: str = "r1") -> str:
    items = [SheetItem(id, None, (("Text", text),))]
    return render("Rows", "Judge `them`.", [Question("q", "Is it?")], items, "judged.json")


def test_the_policy_allows_the_pages_own_script_and_no_other() -> None:
    scripts = re.findall(r"<script>(.*?)</script>", page(), re.S)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page() and "default-src 'none'" in page()


def test_a_row_stays_text_wherever_it_stands() -> None:
    bad = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
    found = page(bad, bad)
    assert found.count("<script>") == 1 and "<img" not in found
    assert "&lt;script&gt;alert(1)" in found


def test_every_question_of_every_row_has_its_two_answers() -> None:
    assert page().count('data-row="r1"') == 2 and page().count('value="no"') == 1
    assert "<code>them</code>" in page() and 'data-file="judged.json"' in page()
