"""Pages of rows: complete in themselves, readable without their script, blurred until asked."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from crossguard_jax.evals.benchmarks import ScoredRows
from crossguard_jax.evals.examples import listed
from crossguard_jax.evals.guard_report import Judged, guard_sections
from crossguard_jax.evals.system_pages import LISTED, rows_hashes, run_section, system_pages
from crossguard_jax.report import html
from crossguard_jax.report.blocks import Examples, Listing, Section
from crossguard_jax.report.examples import Example
from crossguard_jax.report.report import Report, SubPage
from crossguard_jax.report.tables import Table
from tests.evals import scored
from tests.report.test_report import Page

NODE = shutil.which("node")
NAMES = ("guard", "other")
FACTS = {name: {"from": f"runs/{name}", "hash": "0123abcd"} for name in NAMES}


@pytest.fixture(scope="module")
def report() -> Report:
    systems = {name: scored.scores(3.0 - i) for i, name in enumerate(NAMES)}
    systems["other"] = replace(systems["other"], unsafe=systems["guard"].unsafe)
    systems["other"].p_unsafe[::9] = np.nan
    judged = Judged(systems, titles={"other": "An <other> one"})
    contents = {key: f"{i}" for i, key in enumerate(systems["guard"].keys())}
    sections = [*guard_sections(judged, scored.lookup), run_section(judged, FACTS, contents)]
    return Report("t", sections, pages=system_pages(judged, scored.lookup, FACTS))


@pytest.fixture(scope="module")
def pages(report) -> dict[str, str]:
    return {"report.html": report.to_html(), **report.to_pages()}


def test_pages_load_nothing_and_link_to_one_another_alone(pages):
    assert set(pages) == {"report.html", "systems/guard.html", "systems/other.html"}
    for name, text in pages.items():
        page = Page(text)
        folder = name.rpartition("/")[0]
        links = [a["href"] for tag, a in page.tags if tag == "a"]
        away = {link for link in links if not link.startswith("#")}
        up = {f"../{each}" if folder else each for each in pages if each != name}
        assert {re.sub(r"^\.\./systems/", "", link) for link in up} == away
        for tag, given in page.tags:
            assert tag not in ("link", "iframe", "object", "base", "video", "audio", "embed")
            assert given.get("src", "data:image/").startswith("data:image/")
            assert not [key for key in given if key.startswith("on") or key == "srcset"]
        policy = next(a["content"] for tag, a in page.tags if "http-equiv" in a)
        assert policy.startswith("default-src 'none'; img-src data:; ")
        assert not re.search(r"url\(|@import|https?://", text)


def test_a_page_with_rows_runs_our_script_alone_and_no_other_page_runs_any(pages):
    assert "script" not in {tag for tag, _ in Page(pages["report.html"]).tags}
    (script,) = re.findall(r"<script>(.*)</script>", pages["systems/guard.html"], re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in pages["systems/guard.html"]


def test_without_its_script_a_page_shows_all_its_rows_and_no_filter(pages):
    page = Page(pages["systems/guard.html"])
    assert [a for tag, a in page.tags if tag == "form" and "hidden" in a]
    cards = [a for tag, a in page.tags if tag == "div" and "card" in a.get("class", "").split()]
    assert len(cards) == LISTED and not [card for card in cards if "hidden" in card]
    assert f"Listed are {LISTED} of the 280 rows" in page.text


def test_a_rows_picture_is_blurred_until_its_reader_asks(pages):
    for name, text in pages.items():
        tags = Page(text).tags
        veiled = [
            (box, picture)
            for (first, veil), (_, box), _, (_, picture) in zip(
                tags, tags[1:], tags[2:], tags[3:], strict=False
            )
            if first == "label" and veil.get("class") == "veil"
        ]
        rows = [a for tag, a in tags if tag == "img" and "picture of" in a["alt"]]
        assert rows and [picture for _, picture in veiled] == rows, name
        assert {(box["type"], "checked" in box) for box, _ in veiled} == {("checkbox", False)}
        assert re.search(r"\.veil img \{ filter: blur\(\d\dpx\)", text)
        assert re.search(r"\.veil input:checked ~ img, [^{]* \{ filter: none; \}", text)


def test_markdown_shows_no_rows_picture_unasked(report):
    text = report.to_markdown()
    assert "[The pictures of these rows](plots/examples.png)" in text
    assert "](plots/examples.png)" not in text.replace("rows](plots", "")


def test_what_a_keyboard_and_a_screen_reader_need_is_there(pages):
    for text in pages.values():
        assert '<html lang="en">' in text and "<main>" in text
        page = Page(text)
        for tag, given in page.tags:
            if tag == "img":
                assert len(given["alt"]) > 8
            if tag == "th":
                assert given["scope"] in ("row", "col")
            if given.get("class") == "scroll":
                assert given["tabindex"] == "0" and len(given["aria-label"]) > 8
        levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1 and all(b <= a + 1 for a, b in pairwise(levels))
        ids = [a["id"] for _, a in page.tags if "id" in a]
        assert len(ids) == len(set(ids))


def luminance(colour: str) -> float:
    """WCAG 2's relative luminance of ``#rgb`` or ``#rrggbb``."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * each for each in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


