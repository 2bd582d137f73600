"""What is flagged: nothing is lost on the way to a person, and their word becomes training rows."""

import base64
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from crossguard_jax import cli
from crossguard_jax.cmai import rulings
from crossguard_jax.cmai.review import Flagged, Queued, ReviewQueue, read_queue
from crossguard_jax.cmai.rulings import Review, Ruling
from crossguard_jax.data.prompts import LLAVA_V1, TRUE_FALSE
from crossguard_jax.data.records import Record, Rejected
from crossguard_jax.data.sources.table import table
from crossguard_jax.io.images import encode_png
from crossguard_jax.io.jsonl import exclusive_writer
from crossguard_jax.report import review as pages

HOSTILE = '</form><script>alert(1)</script><img src=x onerror="alert(2)">"\'&\x1b \u202ea'


def png(colour, size=(8, 6)):
    return encode_png(Image.new("RGB", size, colour))


RED, BLUE = png("red"), png("blue", (300, 200))


def flagged(text, *images, id="", reason="S_c 0.12 is below 0.3", **scores):
    return Flagged(Record(id or f"id of {text[:9]}", images, text), reason, **scores)


ROWS = [
    flagged("can i drink from it?", RED, p_unsafe=0.43, s_c=0.12, model="toy://llava"),
    flagged("which is heavier?", RED, BLUE, s_c=float("nan"), reason="S_c is no number"),
    flagged(HOSTILE, id=HOSTILE, reason="S_c 0.2 is below 0.3"),
]
KEYS = [row.key for row in ROWS]


@pytest.fixture
def queue(tmp_path):
    path = tmp_path / "queue" / "review.jsonl"
    assert ReviewQueue(path).add(ROWS) == 3
    return path


def read(path):
    """A queue's requests, all of them sound."""
    rows = list(read_queue(path))
    assert all(isinstance(row, Queued) for row in rows)
    return rows


def run(*argv):
    return cli.main(["review", *map(str, argv)])


def saved(path, *decisions):
    """A file as a page saves it."""
    path.write_text(json.dumps({"decisions": list(decisions)}))
    return path


def decided(key, decision, **rest):
    return {"key": key, "decision": decision, **rest}


# The queue


def test_a_row_of_the_queue_is_all_there_is_to_see(queue, tmp_path):
    moved = Path(shutil.move(queue.parent, tmp_path / "moved")) / queue.name
    rows = read(moved)
    assert [row.key for row in rows] == KEYS
    assert [row.text for row in rows] == [row.record.text for row in ROWS]
    assert [row.images() for row in rows] == [row.record.images for row in ROWS]
    assert [(row.p_unsafe, row.s_c) for row in rows] == [(0.43, 0.12), (None, None), (None, None)]
    assert rows[0].model == "toy://llava" and rows[0].branch == "flag"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", rows[0].time)
    assert len(list((moved.parent / "review.pictures").iterdir())) == 2


def test_a_request_that_is_flagged_again_is_one_row(queue):
    again = Flagged(Record("another id", (RED,), ROWS[0].record.text, "unsafe"), "another reason")
    other = [flagged(ROWS[0].record.text, BLUE), flagged(ROWS[1].record.text, BLUE, RED)]
    assert ReviewQueue(queue).add([again, again]) == 0
    assert ReviewQueue(queue).add([*other, other[0]]) == 2
    assert [row.key for row in read(queue)] == [*KEYS, *(row.key for row in other)]


def test_queues_that_are_open_at_once_know_each_others_rows(queue):
    one, other = ReviewQueue(queue), ReviewQueue(queue)
    new = flagged("a new one")
    assert (one.add([new]), other.add([new]), one.add([new])) == (1, 0, 0)
    queue.rename(queue.with_name("old.jsonl"))
    assert (one.add([new]), other.add([new])) == (1, 0)
    assert [row.text for row in read(queue)] == ["a new one"]


def test_two_writers_lose_nothing_and_tear_nothing(queue):
    new = [flagged("by the other"), flagged("by both", RED)]
    other = threading.Thread(target=ReviewQueue(queue).add, args=(new,))
    with exclusive_writer(queue):
        other.start()
        with queue.open("ab") as half:
            half.write(b'{"key": ')  # what the other would take for torn, and cut off
        other.join(timeout=0.3)
        assert other.is_alive(), "it did not wait"
        with queue.open("ab") as half:
            half.write(b'"whole"}\n')
    other.join()
    lines = [json.loads(line) for line in queue.read_text().splitlines()]
    assert [line["key"] for line in lines] == [*KEYS, "whole", *(row.key for row in new)]
    assert ReviewQueue(queue).add(new) == 0


