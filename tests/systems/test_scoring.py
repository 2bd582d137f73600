"""The verb ``score``: every row gets a verdict or a reason, whatever happens on the way."""

import argparse
import csv
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crossguard_jax import Guard, cli
from crossguard_jax.core.errors import UserError
from crossguard_jax.data import sources
from crossguard_jax.data.records import Record, Rejected
from crossguard_jax.runtime import preemption
from crossguard_jax.runtime.exits import AGAIN
from crossguard_jax.systems import scoring
from crossguard_jax.systems.results import Results

NLVR = Path(__file__).parents[1] / "data" / "fixtures" / "nlvr" / "dev" / "dev.json"
LONG = "please tell me what colour is the thing at the top left of this picture . " * 20
TOO_LONG = LONG * 200
ROWS, BAD = 2_000, 50


@pytest.fixture(scope="module")
def guard(llava_folder) -> Guard:
    return Guard.from_pretrained(llava_folder, prompt="short")


@pytest.fixture
def score(llava_folder, capsys) -> Callable[..., tuple[int, str, str]]:
    """``score(*arguments)``: the verb on the random model; exit code, stdout, and stderr behind the
    first line, which says where it runs."""

    def score(*arguments: object) -> tuple[int, str, str]:
        code = cli.main(command(llava_folder, *arguments))
        out, err = capsys.readouterr()
        return code, out, err.removeprefix("1 cpu device, 1 process\n")

    return score


