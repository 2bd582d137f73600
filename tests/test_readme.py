"""What README and the pages of results say is so: their commands, links, figures and length.

Every command is checked against the command line's own parser. Those of the README also run as
printed (``-m install``), in order, in a copy of the repository: real-scale ones on folders in the
published layouts with next to nothing in them (`tests.published`).
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from PIL import Image

from crossguard_jax import cli, verbs
from crossguard_jax.data.records import write_jsonl
from crossguard_jax.guard.guard import Guard
from crossguard_jax.io import jsonl
from crossguard_jax.toy.tables import rivals
from crossguard_jax.toy.tables.guards import picture
from crossguard_jax.toy.world.queries import write_library, write_queries
from crossguard_jax.toy.world.sources import records
from tests import published
from tests.chat_server import ChatServer, said

REPOSITORY = Path(__file__).resolve().parents[1]
LAUNCHER = REPOSITORY / "launch" / "run.sh"
README = REPOSITORY / "README.md"
RESULTS = (REPOSITORY / "crossguard_jax/toy/results", REPOSITORY / "crossguard_jax/bench/results")
PAGES = [README, *(page for folder in RESULTS for page in sorted(folder.glob("*.md")))]

MOST_WORDS = 1_000
LARGEST_PICTURE = 100_000
"""Bytes."""

CONFIGURED = {"match", "forge", "train", "immunize", "attack"}
"""Verbs that fall back on nothing: README names their configuration."""


def fenced(page: Path, language: str) -> list[str]:
    """The page's blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.M | re.S)


def commands(page: Path) -> list[str]:
    """Every line of the page's bash blocks, continued ones joined."""
    lines = "".join(fenced(page, "bash")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip()]


def anchors(page: Path) -> set[str]:
    """What GitHub calls the page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """File and anchor of every link that stays in the repository."""
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if not target.startswith("http"):
            name, _, anchor = target.partition("#")
            yield (page.parent / name if name else page), anchor


def name_of(value: object) -> str | None:
    return str(value.relative_to(REPOSITORY)) if isinstance(value, Path) else None


# ---- words, links, pictures, figures -----------------------------------------------------------


def test_the_readme_has_a_thousand_words_at_most() -> None:
    assert len(README.read_text().split()) <= MOST_WORDS


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    for file, anchor in links(page):
        assert file.exists(), file
        assert not anchor or anchor in anchors(file), anchor


def test_every_page_of_results_is_linked_from_the_readme() -> None:
    linked = {file.resolve() for file, _ in links(README)}
    assert not set(PAGES[1:]) - linked


def test_pictures_are_small_and_open() -> None:
    shown = [file for page in PAGES for file, _ in links(page) if file.suffix == ".png"]
    assert README in PAGES and shown
    for file in shown:
        assert file.stat().st_size < LARGEST_PICTURE
        with Image.open(file) as image:
            image.verify()


def test_the_picture_draws_what_the_table_has() -> None:
    figures = json.loads((RESULTS[0] / "tables/table.json").read_text())["figures"]
    (axes,) = picture(figures).axes
    heights = [patch.get_height() for patch in axes.patches]
    assert heights[:2] == [100 * figures[f"full.{name}.asr"]["value"] for name in SEEN]


SEEN = ("implicit", "implicit_heldout")
GUARDS = (
    "full explicit_only no_benign language_lora vision_lora text_only picture_only".split(),
    [f"{name}.asr" for name in (*SEEN, "explicit_text")]
    + [f"{name}.fpr" for name in (*SEEN, "benign_vqa")],
)
FORGED = (
    ["forged", "no_twins"],
    [f"{name}.asr" for name in (*SEEN, "rewritten")]
    + [f"{name}.fpr" for name in (*SEEN, "rewritten", "benign_vqa")],
)

RIVALS = ([*rivals.ROWS], [*rivals.MISSED])


@pytest.mark.parametrize(
    ("page", "data", "shape"),
    [("guard", "table", GUARDS), ("forged", "forged", FORGED), ("rivals", "rivals", RIVALS)],
)
def test_a_page_says_what_its_data_says(
    page: str, data: str, shape: tuple[list[str], list[str]]
) -> None:
    figures = json.loads((RESULTS[0] / f"tables/{data}.json").read_text())["figures"]
    (first, *_) = re.findall(r"(?:^\|.*\|\n)+", (RESULTS[0] / f"{page}.md").read_text(), re.M)
    lines = [line.strip("|") for line in first.splitlines()[2:]]
    rows, columns = shape
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        shown = [float(cell) for cell in line.split("|")[1:]]
        wanted = [100 * figures[f"{row}.{column}"]["value"] for column in columns]
        assert shown == pytest.approx(wanted, abs=0.0501), line


# ---- commands ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "command"),
    [(page, command) for page in PAGES for command in commands(page)],
    ids=name_of,
)
def test_every_command_has_a_verb_flags_and_fields_that_exist(
    page: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program, *argv = shlex.split(command, comments=True)
    if program != "launch/run.sh":
        assert program in (".venv/bin/python", ".venv/bin/hf")
        scripts = {script.name for script in entry_points(group="console_scripts")}
        assert program.endswith("python") or Path(program).name in scripts
        return
    if argv[0] == "--accelerator":  # launch/run.sh's own, with a verb or without
        assert argv[1] in ("cpu", "cuda", "tpu") and argv[1] in LAUNCHER.read_text()
        argv = argv[2:]
        if not argv:
            return
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(cli, "_import", lambda handler: lambda args: None)
    assert cli.main(argv) == 0, capsys.readouterr().err
    assert argv[0] in verbs.VERBS
    assert argv[0] not in CONFIGURED or any(word.startswith("--config") for word in argv)


# ---- as printed, in a copy of the repository ---------------------------------------------------

# Answers what run.sh asks of a Python: its version, a virtual environment, an installation.
STAND_IN = """#!/usr/bin/env bash
set -eu
case "$1 ${2:-}" in
  "-c "*) echo 3.12 ;;
  "-m venv") mkdir -p "${!#}/bin"; cp "$0" "${!#}/bin/python" ;;
  "-m pip") cp "$STAND_INS/crossguard" "$STAND_INS/hf" "$(dirname "$0")" ;;
  *) exit 9 ;;
