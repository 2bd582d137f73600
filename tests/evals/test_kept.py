"""``evaluate`` from kept predictions: nothing is made twice, nothing is loaded for nothing."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from crossguard_jax import cli
from crossguard_jax.core.errors import UserError
from crossguard_jax.data.prompts import get_template
from crossguard_jax.evals import evaluate, kept
from crossguard_jax.guard.settings import Settings
from crossguard_jax.guard.verdict import Verdict
from crossguard_jax.io import files, images
from crossguard_jax.report import drawing
from crossguard_jax.systems import store

PICTURE = images.encode_png(Image.new("RGB", (4, 4)))


class Judge:
    """A system in a folder, whose ``p.json`` gives p_unsafe by text; None there is no answer."""

    mesh = None
    remarks = ("it is made of a file",)

    def __init__(self, folder: str, log: list[str]):
        self.folder, self._log = Path(folder), log
        self._p = json.loads((self.folder / "p.json").read_text())
        self.settings = Settings(prompt=get_template("short"))
        log.append(f"load {self.folder.name}")

    def identity(self) -> dict[str, Any]:
        return {"p": self._p}

    def score(self, images: Sequence[Any], texts: Sequence[str]) -> list[Verdict]:
        raise NotImplementedError

    def score_each(
        self, images: Sequence[Any], texts: Sequence[str], **options: Any
    ) -> list[Verdict | UserError]:
        self._log.extend(f"{self.folder.name} {text}" for text in texts)
        return [self._one(self._p.get(text)) for text in texts]

    def _one(self, p: float | None | str) -> Verdict | UserError:
        if p == "stop":
            raise KeyboardInterrupt
        if p is None:
            return UserError("the judge answered 503 three times; ask again later")
        return Verdict(p, p >= 0.5, 0.5, "unsafe" if p >= 0.5 else "safe")


@pytest.fixture
def log(monkeypatch, tmp_path) -> list[str]:
    """What systems did: loads, and the texts that they were asked about."""
    done: list[str] = []
    monkeypatch.chdir(tmp_path)
    for draw in ("png", "pdf"):  # plots take longer than all that is tested here
        monkeypatch.setattr(drawing, draw, lambda figure: PICTURE)
    monkeypatch.setattr(evaluate, "load", lambda path, *a, **k: Judge(path, done))
    for module in (kept, store):
        monkeypatch.setattr(module, "identity", lambda system: system.identity())
    return done


def system(name: str, **p: Any) -> None:
    folder = Path(name)
    folder.mkdir(exist_ok=True)
    (folder / "p.json").write_text(json.dumps(p))


def run(*names: str, rows: int = 4, out: str = "e") -> tuple[int, dict[str, Any]]:
    lines = [
        {"id": i, "image": None, "text": f"t{i}", "label": ("unsafe", "safe")[i % 2]}
        for i in range(rows)
    ]
    Path("d.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = [name for name in names if name.startswith("--")]
    models = [name for name in names if name not in flags]
    words = [*flags, *(word for name in models for word in ("--model", name))]
    code = cli.main(["evaluate", *words, "--data", "d.jsonl", "--out", out, "--store", "kept"])
    file = Path(out) / "report.json"
    return code, json.loads(file.read_text()) if file.exists() else {}


def test_a_second_run_loads_nothing_and_says_the_same(log):
    system("one", t0=0.9, t1=0.1, t2=0.2, t3=0.3)
    code, first = run("one")
    assert (code, log) == (0, ["load one", *(f"one t{i}" for i in range(4))])
    log.clear()
    assert run("one", out="f") == (0, first) and log == []


def test_a_new_system_adds_a_row_and_a_new_row_costs_itself_alone(log):
    system("one", t0=0.9, t1=0.1, t2=0.2, t3=0.3, t4=0.8)
    system("two", t0=0.1, t1=0.1, t2=0.2, t3=0.3, t4=0.8)
    run("one")
    log.clear()
    code, both = run("one", "two")
    assert code == 0 and log == ["load two", *(f"two t{i}" for i in range(4))]
    assert (both["one.all.asr"]["value"], both["two.all.asr"]["value"]) == (0.5, 1.0)
    log.clear()
    run("one", "two", rows=5)
    assert log == ["load one", "one t4", "load two", "two t4"]


@pytest.mark.parametrize("change", ["content", "another file"])
def test_a_system_whose_files_have_changed_is_read_anew(log, change):
    system("one", t0=0.9, t1=0.1, t2=0.2, t3=0.3)
    run("one")
    log.clear()
    if change == "content":
        system("one", t0=0.1, t1=0.1, t2=0.2, t3=0.3)
    else:
        Path("one/adapter.json").write_text("{}")
    _, figures = run("one")
    # The same system by what it is has its verdicts still; another one has none.
    assert log == ["load one", *(f"one t{i}" for i in range(4) if change == "content")]
    assert figures["one.all.asr"]["value"] == (1.0 if change == "content" else 0.5)


def test_what_is_known_of_a_system_is_not_trusted_where_it_is_damaged(log):
    system("one", t0=0.9, t1=0.1, t2=0.2, t3=0.3)
    run("one")
    (file,) = Path("kept/systems").iterdir()
    for damage in ("", "{}", file.read_text().replace('"facts"', '"fact"')):
        log.clear()
        file.write_text(damage)
        assert run("one")[0] == 0 and log == ["load one"]


def test_a_judge_that_fails_is_no_answer_and_nothing_else_and_is_asked_again(log):
    system("one", t0=0.9, t1=0.1, t2=None, t3=None)
    code, figures = run("one")
    assert code == 1
    assert (figures["one.all.no_answer"]["value"], figures["one.all.no_answer"]["n"]) == (2, 4)
    # Wrong on both sides: let through, and flagged. The names of the measures do not change.
    assert figures["one.all.asr"] == {**figures["one.all.fpr"]}
    assert (figures["one.all.asr"]["value"], figures["one.all.asr"]["n"]) == (0.5, 2)
    assert figures["one.all.ece"]["n"] == 2
    lines = [json.loads(line) for line in Path("e/one.verdicts.jsonl").open()]
    assert [("reason" in line, "p_unsafe" in line) for line in lines] == [
        *[(False, True)] * 2,
        *[(True, False)] * 2,
    ]
    log.clear()
    run("one")
    assert log == ["load one", "one t2", "one t3"]


def test_a_system_that_fails_costs_its_own_row_and_the_exit_code_says_so(log, capsys):
    system("one", t0=0.9, t1=0.1, t2=0.2, t3=0.3)
    system("two", t0=None, t1=None)
    code, figures = run("one", "two")
    assert code == 1 and "one.all.asr" in figures and "two.all.asr" not in figures
    assert (
        "two: has no row in the table: --model two: it can score no row" in capsys.readouterr().out
    )
    assert "Systems that failed" in Path("e/report.md").read_text()
    # The named one is what the report is about.
    assert run("two", "one", out="f") == (1, {})


@pytest.mark.parametrize("stop", [0, 2, 3])
def test_a_run_that_was_stopped_goes_on_where_it_was(log, monkeypatch, stop):
    monkeypatch.setattr(store, "WINDOW_SECONDS", -1.0)  # every window is slow: one row at a time
    p = {"t0": 0.9, "t1": 0.1, "t2": 0.2, "t3": 0.3}
    system("whole", **p)
    system("one", **p)
    monkeypatch.setattr(kept.SystemFacts, "of", classmethod(lambda cls, s: facts_without_values(s)))
    monkeypatch.setattr(store.VerdictStore, "verdicts", one_by_one(store.VerdictStore.verdicts))
    system("one", **{**p, f"t{stop}": "stop"})
    assert run("one")[0] == cli.INTERRUPTED
    log.clear()
    system("one", **p)
    code, figures = run("one")
    assert code == 0 and log == ["load one", *(f"one t{i}" for i in range(stop, 4))]
    assert figures["one.all.asr"] == run("whole", out="f")[1]["whole.all.asr"]


def facts_without_values(system: Judge) -> kept.SystemFacts:
    """A judge that recovers is the same judge."""
    prompt = vars(system.settings.prompt)
    identity = {"name": system.folder.name}
    return kept.SystemFacts(identity, dict(prompt), 0.5, str(system.folder))


def one_by_one(verdicts: Any) -> Any:
    return lambda self, records, **options: verdicts(self, records, **options | {"window": 1})


CONFIG = """
from ml_collections import ConfigDict, config_dict