def test_letters_stand_out_from_every_ground_that_the_pages_have():
    style = html._environment().loader.get_source(html._environment(), "style.css")[0]
    inks = set(re.findall(r"(?<![-\w])color: (#\w+)", style))
    grounds = set(re.findall(r"background: (#\w+)", style))
    assert len(inks) > 4 and len(grounds) > 3
    for ink in inks:
        for ground in grounds:
            light, dark = sorted((luminance(ink), luminance(ground)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


def many(n: int, wrong: float) -> ScoredRows:
    rng = np.random.default_rng(0)
    unsafe = rng.random(n) < 0.5
    right = rng.random(n) >= wrong
    names = np.array([f"r{i}" for i in range(n)])
    return ScoredRows(
        names,
        np.where(np.arange(n) < n - 20, "large", "small"),
        np.array([f"c{i % 7}" for i in range(n)]),
        unsafe,
        np.where(unsafe == right, 0.9, 0.1),
        np.full(n, ""),
        np.full(n, ""),
    )


@pytest.mark.parametrize("wrong", [0.0, 0.01, 0.5, 1.0])
def test_wrong_rows_come_first_and_no_kind_of_row_is_crowded_out(wrong):
    rows = many(4_000, wrong)
    shown = listed(rows, 0.5, lambda benchmark, row_id: (None, row_id), 200)
    right = [each.right for each in shown]
    assert len(shown) == len({each.id for each in shown}) == 200 and right == sorted(right)
    errors = int(((rows.p_unsafe >= 0.5) != rows.unsafe).sum())
    assert right.count(False) == min(errors, 150 if wrong < 1 else 200)
    for kind in set(right):
        counts = {each.benchmark for each in shown if each.right == kind}
        assert wrong == 0.01 or counts == {"large", "small"}
    again = listed(rows, 0.5, lambda benchmark, row_id: (None, row_id), 200)
    assert shown == again


def test_a_page_of_ten_thousand_rows_is_small_and_says_where_the_rest_are():
    noise = np.random.default_rng(0).integers(0, 255, (500, 500, 3), dtype=np.uint8)
    from PIL import Image

    picture = html.images.encode_png(Image.fromarray(noise))
    judged = Judged({"guard": many(10_000, 0.2)})
    lookup = lambda benchmark, row_id: (picture, row_id + "a" * 9_000)  # noqa: E731
    page = Report("t", [], pages=system_pages(judged, lookup, FACTS)).to_pages()
    text = page["systems/guard.html"]
    assert len(text) < 50_000 * LISTED < 10_000 * 9_000  # noise is what compresses least
    assert f"Listed are {LISTED} of the 10,000 rows" in text and "guard.verdicts.jsonl" in text
    assert "(9,00" in text  # a long text says how long it is


def test_rows_without_an_answer_are_wrong_and_a_kind_of_their_own():
    row = Example("a", "b", None, "t", False, float("nan"), 0.5, "c")
    block = Listing((row, replace(row, id="d", p_unsafe=0.1, category="")), "caption")
    assert block.verdicts() == [("wrong", 1), ("right", 1), ("passed", 1), ("no answer", 1)]
    assert block.sets() == [("b", 2, [("c", 1)])]
    text = Report("t", [Section("s", (block,))]).to_html()
    assert "truth safe, no verdict" in text and "nan" not in Page(text).text
    assert "| no answer | safe | – |" in Report("t", [Section("s", (block,))]).to_markdown()


def test_columns_of_words_begin_at_the_left_and_columns_of_numbers_end_at_the_right():
    table = Table(("a_name", "n", "where"), (("x", "1,234", "a_path"), ("y", "–", "")), "c. d")
    text = Report("t", [Section("s", (table,))]).to_html()
    assert '<th scope="col" class="words">where' in text and '<td class="words">a_path' in text
    assert '<th scope="col">n</th>' in text and "<td>1,234" in text and "a_<wbr>name" in text


def test_rows_are_known_by_content_and_label_whatever_their_names_and_order():
    rows = many(30, 0.2)
    contents = {key: f"content {i}" for i, key in enumerate(rows.keys())}
    hashes = rows_hashes(rows, contents)
    assert {name: n for name, (n, _) in hashes.items()} == {"large": 10, "small": 20}
    order = np.random.default_rng(1).permutation(30)
    shuffled = replace(rows.take(order), id=np.array([f"x{i}" for i in order]))
    renamed = {(b, i.replace("r", "x")): content for (b, i), content in contents.items()}
    assert rows_hashes(shuffled, renamed) == {n: hashes[n] for n in rows_hashes(shuffled, renamed)}
    relabelled = rows_hashes(replace(rows, unsafe=~rows.unsafe), contents)
    changed = rows_hashes(rows, contents | {("large", "r3"): "another"})
    assert relabelled["large"] != hashes["large"] != changed["large"]
    assert changed["small"] == hashes["small"]


DRIVER = """
const cards = JSON.parse(process.argv[1]).map((dataset) => ({ dataset, hidden: false }));
const options = (values) => ["", ...values].map((value) => ({ value }));
const by = {};
const verdict = { name: "verdict", value: "", options: options(["wrong", "right", "missed"]) };
const set = { name: "set", value: "", options: options(["a", "a/c", "b"]) };
const shown = { value: "" };
const form = {
  elements: { verdict, set, shown }, hidden: true,
  addEventListener: (name, f) => { by[name] = f; },
};
const listing = { querySelector: () => form, querySelectorAll: () => cards };
const page = { querySelectorAll: () => [listing] };
const address = { hash: "#verdict=wrong&set=nowhere" };
const source = require("fs").readFileSync(0, "utf8");
const log = [];
const seen = () => log.push([cards.flatMap((c, i) => c.hidden ? [] : [i]), shown.value]);
const start = new Function(source + "; return start;")();
const changed = start(page, address, (hash) => { address.hash = hash; });
seen();
verdict.value = ""; set.value = "a/c"; by.change(); seen(); log.push(address.hash);
verdict.value = "right"; by.change(); seen();
address.hash = "#verdict=missed&set=b"; changed(); seen();
address.hash = ""; changed(); seen();
console.log(JSON.stringify({ log, hidden: form.hidden }));
"""


@pytest.mark.skipif(NODE is None, reason="node, which runs the page's script here, is not there")
def test_filters_show_the_rows_that_both_of_them_allow_and_keep_the_choice_in_the_address(pages):
    (script,) = re.findall(r"<script>(.*)</script>", pages["systems/guard.html"], re.DOTALL)
    cards = [
        {"right": "wrong", "outcome": "missed", "benchmark": "a", "category": "a/c"},
        {"right": "right", "outcome": "caught", "benchmark": "a", "category": "a/c"},
        {"right": "wrong", "outcome": "missed", "benchmark": "b", "category": "b/c"},
        {"right": "wrong", "outcome": "no answer", "benchmark": "b", "category": "b/"},
    ]
    command = [str(NODE), "-e", DRIVER, json.dumps(cards)]
    done = subprocess.run(command, input=script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["hidden"] is False
    assert result["log"] == [
        [[0, 2, 3], "3 of 4 listed rows"],
        [[0, 1], "2 of 4 listed rows"],
        "#set=a%2Fc",
        [[1], "1 of 4 listed rows"],
        [[2], "1 of 4 listed rows"],
        [[0, 1, 2, 3], "4 of 4 listed rows"],
    ]


def test_a_page_beside_the_report_cites_the_reports_figures_and_shares_pictures(tmp_path):
    row = Example("a", "b", scored.picture(), "t", True, 0.2, 0.5)
    pages = {n: SubPage(n, [Section("s", (Examples("e", (row,), "c"),))]) for n in "xy"}
    made = Report("t", [], pages=pages)
    assert made.write(tmp_path) == tmp_path / "report.html"
    assert (tmp_path / "systems/x.html").read_text().count("data:image/png") == 1