def command(model: Path, *arguments: object) -> list[str]:
    prompt = [] if "--prompt" in arguments else ["--prompt", "short"]
    return ["score", "--model", str(model), *prompt, *map(str, arguments)]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def noise(seed: int, *shape: int, high: int = 256, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def bomb() -> bytes:
    """A small PNG whose header claims 50,000 x 50,000 pixels."""
    data = encoded(Image.new("L", (1, 1)))
    header = b"IHDR" + struct.pack(">II", 50_000, 50_000) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def odd_pictures() -> dict[str, bytes]:
    """Unusual, but nothing wrong with them."""
    rgb = Image.fromarray(noise(0, 40, 30, 3))
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = [Image.fromarray(noise(s, 20, 20)) for s in range(3)]
    return {
        "cmyk.jpg": encoded(rgb.convert("CMYK"), "JPEG"),
        "palette.png": encoded(rgb.quantize(16)),
        "deep.png": encoded(Image.fromarray(noise(1, 30, 30, high=65_536, dtype=np.uint16))),
        "alpha.png": encoded(Image.fromarray(noise(2, 30, 30, 4))),
        "dot.png": encoded(rgb.crop((0, 0, 1, 1))),
        "tall.png": encoded(Image.fromarray(noise(3, 4_000, 10, 3))),
        "turned.jpg": encoded(rgb, "JPEG", exif=turned),
        "moving.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
    }


def bad_rows() -> list[tuple[bytes, str]]:
    """Lines that get no verdict, and a word of the reason."""

    def line(**row: object) -> bytes:
        return json.dumps(row).encode()

    fine = {"image": "plain.png", "text": "can i touch it ?"}
    return [
        (line(image="cut.jpg", text="is it red ?"), "damaged or cut short"),
        (line(image="text.png", text="is it red ?"), "it holds text"),
        (line(image="bomb.png", text="is it red ?"), "larger than"),
        (line(image="nowhere.png", text="is it red ?"), "nowhere.png: .* does not exist"),
        (line(image="plain.png"), "no field 'text'"),
        (line(text="can i touch it ?"), "no field 'image'"),
        (line(image=None, text="  "), "empty"),
        (line(**fine | {"text": "can i\0 touch it ?"}), "NUL"),
        (line(**fine).replace(b"touch", b"to\0ch"), "NUL"),
        (line(**fine | {"text": TOO_LONG}), "windows, at most 512 are read"),
        (b'{"image": "plain.png", "text": "can i', "not JSON"),
    ]


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """2,000 rows, 50 of them bad; every good row is called by its row number."""
    folder = tmp_path_factory.mktemp("rows")
    photo = encoded(Image.fromarray(noise(4, 60, 60, 3)), "JPEG")
    files = odd_pictures() | {
        "plain.png": encoded(Image.fromarray(noise(5, 26, 30, 3))),
        "cut.jpg": photo[: len(photo) // 2],
        "text.png": b"this is a text, not a picture",
        "bomb.png": bomb(),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    pictures = [*odd_pictures(), "plain.png", "plain.png", "plain.png", None]
    bad = set(np.random.default_rng(0).choice(ROWS, BAD, replace=False).tolist())
    lines, kinds = [], bad_rows()
    for i in range(ROWS):
        if i in bad:
            lines.append(kinds[len(bad) % len(kinds)][0])
            bad.remove(i)
            continue
        text = f"can i touch the red one ? {'please ' * (i % 4)}"
        label = ("safe", "unsafe", "")[i % 3]
        row = {"id": i + 1, "image": pictures[i % len(pictures)], "text": text, "label": label}
        lines.append(json.dumps(row).encode())
    (folder / "rows.jsonl").write_bytes(b"\n".join(lines))
    return folder / "rows.jsonl"


@pytest.fixture(scope="module")
def scored(llava_folder, table, tmp_path_factory) -> tuple[int, str, Path]:
    """Exit code, summary and output of one run over the table."""
    out = tmp_path_factory.mktemp("out") / "verdicts.jsonl"
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", said)
        code = cli.main(command(llava_folder, "--input", table, "--output", out))
    return code, said.getvalue(), out


def test_2000_rows_of_which_50_are_bad_give_1950_verdicts(scored, table):
    code, summary, out = scored
    verdicts, rejected = read(out), read(out.with_name("rejected.jsonl"))
    assert (code, len(verdicts), len(rejected)) == (1, ROWS - BAD, BAD)
    keys = {
        "id",
        "p_unsafe",
        "unsafe",
        "label",
        "threshold",
        "rejected",
        "s_c",
        "branch",
        "windows",
        "row",
    }
    assert all(keys <= v.keys() and v["id"] == str(v["row"]) for v in verdicts)
    for rows in (verdicts, rejected):
        assert [r["row"] for r in rows] == sorted(r["row"] for r in rows)
    assert {r["row"] for r in verdicts} ^ {r["row"] for r in rejected} == set(range(1, ROWS + 1))
    assert all({"file", "row", "reason"} <= r.keys() for r in rejected)
    assert {r["file"] for r in rejected} == {str(table)}
    assert "2,000 rows: 1,950 verdicts" in summary and "50 rejected" in summary
    assert "exit code 1" in summary


def test_every_rejected_row_says_why(scored, table):
    lines = table.read_bytes().split(b"\n")
    reasons = dict(bad_rows())
    seen = set()
    for row in read(scored[2].with_name("rejected.jsonl")):
        line = lines[row["row"] - 1]
        assert re.search(reasons[line], row["reason"]), row
        assert "\n" not in row["reason"] and len(row["reason"]) < 400
        seen.add(line)
    assert seen == set(reasons)


def test_the_summary_has_figures_where_rows_have_labels(scored):
    _, summary, out = scored
    verdicts = [v for v in read(out) if v.get("true_label")]
    assert 0 < len(verdicts) < ROWS - BAD
    right = sum(v["label"] == v["true_label"] for v in verdicts)
    assert f"accuracy: {right / len(verdicts):.1%} [" in summary
    assert f"n = {len(verdicts):,}" in summary
    passed = [v["label"] == "safe" for v in verdicts if v["true_label"] == "unsafe"]
    assert f"ASR (unsafe rows passed as safe): {sum(passed) / len(passed):.1%} [" in summary


def test_a_verdict_in_a_file_is_the_verdict_alone(scored, table, guard):
    lines = table.read_bytes().split(b"\n")
    for verdict in read(scored[2])[:: ROWS // 20]:
        row = json.loads(lines[verdict["row"] - 1])
        picture = row["image"] and table.with_name(row["image"])
        (alone,) = guard.score([picture], [row["text"]])
        assert abs(alone.p_unsafe - verdict["p_unsafe"]) <= 1e-5


def test_a_killed_run_goes_on_where_it_was(scored, table, llava_folder, tmp_path, score):
    out = tmp_path / "verdicts.jsonl"
    arguments = command(llava_folder, "--input", table, "--output", out, "--batch-size", 8)
    child = subprocess.Popen(
        [sys.executable, "-m", "crossguard_jax", *arguments],
        env=os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])},
        stdout=subprocess.DEVNULL,
    )
    while not out.exists() or out.read_bytes().count(b"\n") < 100:
        assert child.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    before = read(out)
    assert 100 <= len(before) < ROWS - BAD
    code, summary, _ = score("--input", table, "--output", out)
    assert code == 1 and "had been made before" in summary
    assert read(out)[: len(before)] == before
    same_results(out, scored[2])


def test_told_to_stop_it_ends_after_a_window_and_goes_on_there(tmp_path, score, monkeypatch):
    table, windows = small_table(tmp_path, n=12), []
    arguments = ("--input", table, "--batch-size", 1, "--output")
    listener = preemption.Listener()
    monkeypatch.setattr(preemption, "_current", listener)
    inner = scoring.score_window

    def window(*state: object) -> object:
        windows.append(1)
        listener.notice("told to stop by a test")
        return inner(*state)

    monkeypatch.setattr(scoring, "score_window", window)
    code, _, err = score(*arguments, tmp_path / "parts.jsonl")
    assert code == AGAIN and err.endswith("crossguard: told to stop by a test; start it again\n")
    assert 0 < len(read(tmp_path / "parts.jsonl")) < 12 and len(windows) == 1
    monkeypatch.undo()
    assert score(*arguments, tmp_path / "parts.jsonl")[0] == 0
    assert score(*arguments, tmp_path / "whole.jsonl")[0] == 0
    same_results(tmp_path / "parts.jsonl", tmp_path / "whole.jsonl")


def same_results(out: Path, expected: Path) -> None:
    """The same rows, scored alike (batches may differ, and with them the last digits)."""
    rejected = out.with_name("rejected.jsonl")
    assert rejected.read_bytes() == expected.with_name("rejected.jsonl").read_bytes()
    ours, theirs = read(out), read(expected)
    assert [r["id"] for r in ours] == [r["id"] for r in theirs]
    scores = [[r["p_unsafe"] for r in rows] for rows in (ours, theirs)]
    np.testing.assert_allclose(*scores, atol=1e-5)


@pytest.mark.parametrize("lost", ["verdicts.jsonl", "rejected.jsonl"])
def test_after_a_power_failure_the_rows_behind_the_gap_are_scored_again(
    scored, table, tmp_path, score, lost
):
    for file in scored[2].parent.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    data = (tmp_path / lost).read_bytes()
    (tmp_path / lost).write_bytes(data[: len(data) * 9 // 10 - 3])
    code, summary, _ = score("--input", table, "--output", tmp_path / "verdicts.jsonl")
    assert code == 1 and "had been made before" in summary
    same_results(tmp_path / "verdicts.jsonl", scored[2])


def small_table(folder: Path, n: int = 5, **first: object) -> Path:
    rows = [{"image": None, "text": "can i touch it ?" + " please" * i} for i in range(n)]
    rows[0] |= first
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "in.jsonl"


def test_a_finished_run_started_again_adds_nothing(tmp_path, score):
    arguments = ("--input", small_table(tmp_path), "--output", tmp_path / "o.jsonl")
    assert score(*arguments)[0] == 0
    before = (tmp_path / "o.jsonl").read_bytes()
    code, summary, _ = score(*arguments)
    assert (code, (tmp_path / "o.jsonl").read_bytes()) == (0, before)
    assert "5 of the verdicts had been made before" in summary


def changing_table(folder: Path) -> Path:
    """Rows of which the third has a picture, and the fifth should have one."""
    (folder / "there.png").write_bytes(encoded(Image.new("RGB", (8, 8), "red")))
    pictures = [None, None, "there.png", None, "missing.png", None]
    with (folder / "in.jsonl").open("w") as file:
        for i, picture in enumerate(pictures):
            file.write(json.dumps({"id": i, "image": picture, "text": "is it hot ?"}) + "\n")
    return folder / "in.jsonl"


def mend(folder: Path, what: str) -> None:
    """Changes an input of `changing_table`."""
    if what == "nothing":
        return
    if what == "text":
        table = folder / "in.jsonl"
        table.write_text(table.read_text().replace("is it hot ?", "is it red ?", 1))
    else:
        (folder / what).write_bytes(encoded(Image.new("RGB", (8, 8), "blue")))


@pytest.mark.parametrize(
    ("what", "scored_again"),
    [("nothing", 0), ("missing.png", 1), ("there.png", 1), ("text", 1)],
)
def test_what_was_mended_or_changed_is_scored_again_and_nothing_else(
    score, tmp_path, monkeypatch, what, scored_again
):
    table, out, store = changing_table(tmp_path), tmp_path / "o" / "v.jsonl", tmp_path / "kept"
    arguments = ("--input", table, "--store", store)
    assert score(*arguments, "--output", out)[0] == 1
    before = {row["id"]: row for row in read(out)}
    mend(tmp_path, what)
    rows_scored = []
    whole = Guard.score_each
    monkeypatch.setattr(
        Guard, "score_each", lambda *a, **k: rows_scored.extend(a[2]) or whole(*a, **k)
    )
    code, _, _ = score(*arguments, "--output", out)
    assert len(rows_scored) == scored_again
    monkeypatch.undo()
    fresh = tmp_path / "fresh" / "v.jsonl"
    options = ("--input", table, "--output", fresh)
    assert code == score(*options)[0] == (what != "missing.png")
    assert [row["row"] for row in read(out)] == [row["row"] for row in read(fresh)]
    for row, expected in zip(read(out), read(fresh), strict=True):
        assert row["digest"] == expected["digest"]
        assert abs(row["p_unsafe"] - expected["p_unsafe"]) <= 1e-6
    kept = [row for row in read(out) if row == before.get(row["id"])]
    assert len(kept) == 5 - (what in ("there.png", "text"))
    files = {"v.jsonl", "v.jsonl.run.json", "rejected.jsonl"}
    assert {p.name for p in out.parent.iterdir()} == files


def test_another_run_does_not_mix_with_an_output(tmp_path, score, llava_folder):
    out = tmp_path / "o.jsonl"
    arguments = ("--input", small_table(tmp_path), "--output", out)
    score(*arguments, "--threshold", 0.3)
    before = out.read_bytes()
    code, _, err = score(*arguments, "--threshold", 0.7)
    assert code == 1 and err.count("\n") == 1 and "threshold: 0.3, now 0.7" in err
    code, _, err = score(*arguments, "--threshold", 0.3, "--prompt", "true_false")
    assert code == 1 and "prompt: short" in err
    file = llava_folder / "preprocessor_config.json"
    settings = file.read_text()
    try:
        file.write_text(json.dumps(json.loads(settings) | {"image_mean": [0, 0, 0]}))
        code, _, err = score(*arguments, "--threshold", 0.3)
    finally:
        file.write_text(settings)
    assert code == 1 and "encoding: " in err
    assert out.read_bytes() == before
    code, _, _ = score(*arguments, "--threshold", 0.7, "--restart")
    assert code == 0 and [row["threshold"] for row in read(out)] == [0.7] * 5


def test_a_file_that_is_no_output_is_left_alone(tmp_path, score):
    precious = tmp_path / "mine.jsonl"
    precious.write_text("{}\n")
    arguments = ("--input", small_table(tmp_path), "--output", precious)
    for more in ([], ["--restart"]):
        code, _, err = score(*arguments, *more)
        assert code == 1 and "not an output that can go on" in err
        assert precious.read_text() == "{}\n"


def test_two_processes_do_not_write_one_output(tmp_path):
    with Results(tmp_path / "o.jsonl", {}):
        with pytest.raises(UserError, match="another process"):
            Results(tmp_path / "o.jsonl", {})
    Results(tmp_path / "o.jsonl", {}).close()


def test_outputs_in_one_folder_keep_their_rejected_rows_apart(tmp_path, score):
    rows = small_table(tmp_path, text="")
    for name in ("a", "b"):
        assert score("--input", rows, "--output", tmp_path / f"{name}.jsonl")[0] == 1
    for name in ("rejected.jsonl", "b.rejected.jsonl"):
        assert [row["row"] for row in read(tmp_path / name)] == [1]
    assert score("--input", rows, "--output", tmp_path / "b.jsonl")[0] == 1
    assert [row["row"] for row in read(tmp_path / "b.rejected.jsonl")] == [1]


def test_one_request_prints_its_verdict(score, guard, table):
    code, out, err = score("--text", "can i touch it ?", "--image", table.with_name("plain.png"))
    (expected,) = guard.score([table.with_name("plain.png")], ["can i touch it ?"])
    assert code == 0 and abs(json.loads(out)["p_unsafe"] - expected.p_unsafe) <= 1e-5
    without = json.loads(score("--text", "can i touch it ?")[1])
    assert without["p_unsafe"] != json.loads(out)["p_unsafe"]
    assert json.loads(score("--text", "can i ?", "--threshold", 0)[1])["unsafe"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--text", "a", "--image", "nowhere.png"], "nowhere.png: the picture does not exist"),
        (["--text", "a", "--image", __file__], "it holds text"),
        (["--text", "  "], "empty"),
        (["--text", "\udcff"], "surrogate"),
        (["--text", TOO_LONG], "at most 512 are read"),
        (["--text", "a", "--prompt", "shrt"], "did you mean 'short'"),
        (["--input", "nowhere.jsonl", "--output", "o"], "nowhere.jsonl: cannot be read"),
        (["--input", __file__, "--output", "o"], "unknown kind of file"),
        (["--input", ".", "--format", "nlvr", "--output", "o"], "say which split"),
    ],
)
def test_an_error_is_one_line(score, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = score(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith("crossguard: ") and err.count("\n") == 1 and words in err


def test_an_input_without_rows_is_an_error(score, tmp_path):
    (tmp_path / "in.jsonl").write_text("\n")
    code, _, err = score("--input", tmp_path / "in.jsonl", "--output", tmp_path / "o.jsonl")
    assert code == 1 and "no rows in it" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --text"),
        (["--text", "a", "--input", "b.jsonl"], "give --text"),
        (["--text", "a", "--output", "b"], "--output goes with --input"),
        (["--text", "a", "--text-column", "b"], "--text-column goes with --input"),
        (["--input", "a.jsonl"], "need --output"),
        (["--input", "a.jsonl", "--output", "./a.jsonl"], "--output is the input itself"),
        (["--input", "a", "--output", "b", "--image", "c"], "--image is for one request"),
        (["--input", "a", "--output", "b", "--split", "dev"], "--split is not for tables"),
        (
            ["--input", "a", "--output", "b", "--format", "nlvr", "--images", "c"],
            "--images is for tables",
        ),
        (["--input", "a", "--output", "b", "--text-only", "--images", "c"], "--text-only"),
        (["--text", "a", "--threshold", "2"], "--threshold 2.0"),
        (["--text", "a", "--threshold", "nan"], "--threshold nan"),
    ],
)
def test_arguments_that_do_not_go_together_are_a_usage_error(score, arguments, words):
    code, _, err = score(*arguments)
    assert code == 2 and words in err and err.count("\n") == 1


def test_nlvr_is_scored_from_its_own_json(score, tmp_path, llava_folder):
    out = tmp_path / "nlvr.jsonl"
    arguments = ("--format", "nlvr", "--input", NLVR, "--output", out)
    code, summary, _ = score(*arguments, "--prompt", "true_false")
    rows = [json.loads(line) for line in NLVR.read_text().splitlines()]
    verdicts = read(out)
    assert (code, len(verdicts)) == (0, len(rows))
    assert [v["id"] for v in verdicts] == [f"nlvr-dev-{row['identifier']}" for row in rows]
    assert [v["true_label"] for v in verdicts] == [row["label"] for row in rows]
    assert {v["label"] for v in verdicts} <= {"true", "false"}
    right = sum(v["label"] == v["true_label"] for v in verdicts)
    assert f"accuracy: {right / 24:.1%} [" in summary and "n = 24" in summary
    judge = Guard.from_pretrained(llava_folder, prompt="true_false")
    picture = NLVR.parent / "images" / rows[0]["directory"] / f"dev-{rows[0]['identifier']}-0.png"
    (alone,) = judge.score([picture], [rows[0]["sentence"]])
    assert abs(alone.p_unsafe - verdicts[0]["p_unsafe"]) <= 1e-5


def test_labels_of_other_words_are_told_and_not_counted(score, tmp_path):
    arguments = ("--format", "nlvr", "--input", NLVR, "--output", tmp_path / "o.jsonl")
    code, summary, _ = score(*arguments)
    assert code == 0 and "accuracy" not in summary
    assert "24 rows have a true label that is neither 'safe' nor 'unsafe'" in summary


def test_a_csv_with_columns_and_a_picture_folder_of_its_own(score, tmp_path, guard):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(encoded(Image.fromarray(noise(1, 30, 30, 3))))
    with (tmp_path / "in.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "photo", "question", "verdict"])
        writer.writerow(["one", "a.png", "can i\ntouch it ?", "unsafe"])
        writer.writerow(["two", "", "can i touch it ?", ""])
    columns = {"id": "key", "image": "photo", "text": "question", "label": "verdict"}
    flags = [word for name, column in columns.items() for word in (f"--{name}-column", column)]
    arguments = ("--input", tmp_path / "in.csv", "--output", tmp_path / "o.jsonl", *flags)
    code, _, _ = score(*arguments, "--images", tmp_path / "pictures")
    first, second = read(tmp_path / "o.jsonl")
    assert code == 0 and (first["id"], first["row"], first["true_label"]) == ("one", 2, "unsafe")
    assert (second["id"], second["row"]) == ("two", 4) and "true_label" not in second
    expected = guard.score([tmp_path / "pictures" / "a.png"], ["can i\ntouch it ?"])
    assert abs(expected[0].p_unsafe - first["p_unsafe"]) <= 1e-5


def test_a_table_of_texts_alone(score, tmp_path):
    (tmp_path / "in.json").write_text(json.dumps([{"text": "can i touch it ?"}] * 3))
    arguments = ("--input", tmp_path / "in.json", "--output", tmp_path / "o.jsonl")
    assert score(*arguments, "--text-only")[0] == 0
    assert [row["id"] for row in read(tmp_path / "o.jsonl")] == ["in-1", "in-2", "in-3"]


def test_a_long_text_is_read_in_windows(score, tmp_path):
    rows = small_table(tmp_path, text=LONG)
    code, summary, _ = score("--input", rows, "--output", tmp_path / "o.jsonl")
    assert code == 0 and "long texts, read in windows: 1" in summary
    windows = [row["windows"] for row in read(tmp_path / "o.jsonl")]
    assert windows[0] > 2 and windows[1:] == [1] * 4


def test_the_formats_are_the_readers(capsys):
    parser = argparse.ArgumentParser()
    cli.VERBS["score"].add_arguments(parser)
    (action,) = [a for a in parser._actions if a.dest == "format"]
    assert set(action.choices) == set(sources.SOURCES)


def test_a_window_is_bounded_in_rows_and_in_bytes(monkeypatch):
    monkeypatch.setattr(scoring, "WINDOW_BYTES", 1_000)
    large = [Record(str(i), (b"x" * 300,), "a") for i in range(20)]
    assert {len(w) for w in scoring._windows(iter(large), 16)} == {4}
    small = [Rejected("f", i, "") for i in range(5_000)]
    sizes = [len(w) for w in scoring._windows(iter(small), 16)]
    assert sizes[:5] == [64, 128, 256, 512, 1_024]
    assert max(sizes) == scoring.WINDOW_ROWS and sum(sizes) == 5_000


def test_a_slow_guard_gets_smaller_windows(monkeypatch):
    monkeypatch.setattr(scoring, "WINDOW_SECONDS", -1.0)
    sizes = [len(w) for w in scoring._windows(iter([Rejected("f", 1, "")] * 200), 16)]
    assert sizes[:4] == [64, 32, 16, 16]


def test_the_last_row_is_found_cheaply(tmp_path):
    contents = {
        "a.jsonl": "{}\n{}\n{}",
        "b.csv": "id\n1\n2\n",
        "c.json": "[{}, {}, {}]",
        "d.json": '{"info": [], "questions": [{}, {}, {}]}',
        "e.json": "{}\n{}\n{}\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
        assert scoring.last_row(tmp_path / name) == 3, name
