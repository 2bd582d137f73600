"""Reports: one object, three files that cannot disagree, readable without any other file."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.metrics import Estimate
from crossguard_jax.evals.guard_report import Judged, guard_sections, overview
from crossguard_jax.report.blocks import Bullets, Code, Definitions, Examples, Plot, Section, Text
from crossguard_jax.report.examples import Example
from crossguard_jax.report.report import Report
from crossguard_jax.report.tables import Metric, Table
from crossguard_jax.report.text import escape_markdown, quoted
from tests.evals import scored

SHARE = Estimate(0.0359, 0.0166, 0.0762, 167)
VOID = {"meta", "img", "br", "link", "input", "hr", "wbr"}


class Page(HTMLParser):
    """Collects tags and visible text, and insists that every tag is closed in order."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("style", "script"):
            self.text += data


@pytest.fixture(scope="module")
def report() -> Report:
    judged = Judged(
        {"guard.full": scored.scores(3.0), "guard.explicit_only": scored.scores(0.2)},
        titles={"guard.full": "Full mixture", "vqa_benign": "Benign VQA"},
    )
    losses = {"guard.full": (np.arange(50), np.linspace(0.7, 0.1, 50))}
    return Report("Quickstart", guard_sections(judged, scored.lookup, losses), {"seed": 3})