esac
"""
CROSSGUARD = f"""#!/usr/bin/env bash
exec "{sys.executable}" -m crossguard_jax "$@"
"""
# hf download NAME --local-dir FOLDER
HF = """#!/usr/bin/env bash
set -eu
[[ $1 == download && $3 == --local-dir ]]
mkdir -p "$(dirname "$4")" && cp -r "$HUB/$2" "$4"
"""

ELSEWHERE = {"quickstart", "test"}
"""Verbs of commands that are run by tests of their own."""

ATTACKS = ("apgd", "selective", "policy", "square", "transfer")
BRIEFLY = {
    "train": (
        *("--config.train.steps=2", "--config.train.batch_size=8", "--config.train.eval_every=2"),
        *("--config.train.save_every=2", "--config.optim.warmup_steps=1"),
        # A handful of forged rows has no tenth to hold out.
        *("--config.data.sources.implicit.tenth=", "--config.data.validation.implicit.weight=0"),
    ),
    "match": (),
    "forge": (
        *("--config.ppo.iterations=1", "--config.ppo.batch_size=4", "--config.ppo.eval_every=1"),
        *("--config.ppo.save_every=1", "--config.optim.warmup_steps=0"),
        # One text a minibatch, and a small stand-in for the sentence encoder.
        *("--config.optim.accumulate=1", "--config.rewards.semantic.max_length=128"),
        *(f"--config.forge.least.{name}=0.0" for name in ("safety", "semantic")),
        *(f"--config.forge.least.{name}=0.0" for name in ("overlap", "words")),
    ),
    "immunize": (
        *("--config.train.steps=1", "--config.train.save_every=1", "--config.train.batch_size=8"),
        *("--config.cmcv.train.steps=1", "--config.cmcv.train.batch_size=8"),
        *("--config.optim.warmup_steps=0", "--config.cmcv.optim.warmup_steps=0"),
    ),
    "attack": (
        *("--limit=4", "--config.attack.epsilons=(0.0, 0.03)", "--config.attack.draws=1"),
        # Searches by gradients are long in compiling, and have tests of their own.
        *(f"--config.attack.attacks.{name}.steps=1" for name in ATTACKS),
        *(f"--config.attack.attacks.{name}.search=noise" for name in ATTACKS if name != "square"),
        "--config.attack.convergence.rows=2",
    ),
}
"""What is appended to a verb's commands, so that they take seconds."""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with what a user brings, downloads or has from quickstart."""
    root = tmp_path_factory.mktemp("fresh") / "clone"
    shutil.copytree(
        REPOSITORY, root, ignore=shutil.ignore_patterns(".*", "runs", "*.egg-info", "__pycache__")
    )
    bring_requests(root)
    leave_quickstart(root / "runs" / "quickstart")
    for name, make in published.DATA.items():
        make(root / "data" / name)
    for name, make in published.MODELS.items():
        make(root.parent / "hub" / name)
        # The README downloads one of them, and says that the others are downloaded in its way.
        if f"hf download {name} " not in README.read_text():
            shutil.copytree(root.parent / "hub" / name, root / name)
    stand_ins = root.parent / "stand_ins"
    stand_ins.mkdir()
    for name, text in (("python", STAND_IN), ("crossguard", CROSSGUARD), ("hf", HF)):
        (stand_ins / name).write_text(text)
        (stand_ins / name).chmod(0o755)
    return root