def test_a_kill_after_add_loses_nothing_and_a_torn_row_is_cut_off(queue):
    code = (
        "import os, signal, sys\n"
        "from crossguard_jax.cmai.review import Flagged, ReviewQueue\n"
        "from crossguard_jax.data.records import Record\n"
        "ReviewQueue(sys.argv[1]).add([Flagged(Record('k', (b'picture',), 'killed'), 'why')])\n"
        "open(sys.argv[1], 'ab').write(b'{\"key\": \"tor')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(queue)])
    assert done.returncode == -signal.SIGKILL
    ReviewQueue(queue).add([flagged("after")])
    assert [row.text for row in read(queue)][3:] == ["killed", "after"]


def test_add_waits_for_the_disk_once_a_batch(queue, monkeypatch):
    synced = []
    monkeypatch.setattr("os.fsync", synced.append)
    ReviewQueue(queue).add([flagged("one"), flagged("two")])
    assert len(synced) == 1


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"can i drink', '"can he drink', "its content is not what its key was made of"),
        ('"p_unsafe": 0.43', '"p_unsafe": "0.43"', "a score is no number"),
        ('"key"', '"kee"', "KeyError"),
        ('{"key"', '{key"', "not JSON"),
    ],
)
def test_a_damaged_row_costs_itself_only(queue, old, new, reason, capsys):
    lines = queue.read_text()
    assert lines.count(old) >= 1
    queue.write_text(lines.replace(old, new, 1))
    damaged, *rows = read_queue(queue)
    assert isinstance(damaged, Rejected) and damaged.row == 1 and reason in damaged.reason
    assert [row.key for row in rows] == KEYS[1:]
    assert run(queue) == 1
    assert "review.jsonl, row 1: " in capsys.readouterr().err


# The verb's list


