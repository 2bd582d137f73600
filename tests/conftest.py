"""What every test may use.

One device is the default: most tests need no more, and timings stay simple. A test that needs
several asks for ``run_with_devices``, since the number of devices is settled when JAX starts.
Nothing of the package is imported here: the runtime type checker must come first.
"""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# Compiled programs are kept between runs; most of a first run is compilation.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(REPOSITORY / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Nothing a test needs lies on the Hub, so a test that asks for it is wrong, and fails at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A test that wants verdicts kept says where.
os.environ["CROSSGUARD_STORE"] = ""
# What `launch/run.sh test` was called by is not what tests call.
os.environ.pop("CROSSGUARD_COMMAND", None)


GROUPS = {
    "parity": "more random models and inputs beside transformers, PEFT, torchattacks and others",
    "training": "whole trainings: learned, killed, resumed",
    "robustness": "attacks on whole systems, and the reports of them",
    "devices": "the same on eight devices as on one",
    "tables": "the small world's models and tables made anew",
    "benches": "the benches run",
    "install": "a wheel in an environment of its own, every command of README",
    "mutations": "code broken on purpose: the default set goes red",
}
"""What takes minutes, by what it proves: ``launch/run.sh test -m parity``, ``-m slow`` for all."""


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository under test."""
    return REPOSITORY


@pytest.fixture(scope="session")
def run_with_devices() -> Callable[..., str]:
    """Runs Python code in a process of its own that sees ``n`` CPU devices; returns its stdout.

    ``run_with_devices(n, code, *arguments, timeout=300)``: ``code`` is a snippet (dedented here)
    or a path to a script, ``arguments`` its ``sys.argv[1:]``. A failure shows the process's output.
    """

    def run(n: int, code: str | Path, *arguments: str, timeout: float = 300) -> str:
        flags = [
            flag
            for flag in os.environ.get("XLA_FLAGS", "").split()
            if not flag.startswith("--xla_force_host_platform_device_count")
        ]
        environ = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": " ".join([*flags, f"--xla_force_host_platform_device_count={n}"]),
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])
            ),
        }
        program = [str(code)] if isinstance(code, Path) else ["-c", textwrap.dedent(code)]
        done = subprocess.run(
            [sys.executable, *program, *arguments],
            env=environ,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if done.returncode != 0:
            pytest.fail(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}", pytrace=False)
        return done.stdout

    return run


@pytest.fixture(scope="module")
def compiled_as_users_do() -> Iterator[None]:
    """For tests whose time goes in running what they compile: see `pytest_configure`."""
    import jax

    quickly = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", quickly)


@pytest.fixture(scope="module", autouse=True)
def _room_for_programs() -> Iterator[None]:
    """Drops compiled programs before there are too many of them.

    Each takes about ten memory mappings, of which Linux gives a process 65,530 and then kills it.
    """
    yield
    mappings = Path("/proc/self/maps")
    if "jax" in sys.modules and mappings.exists() and mappings.read_bytes().count(b"\n") > 30_000:
        sys.modules["jax"].clear_caches()


def pytest_configure(config: pytest.Config) -> None:
    """Programs that are run once or twice are compiled quickly; long proofs as users' are."""
    config.addinivalue_line("markers", "slow: set on the tests of every group; left out by default")
    for group, what in GROUPS.items():
        config.addinivalue_line("markers", f"{group}: {what} (slow: ask for it with -m {group})")
    if "not slow" in config.option.markexpr:
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test of a group is slow. The longest file goes first: no process is left alone with it.
    Tests marked ``gpu`` that were asked for are skipped where there is no GPU."""
    for item in items:
        if item.get_closest_marker("slow"):
            raise pytest.UsageError(f"{item.nodeid}: mark it with its group, not as slow")
        if any(item.get_closest_marker(group) for group in GROUPS):
            item.add_marker("slow")
    items.sort(key=lambda item: item.path.name != "test_quickstart.py")
    wanted = [item for item in items if item.get_closest_marker("gpu")]
    if not wanted:
        return
    import jax

    if jax.default_backend() != "gpu":
        for item in wanted:
            item.add_marker(pytest.mark.skip(reason="no GPU on this machine"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the machine does: without it, the time of a whole set says nothing."""
    if len(terminalreporter.getreports("passed")) < 500:
        return
    code = """
        import time, jax
        x = jax.random.normal(jax.random.key(0), (2048, 2048))
        product = jax.jit(lambda x: x @ x)
        seconds = []
        for _ in range(6):
            start = time.perf_counter()
            product(x).block_until_ready()
            seconds.append(time.perf_counter() - start)
        print(f"{2 * 2048**3 / min(seconds) / 1e9:.0f}")
    """
    environ = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environ, capture_output=True, text=True
    )
    rate = done.stdout.strip() or "an unknown number of"
    terminalreporter.write_line(f"a float32 matrix product runs at {rate} GFLOP/s on this machine")