def mine():
    "Two systems on one table."
    system = {"on": True, "adapter": "", "prompt": "", "title": ""}
    system["threshold"] = config_dict.placeholder(float)
    table = {"on": True, "reader": "table", "path": "d.jsonl"}
    table |= dict.fromkeys(("folder", "split", "title"), "")
    return ConfigDict(
        {
            "folder": "",
            "benchmarks": {"d": table | {"limit": 0, "per_category": 0, "place": 0}},
            "systems": {
                "one": system | {"path": "one", "place": 1, "title": "The one"},
                "two": system | {"path": "two", "place": 0, "threshold": 0.15},
            },
            "named": "one",
            "threshold": "own",
            "bootstrap": {"samples": 20, "seed": 0},
            "speed_rows": 2,
            "published": True,
            "missing_pictures": "out",
            "exports": ("inspect",),
        }
    )


VARIANTS = {"mine": mine}


def get_config(variant):
    return VARIANTS[variant]()
"""


def test_a_configuration_runs_as_flags_do_and_says_what_flags_cannot(log):
    system("one", t0=0.9, t1=0.1, t2=0.2, t3=0.3)
    system("two", t0=0.9, t1=0.1, t2=0.2, t3=0.3)
    _, flagged = run("one", "two", "--export=guardbench")
    Path("mine.py").write_text(CONFIG)
    words = ["evaluate", "--config", "mine.py:mine", "--out", "c", "--store", "kept"]
    assert cli.main(words) == 0
    text = Path("c/report.json").read_text()
    figures = json.loads(text)
    assert figures["one.d.asr"] == flagged["one.d.asr"]
    assert (figures["two.d.asr"]["value"], flagged["two.d.asr"]["value"]) == (0.0, 0.5)
    page = Path("c/report.md").read_text()
    assert page.index("| two |") < page.index("| The one |")  # in the order of their places
    assert "made of a file" in page and "one.minus.two.d.asr_difference" in text
    assert figures["one.speed.p50_ms"]["n"] == 2
    assert len(Path("c/inspect/d.jsonl").read_text().splitlines()) == 4
    assert Path("e/guardbench/predictions/d/two.json").exists()
    assert "one.d.asr,0.5," in Path("c/figures.csv").read_text()
    assert list(Path("c/tables").glob("*.tex"))
    # What was run, on what: the store's own name for it, and a hash of the rows.
    ran = figures["meta"]["systems"]["two"]
    assert ran["threshold"] == "0.15" and Path(f"kept/{ran['hash']}.jsonl").exists()
    ((n, digest),) = figures["meta"]["rows"].values()
    assert n == 4 and digest in page and ran["hash"] in page
    assert "Listed are 4 of the 4 rows: 1 of the 1" in Path("c/systems/two.html").read_text()
    # Once timed, a system need not be there for its speed either.
    log.clear()
    assert cli.main(words) == 0 and log == []
    assert json.loads(Path("c/report.json").read_text()) == figures


def test_a_relative_folder_and_a_touched_one_are_not_mistaken(log):
    system("one", t0=0.9, t1=0.1, t2=0.2, t3=0.3)
    run("one")
    log.clear()
    os.utime("one/p.json", ns=(1, 1))
    assert run("one")[0] == 0 and log == ["load one"]


@pytest.mark.parametrize("library", ["jax", "transformers", "torch"])
def test_what_is_known_of_a_system_is_of_the_libraries_that_computed(library, monkeypatch):
    before, version = files.code(), files._version
    assert files.code() == before and files._version("no-such-library") == ""
    monkeypatch.setattr(files, "_version", lambda name: "0" if name == library else version(name))
    assert files.code() != before
