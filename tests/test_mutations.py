"""Code broken on purpose, one place at a time: the tests of the default set must see it.

Each mutation is made in a copy of the package, and the tests that stand for it run there.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.mutations

MUTATIONS = {
    "LoRA's scale": (
        "nn/lora.py",
        "scale = jnp.asarray(scale, x.dtype) * (self.alpha / self.rank)",
        "scale = jnp.asarray(scale, x.dtype) * self.alpha",
        "tests/nn/test_lora.py",
    ),
    "the causal mask": (
        "nn/attention.py",
        "if causal and n_queries > 1:",
        "if False:",
        "tests/nn/test_attention.py",
    ),
    "R_ovlp's sign": (
        "impforge/rewards/overlap.py",
        "jnp.where(n > 0, 1 - excess",
        "jnp.where(n > 0, 1 + excess",
        "tests/impforge/rewards/test_rewards.py",
    ),
    "what a text adds to its picture": (
        "impforge/gate/local.py",
        " & (similarity - alone >= s.gain)",
        "",
        "tests/impforge/gate/test_local.py",
    ),
    "the projection to the ball": (
        "attacks/projections.py",
        "delta = jnp.clip(delta, -epsilon, epsilon)",
        "delta = jnp.clip(delta, -epsilon, 2 * epsilon)",
        "tests/attacks/test_projections.py",
    ),
    "Wilson's z": (
        "core/metrics.py",
        "    z2 = _normal_quantile(confidence) ** 2\n    rate =",
        "    z2 = _normal_quantile(confidence)\n    rate =",
        "tests/core/test_metrics.py",
    ),
    "padding": (
        "guard/encoding.py",
        "mask[i, : len(row.ids)] = 1",
        "mask[i, :] = 1",
        "tests/guard/test_guard.py",
    ),
    "the weight file's choice": (
        "hf/folder.py",
        "for name in (WEIGHTS, INDEX) if",
        "for name in (INDEX, WEIGHTS) if",
        "tests/hf/test_folder.py",
    ),
}
"""What is broken: the file, its text, the text put there, the tests that must fail."""


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_default_set_sees(name: str, tmp_path: Path, repository: Path) -> None:
    file, text, broken, tests = MUTATIONS[name]
    for part in ("crossguard_jax", "configs", "tests", "launch"):
        shutil.copytree(repository / part, tmp_path / part)
    shutil.copy(repository / "pyproject.toml", tmp_path)
    path = tmp_path / "crossguard_jax" / file
    source = path.read_text()
    assert source.count(text) == 1, f"{file}: give a text that stands there once"
    path.write_text(source.replace(text, broken))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", tests],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout[-2000:]  # tests failed, and were found and collected
    assert " failed" in done.stdout
