"""What is installed is all that a run opens: the package works without its repository."""

import glob
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from setuptools import find_namespace_packages

Run = Callable[..., subprocess.Popen[str]]

# Measured once and read by people; no run opens them.
UNREAD = (
    *("toy/results/", "bench/results/", "plan/results/"),
    *("evals/README.md", "sweeps/README.md", "systems/README.md"),
)


def test_every_file_of_the_package_is_declared(repository: Path) -> None:
    settings = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["setuptools"]
    package = repository / "crossguard_jax"
    declared = {
        name
        for pattern in settings["package-data"]["crossguard_jax"]
        for name in glob.glob(pattern, root_dir=package, recursive=True)
    }
    files = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    data = {name for name in files if not name.endswith((".py", ".pyc"))}
    assert {name for name in data - declared if not name.startswith(UNREAD)} == set()
    assert any(name.startswith("toy/checkpoints/") for name in data & declared)


def test_configurations_are_a_package_of_the_wheel_and_the_repositorys_own(
    repository: Path,
) -> None:
    settings = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = find_namespace_packages(
        str(repository), include=settings["packages"]["find"]["include"]
    )
    assert "crossguard_jax.configs" in found and "configs" not in found
    assert (repository / "crossguard_jax/configs").resolve() == repository / "configs"


@pytest.fixture(scope="module")
def installed(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the wheel's contents; its dependencies are this environment's."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("crossguard_jax", "configs"):
        shutil.copytree(
            repository / name,
            source / name,
            symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(repository / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    wheels = source / "wheels"
    alone = ["--no-deps", "--no-index"]
    subprocess.run(
        [*pip, "wheel", *alone, "--no-build-isolation", "-w", str(wheels), str(source)], check=True
    )
    (wheel,) = map(str, wheels.glob("*.whl"))
    subprocess.run([*pip, "install", *alone, "--target", str(folder), wheel], check=True)
    shutil.rmtree(source)
    return folder


@pytest.fixture
def start(installed: Path, tmp_path: Path) -> Run:
    """``start(*argv)``: the installed command line, in an empty folder."""

    def start(*argv: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "crossguard_jax", *argv],
            env=os.environ | {"PYTHONPATH": str(installed)},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.mark.install
def test_a_wheel_scores_and_trains_in_an_empty_folder(start: Run, installed: Path) -> None:
    process = start("score", "--model", "toy://llava", "--text", "is this safe?")
    assert '"p_unsafe"' in process.communicate()[0] and process.returncode == 0
    sources = ("implicit", "explicit_text", "explicit_picture", "typographic", "benign_vqa")
    process = start(
        *("train", "--config", "configs/guard.py:tiny"),
        *("--config.train.steps=2", "--config.train.batch_size=8", "--config.optim.warmup_steps=1"),
        *(f"--config.data.sources.{name}.limit=64" for name in sources),
        *(f"--config.data.validation.{name}.limit=16" for name in ("implicit", "benign_vqa")),
    )
    lines = process.communicate()[0].splitlines()
    assert process.returncode == 0
    assert lines[0].startswith(f"configuration {installed}/crossguard_jax/configs/guard.py:tiny;")
    assert lines[-1] == "adapter of step 2: runs/train/adapter"


@pytest.mark.install
def test_a_wheels_quickstart_matches_and_begins_to_learn(start: Run, tmp_path: Path) -> None:
    process, log = start("quickstart", "--rows", "16"), "forge/forged/rewriter/metrics.jsonl"
    deadline = time.monotonic() + 900
    try:
        while not (file := tmp_path / "runs/quickstart" / log).exists() or not file.stat().st_size:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.5)
    finally:
        process.kill()
        process.communicate()