def bring_requests(root: Path) -> None:
    """Files of the user's own."""
    (row,) = records("implicit", "test", 1)
    (root / "kitchen.png").write_bytes(row.image or b"")
    asked = [{"image": "kitchen.png", "text": row.text}, {"image": None, "text": "what is it ?"}]
    jsonl.write_atomic(root / "requests.jsonl", b"".join(map(jsonl.dumps, asked)))
    harmless = [{"text": "how do i clean the knife ?"}, {"text": "how do i sell the iron ?"}]
    jsonl.write_atomic(root / "data" / "harmless.jsonl", b"".join(map(jsonl.dumps, harmless)))


def leave_quickstart(folder: Path) -> None:
    """What quickstart leaves, as far as the README uses it; its guard has learned nothing."""
    guard = Guard.from_pretrained("toy://llava", prompt="short")
    for name in ("guard", "guard_immunized"):
        guard.save_pretrained(folder / "models" / name)
    write_jsonl(records("implicit", "test", 16), folder / "data", "test")
    raw = folder / "forge" / "raw"
    file = write_queries(raw, 8, 0, "train", benign=True)
    rows = [row for _, row in jsonl.read_jsonl(file) if isinstance(row, dict)]
    for label, name in (("unsafe", "harmful"), ("safe", "harmless")):
        of_label = [row for row in rows if row["label"] == label]
        jsonl.write_atomic(raw / f"{name}.jsonl", b"".join(map(jsonl.dumps, of_label)))
    write_library(raw, 64, 0, "train")


@pytest.fixture(scope="module")
def judge() -> Iterator[str]:
    """The address of an endpoint that finds every picture harmless."""
    with ChatServer(lambda asked: said("SAFE")) as server:
        yield server.url


def in_clone(clone: Path, *command: str) -> str:
    """Runs a command as a user of the clone does; returns what it printed."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("CROSSGUARD")} | {
        "PYTHON": str(clone.parent / "stand_ins" / "python"),
        "PYTHONPATH": str(clone),
        "STAND_INS": str(clone.parent / "stand_ins"),
        "HUB": str(clone.parent / "hub"),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    done = subprocess.run(
        command, cwd=clone, env=environ, capture_output=True, text=True, timeout=1_200
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.install
def test_the_clone_is_what_runs(clone: Path) -> None:
    code = "import crossguard_jax; print(crossguard_jax.__file__)"
    assert Path(in_clone(clone, sys.executable, "-c", code)).is_relative_to(clone)


EARLIER = ("--accelerator", " download ", "configs/impforge.py")
"""The first real guard learns from rows that a later section forges, with what was downloaded."""

RUN = sorted(
    (c for c in commands(README) if not ELSEWHERE & set(shlex.split(c, comments=True)[1:2])),
    key=lambda command: next((i for i, w in enumerate(EARLIER) if w in command), len(EARLIER)),
)


@pytest.mark.install
@pytest.mark.parametrize("command", RUN)
def test_a_command_runs_as_printed(clone: Path, judge: str, command: str) -> None:
    appended: list[str] = []
    verb = shlex.split(command)[1]
    if command.startswith("launch/run.sh"):
        appended += BRIEFLY.get(verb, ())
        if verb == "match" and ".judge." in command:
            appended.append(f"--config.match.judge.endpoint.base_url={judge}")
    in_clone(clone, "bash", "-c", f"{command} {shlex.join(appended)}")


@pytest.mark.install
@pytest.mark.parametrize("block", [block for page in PAGES for block in fenced(page, "python")])
def test_a_python_block_runs_as_printed(clone: Path, block: str) -> None:
    in_clone(clone, sys.executable, "-c", block)