@pytest.fixture(scope="module")
def folder(report, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert report.write(folder) == folder / "report.html"
    return folder


def test_json_holds_every_figure_with_value_interval_and_n(report, folder):
    entries = json.loads((folder / "report.json").read_text())
    assert entries.pop("meta") == {"title": "Quickstart", "seed": 3}
    assert set(entries["guard.full.implicit.asr"]) == {"value", "low", "high", "n"}
    assert set(entries) == set(report.figures())
    for system in ("guard.full", "guard.explicit_only"):
        for name in ("implicit_heldout.asr", "vqa_benign.fpr", "all.fpr", "explicit.auroc"):
            assert entries[f"{system}.{name}"]["n"] > 0
    assert "guard.full.minus.guard.explicit_only.all.asr_difference" in entries


def test_every_number_in_a_table_is_in_the_json_the_markdown_and_the_html(report, folder):
    entries = json.loads((folder / "report.json").read_text())
    markdown, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    seen = 0
    tables = [b for section in report.sections for b in section.blocks if isinstance(b, Table)]
    for cell in (cell for table in tables for row in table.rows for cell in row):
        if isinstance(cell, Metric):
            assert entries[cell.name] == cell.estimate.as_dict()
            assert cell.text() in markdown
            assert f'<td title="{cell.name}">{cell.value_text()}' in page
            seen += 1
    assert seen > 50


def test_the_html_is_well_formed_and_asks_for_nothing_outside_itself(folder):
    page = Page((folder / "report.html").read_text())
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        if tag == "img":
            assert attributes["src"].startswith("data:image/png;base64,")
            assert attributes["alt"]
        if tag == "a":
            assert attributes["href"].startswith("#")
    assert not re.search(r"url\(|@import|https?://", (folder / "report.html").read_text())
    anchors = {attributes.get("id") for _, attributes in page.tags}
    assert all(a["href"][1:] in anchors for tag, a in page.tags if tag == "a")


def test_the_pages_explain_their_measures_and_show_plots_and_examples(folder):
    page = Page((folder / "report.html").read_text())
    assert "Share of malicious rows that are marked safe" in page.text
    assert "p(unsafe) = " in page.text and "May I touch the blue one?" in page.text
    pictures = {path.name for path in (folder / "plots").iterdir()}
    for name in ("roc", "asr_bars", "fpr_bars", "scores", "training_loss"):
        assert {f"{name}.png", f"{name}.pdf"} <= pictures
    linked = re.findall(r"\]\((plots/[^)]+)\)", (folder / "report.md").read_text())
    assert len(linked) == 6 and all((folder / path).exists() for path in linked)


@pytest.mark.parametrize("benign", [True, False])
def test_a_report_without_benign_rows_warns_its_reader(benign):
    rows = scored.scores(3.0)
    section = overview(Judged({"guard.full": rows.take(rows.unsafe | benign)}))
    text = Report("r", [section]).to_markdown()
    assert ("There are no benign rows here" in text) != benign


def test_a_long_table_is_folded_in_the_page_with_every_row_in_it():
    rows = tuple((f"row {i}", Metric(f"x.r{i}", SHARE)) for i in range(30))
    section = Section("s", (Table(("name", "%"), rows, "caption", 4),))
    page = Page(Report("r", [section]).to_html())
    seen, folded = page.text.split("26 more rows of 30")
    assert seen.count("row ") == 4 and folded.count("row ") == 26
    tags = [tag for tag, _ in page.tags]
    assert tags.count("details") == 1 and tags.count("table") == tags.count("thead") == 2
    assert tags[: tags.index("details")].count("tr") == 1 + 4


def test_a_text_cites_figures_of_any_section(tmp_path):
    extra = Section(
        "Forge",
        (
            Text("Valid after rewriting: {forge.valid:%}, in {forge.seconds} s, {not a figure}."),
            Bullets(("one", "`two`")),
            Definitions((("valid", "an **attack** that works"),)),
            Code("launch/run.sh forge"),
        ),
        {"forge.valid": SHARE},
    )
    Report("r", [extra, Section("other", (), {"forge.seconds": Estimate.exact(12)})]).write(
        tmp_path
    )
    entries = json.loads((tmp_path / "report.json").read_text())
    assert entries["forge.valid"] == SHARE.as_dict()
    assert entries["forge.seconds"] == {"value": 12, "low": None, "high": None, "n": 1}
    sentence = "Valid after rewriting: 3.6% [1.7, 7.6], in 12 s, {not a figure}."
    assert sentence in (tmp_path / "report.md").read_text()
    assert sentence in Page((tmp_path / "report.html").read_text()).text


def test_a_text_cannot_cite_a_figure_nobody_measured(tmp_path):
    with pytest.raises(ValueError, match="'guard.full.asr', which no section measures"):
        Report("r", [Section("s", (Text("{guard.full.asr:%}"),))]).write(tmp_path)
    assert not list(tmp_path.iterdir())


def test_two_sections_cannot_give_one_name_two_values():
    other = dataclasses.replace(SHARE, n=168)
    same = [Section("a", (), {"x.y": SHARE}), Section("b", (), {"x.y": SHARE})]
    assert Report("r", same).figures() == {"x.y": SHARE}
    with pytest.raises(ValueError, match="'x.y'"):
        Report("r", [*same, Section("c", (), {"x.y": other})]).figures()
    with pytest.raises(ValueError, match="meta"):
        Report("r", [Section("a", (), {"meta": SHARE})]).figures()


def test_two_plots_cannot_share_a_file(tmp_path):
    plot = Plot("roc", scored.picture(), b"%PDF", "caption")
    with pytest.raises(ValueError, match="'roc.png'"):
        Report("r", [Section("a", (plot,)), Section("b", (plot,))]).write(tmp_path)


def test_hostile_text_in_a_row_stays_text(tmp_path):
    text = "<script>alert(1)</script> | **x** \0\x1b \ud800 </p> ![a](http://example.org/x.png)"
    row = Example('<b id="x">', "imp|licit", None, text, True, 0.2, 0.5)
    report = Report(
        "a <title>", [Section("s <i>", (Examples("examples", (row,), "caption"),))], {"note": text}
    )
    report.write(tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    assert not {"script", "i"} & {tag for tag, _ in page.tags}
    assert "<script>alert(1)</script>" in page.text and 'x">' in page.text
    table = [line for line in (tmp_path / "report.md").read_text().splitlines() if "missed" in line]
    assert len(table) == 1 and len(re.findall(r"(?<!\\)\|", table[0])) == 7
    assert "![a]" not in table[0]
    json.loads((tmp_path / "report.json").read_text())


def test_example_pictures_are_shrunk_before_they_go_inline(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (900, 900, 3), dtype=np.uint8)
    from PIL import Image

    Image.fromarray(noise).save(tmp_path / "noise.png")
    row = Example("a", "b", (tmp_path / "noise.png").read_bytes(), "t", True, 0.2, 0.5)
    page = Report("r", [Section("s", (Examples("e", (row,), "c"),))]).to_html()
    assert len(page) < 600_000 < (tmp_path / "noise.png").stat().st_size


def test_a_system_needs_a_dotted_name_and_a_report_needs_a_system():
    with pytest.raises(UserError, match="'Guard Full'"):
        Judged({"Guard Full": scored.scores(1.0)})
    with pytest.raises(UserError, match="at least one system"):
        Judged({})


def test_writing_twice_gives_the_same_files(report, folder, tmp_path):
    report.write(tmp_path)
    for name in ("report.md", "report.html", "report.json", "plots/roc.pdf"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize(
    "foreign",
    ["/tmp/{a.b}", "{guard.share:%}", "**bold** `code` <b>", "[link](http://a) | _x_ \\", "a\nb"],
)
@pytest.mark.parametrize("kind", [Text, lambda text: Bullets((text,)), None])
def test_foreign_words_are_shown_as_they_are_cite_nothing_and_mark_nothing(tmp_path, foreign, kind):
    words = f"It said **so**: {quoted(foreign)} at {{guard.share:%}}"
    block = kind(words) if kind else Definitions((("term", words),))
    section = Section("What", (block,), {"guard.share": SHARE})
    Report("Title", [section], {}).write(tmp_path)
    html, markdown = ((tmp_path / f"report.{end}").read_text() for end in ("html", "md"))
    shown = f"It said so: {' '.join(foreign.split())} at 3.6%"
    assert shown in Page(html).text
    assert "<b>" not in html and html.count("<strong>so</strong>") == 1
    assert escape_markdown(foreign) in markdown and markdown.count("3.6%") == 1