def test_the_list_counts_what_is_open_by_reason(queue, tmp_path, capsys):
    ReviewQueue(queue).add([flagged("more", reason="S_c 0.31 is below 0.4")])
    file = saved(tmp_path / "d.json", decided(KEYS[2], "safe"), decided(KEYS[1], "skip"))
    assert run(queue, "--decisions", file) == 0
    summary, *lines = capsys.readouterr().out.splitlines()[1:]
    assert summary.endswith(": 4 requests: 3 open (1 skipped), 1 safe, 0 unsafe")
    heading, *rows = [re.split(r"\s{2,}", line.strip()) for line in lines]
    assert heading == ["open", "oldest", "reason"]
    oldest = read(queue)[0].time
    assert rows[0] == ["2", oldest, "S_c N is below N"] and rows[1][2] == "S_c is no number"


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["none.jsonl"], 1, "none.jsonl: cannot be read"),
        ([], 2, "the following arguments are required: QUEUE"),
        (["QUEUE", "--limit", "0"], 2, "--limit 0: give 1 or more"),
        (["QUEUE", "--page", "QUEUE"], 2, "give a name.html"),
        (["QUEUE", "--export", "QUEUE"], 1, "is the queue's own"),
        (["QUEUE", "--export", "rows.csv"], 1, "training rows are JSON lines"),
        (["QUEUE", "--export", "rows.jsonl"], 1, "no request is decided; write a page with --page"),
        (["QUEUE", "--decisions", "none.json"], 1, "none.json: cannot be read"),
        (["QUEUE", "--decisions", "QUEUE"], 1, "not JSON"),
        (["QUEUE", "--prompt", "lava"], 1, "did you mean 'llava_v1'"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(queue, argv, code, message, capsys, monkeypatch):
    monkeypatch.chdir(queue.parent)
    before = queue.read_bytes()
    assert run(*(queue.name if word == "QUEUE" else word for word in argv)) == code
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert queue.read_bytes() == before


# Decisions in


def test_a_later_decision_replaces_an_earlier_one_and_both_stay(queue, tmp_path):
    first = saved(
        tmp_path / "first.json",
        decided(KEYS[0], "safe", who="ann", note="a cup", when="2025-01-01T10:00:00Z"),
        decided(KEYS[1], "unsafe", when="2025-01-01T12:00:00+01:00"),
    )
    second = saved(
        tmp_path / "second.json",
        decided(KEYS[0], "unsafe", who="ben", when="2025-01-01T10:00:00.500Z"),
        decided(KEYS[1], "safe", when="2025-01-01T10:59:59Z"),
    )
    taken = Review.read(queue).take(first)
    assert (taken.new, taken.replaced, taken.repeated) == (2, 0, 0)
    taken = Review.read(queue).take(second)
    assert (taken.new, taken.replaced, taken.repeated) == (2, 1, 0)
    review = Review.read(queue)
    assert review.decision(KEYS[0]) == "unsafe" and review.decision(KEYS[1]) == "unsafe"
    assert [row.key for row in review.open] == [KEYS[2]]
    # The same file again changes nothing, though its decisions are no longer the latest.
    assert Review.read(queue).take(first).repeated == 2
    log = [json.loads(line) for line in review.log.read_text().splitlines()]
    assert [row["decision"] for row in log] == ["safe", "unsafe", "unsafe", "safe"]
    assert log[0]["who"] == "ann" and log[0]["note"] == "a cup" and log[0]["taken"]


def test_a_clock_that_is_ahead_does_not_decide_for_good(queue, tmp_path):
    ahead = saved(tmp_path / "a.json", decided(KEYS[0], "safe", when="2999-01-01T00:00:00Z"))
    plain = saved(tmp_path / "b.json", decided(KEYS[0], "unsafe"))
    Review.read(queue).take(ahead)
    Review.read(queue).take(plain)
    assert Review.read(queue).decision(KEYS[0]) == "unsafe"
    assert Review.read(queue).take(plain).repeated == 1


def test_a_skip_takes_a_decision_back(queue, tmp_path):
    for decision in ("safe", "skip"):
        Review.read(queue).take(saved(tmp_path / "d.json", decided(KEYS[0], decision)))
    review = Review.read(queue)
    assert review.decided == [] and [row.key for row in review.open] == [*KEYS[1:], KEYS[0]]


def test_a_bad_decision_is_named_and_the_rest_goes_on(queue, tmp_path, capsys):
    bad = [
        decided("0" * 64, "safe"),
        decided(KEYS[0], "perhaps"),
        decided(KEYS[0], "safe", note=3),
        decided(KEYS[0], "safe", when="yesterday"),
        {"decision": "safe"},
        "safe",
    ]
    file = tmp_path / "d.json"
    file.write_text(json.dumps([*bad, decided(KEYS[1], "unsafe")]))  # a bare list will do
    assert run(queue, "--decisions", file) == 1
    out, err = capsys.readouterr()
    assert "1 decisions taken in" in out and "6 refused" in out
    named = [
        "of no request",
        "'perhaps' is none of",
        "note 3 is no text",
        "'yesterday'",
        "no key",
    ]
    for number, words in enumerate([*named, "not an object"], start=1):
        assert re.search(rf"d\.json, row {number}: .*{words}", err), err
    assert Review.read(queue).rulings.keys() == {KEYS[1]}


def test_a_damaged_log_costs_its_damaged_rows_only(queue, tmp_path):
    Review.read(queue).take(saved(tmp_path / "d.json", decided(KEYS[0], "safe")))
    log = Review.read(queue).log
    log.write_text('{"key": "a"}\n' + log.read_text() + "not a row\n" + '{"key": "tor')
    review = Review.read(queue)
    assert review.decision(KEYS[0]) == "safe"
    assert [row.row for row in review.damaged] == [1, 3, 4]


# Training rows out


def test_decided_rows_are_read_back_as_training_rows(queue, tmp_path):
    file = saved(
        tmp_path / "d.json",
        *(decided(key, word) for key, word in zip(KEYS, ("unsafe", "safe", "skip"), strict=True)),
    )
    out = tmp_path / "rows" / "reviewed.jsonl"
    assert run(queue, "--decisions", file, "--export", out) == 0
    shutil.rmtree(queue.parent)
    rows = list(table(out))
    assert [row.id for row in rows] == [f"review-{key[:16]}" for key in KEYS[:2]]
    assert [row.images for row in rows] == [row.record.images for row in ROWS[:2]]
    assert [row.text for row in rows] == [row.record.text for row in ROWS[:2]]
    assert [row.label for row in rows] == [LLAVA_V1.positive, LLAVA_V1.negative]
    assert {row.source for row in rows} == {"review"}
    first = json.loads(out.read_text().splitlines()[0])
    assert first["provenance"] == {"file": "review.jsonl", "row": "1", "id": ROWS[0].record.id}
    assert str(tmp_path) not in out.read_text()


def test_labels_are_the_prompts_words(queue, tmp_path):
    file = saved(tmp_path / "d.json", decided(KEYS[0], "unsafe"), decided(KEYS[1], "safe"))
    out = tmp_path / "rows.jsonl"
    assert run(queue, "--decisions", file, "--export", out, "--prompt", "true_false") == 0
    assert [row.label for row in table(out)] == [TRUE_FALSE.positive, TRUE_FALSE.negative]


def test_a_row_that_no_reader_would_take_is_left_out_by_name(queue, tmp_path, capsys):
    broken = [
        flagged("half \ud800"),
        flagged(" "),
        flagged("no picture", b"GIF89a"),
        flagged("gone", png("lime")),
        flagged("swapped", png("pink")),
    ]
    ReviewQueue(queue).add(broken)
    gone, swapped = read(queue)[-2:]
    gone.pictures[0].unlink()
    swapped.pictures[0].write_bytes(RED)
    keys = [row.key for row in (*ROWS[:1], *broken)]
    file = saved(tmp_path / "d.json", *(decided(key, "safe") for key in keys))
    out = tmp_path / "rows.jsonl"
    assert run(queue, "--decisions", file, "--export", out) == 1
    err = capsys.readouterr().err
    reasons = ["half a surrogate", "is empty", "header", "does not exist", "not the picture"]
    for row, reason in enumerate(reasons, start=4):
        assert re.search(rf"review\.jsonl, row {row}: .*{reason}", err), err
    assert [row.text for row in table(out)] == [ROWS[0].record.text]
    assert run(queue, "--page", tmp_path / "page.html") == 0


# The page


class Page(HTMLParser):
    """A page's forms (their key, texts, pictures, choices), and all that a browser would load."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.tags, self.policy, self.script, self._open = [], [], "", "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append((tag, given))
        self._open.append((tag, given))
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]
        if given.get("class") == "row":
            self.rows.append({"key": given["data-key"], "text": "", "pictures": [], "choices": []})
        elif self.rows and tag == "img":
            self.rows[-1]["pictures"].append(given["src"])
        elif self.rows and given.get("type") == "radio":
            self.rows[-1]["choices"].append(given["value"])

    def handle_data(self, data):
        tag, given = self._open[-1] if self._open else ("", {})
        if tag == "script":
            self.script += data
        elif tag == "p" and given.get("class") == "text" and self.rows:
            self.rows[-1]["text"] += data

    def handle_endtag(self, tag):
        while self._open and self._open.pop()[0] != tag:
            pass


@pytest.fixture
def page(queue, tmp_path):
    assert run(queue, "--page", tmp_path / "page.html") == 0
    return Page((tmp_path / "page.html").read_text())


def test_the_page_shows_each_open_request_as_text_and_pixels(page, queue):
    assert [row["key"] for row in page.rows] == KEYS
    assert page.rows[0]["text"] == ROWS[0].record.text
    assert page.rows[2]["text"] == HOSTILE.replace("\x1b", "\ufffd")
    assert [len(row["pictures"]) for row in page.rows] == [1, 2, 0]
    assert all(row["choices"] == list(rulings.CHOICES) for row in page.rows)
    small, large = (base64.b64decode(uri.partition(",")[2]) for uri in page.rows[1]["pictures"])
    assert small.startswith(b"\x89PNG") and large.startswith(b"\xff\xd8")


def test_the_page_asks_nothing_of_the_network_and_runs_its_own_script_only(page):
    for tag, given in page.tags:
        assert tag not in ("link", "iframe", "object", "a") and "href" not in given
        assert given.get("src", "data:image/").startswith("data:image/")
        assert not [name for name in given if name.startswith("on")]
    assert [tag for tag, _ in page.tags].count("script") == 1
    digest = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page.policy
    assert "default-src 'none'" in page.policy


def test_a_page_has_the_oldest_requests_up_to_its_limit(queue, tmp_path):
    assert run(queue, "--page", tmp_path / "p.html", "--limit", "2") == 0
    text = (tmp_path / "p.html").read_text()
    assert [row["key"] for row in Page(text).rows] == KEYS[:2]
    assert "3 requests to decide on, from review.jsonl: the first 2" in text


def test_a_page_of_large_pictures_stays_small():
    noise = Image.frombytes("RGB", (2000, 1500), os.urandom(2000 * 1500 * 3))
    card = pages.ReviewCard("key", "title", "text", (encode_png(noise),))
    assert len(pages.render("t", [card])) < 1_000_000  # of 9 million bytes of noise


NODE = shutil.which("node")
DRIVER = """
const fs = require("fs");
const vm = require("vm");
const context = vm.createContext({});
vm.runInContext(fs.readFileSync(0, "utf8"), context);
const listeners = () => {
  const by = {};
  return { by, addEventListener: (name, f) => { (by[name] ??= []).push(f); } };
};
const named = (names) => Object.fromEntries(names.map((n) => [n, { value: "", ...listeners() }]));
const row = (key) => ({
  dataset: { key }, elements: { decision: { value: "" }, note: { value: "", focus() {} } },
  classList: { add() {}, remove() {} }, focus() {}, scrollIntoView() {}, hidden: false,
  ...listeners(),
});
const rows = JSON.parse(process.argv[1]).map(row);
const bar = { elements: named(["previous", "next", "where", "progress", "who", "save"]) };
const choices = '{"s": "safe", "u": "unsafe", "x": "skip"}';
const page = {
  body: { dataset: { page: "a", choices } }, querySelectorAll: () => rows, querySelector: () => bar,
  ...listeners(),
};
const memory = {};
const kept = { getItem: (k) => memory[k] ?? null, setItem: (k, v) => { memory[k] = v; } };
const files = [];
let leaving;
const load = () => {
  for (const each of [page, ...rows, ...Object.values(bar.elements)])
    for (const name in each.by) delete each.by[name];
  rows.forEach((r) => { r.elements.decision.value = r.elements.note.value = ""; });
  ({ leaving } = context.start(page, kept, (name, text) => files.push([name, text])));
};
const press = (key, more = {}) => {
  const event = { key, target: {}, preventDefault() {}, ...more };
  page.by.keydown.forEach((f) => f(event));
};
const warns = () => { let w = false; leaving({ preventDefault() { w = true; } }); return w; };
const click = (name) => bar.elements[name].by.click.forEach((f) => f());
const shown = () => rows.flatMap((r, i) => (r.hidden ? [] : [i]));
"""


@pytest.mark.skipif(NODE is None, reason="node, which runs the page's script here, is not there")
def test_what_the_pages_script_saves_is_what_the_verb_takes_in(tmp_path):
    many = [flagged(f"request {i}") for i in range(45)]
    path = tmp_path / "review.jsonl"
    ReviewQueue(path).add(many)
    keys = [row.key for row in many]
    script = Page(Review.read(path).page(100)).script
    actions = """
    load();
    const log = { first: shown(), warnsAtFirst: warns() };
    press("s"); press("U"); press("u", { ctrlKey: true }); press("s", { repeat: true });
    press("x"); press("p"); press("s"); press("n");   // the third: skip, then safe
    press("s", { target: { name: "note", blur() {} } });
    rows[10].elements.note.value = "odd"; rows[10].by.change.forEach((f) => f());
    click("next"); log.second = shown(); press("u");
    click("next"); log.third = shown(); click("next"); log.last = shown();
    bar.elements.who.value = "ann";
    load();                                            // again, before anything is saved
    log.warns = warns(); click("save"); log.warnsAfterwards = warns();
    load();
    log.kept = rows.map((r) => r.elements.decision.value).filter(Boolean);
    console.log(JSON.stringify({ log, files }));
    """
    command = [str(NODE), "-e", DRIVER + actions, json.dumps(keys)]
    done = subprocess.run(command, input=script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    log, ((name, text),) = result["log"], result["files"]
    assert log["first"] == [*range(20)] and log["second"] == [*range(20, 40)]
    assert log["third"] == log["last"] == [*range(40, 45)]
    assert (log["warnsAtFirst"], log["warns"], log["warnsAfterwards"]) == (False, True, False)
    assert log["kept"] == ["safe", "unsafe", "safe", "unsafe"]
    assert name == "decisions.json"
    (tmp_path / name).write_text(text)
    taken = Review.read(path).take(tmp_path / name)
    assert (taken.new, taken.refused) == (5, [])
    review = Review.read(path)
    decisions = {keys.index(key): ruling.decision for key, ruling in review.rulings.items()}
    assert decisions == {0: "safe", 1: "unsafe", 2: "safe", 10: "skip", 20: "unsafe"}
    noted = review.rulings[keys[10]]
    assert noted == Ruling(keys[10], "skip", "odd", "ann", noted.when) and noted.when
