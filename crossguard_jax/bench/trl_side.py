"""TRL's PPO trainer seen from here: a worker that iterates when asked, and its settings."""

import contextlib
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from crossguard_jax.core.errors import UserError

TARGETS = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]


class Worker:
    """TRL in a process of its own, which works when asked and else waits.

    Args:
        command: starts it; it answers as `trl_worker` does.
        log: gets all it says besides.

    Attributes:
        hello: what it has loaded.

    Raises:
        UserError: it does not start; the message has its last line.
    """

    def __init__(self, command: Sequence[str], log: Path):
        # What this process's environment adds to a Python is not for the other one.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        environment |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
        pipe, self._log = subprocess.PIPE, log
        with log.open("w") as errors:
            try:
                self._process = subprocess.Popen(
                    command, stdin=pipe, stdout=pipe, stderr=errors, env=environment, text=True
                )
            except OSError as error:
                raise UserError(f"--trl-python {command[0]}: {error.strerror}") from error
        self.hello = self._answer()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: Any) -> None:
        # What it was asked and never read it need not get any more.
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()

    def iterate(self) -> dict[str, Any]:
        """One iteration; returns what the trainer logged."""
        assert self._process.stdin is not None
        # One that has died says why in its log.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            lines = self._log.read_text().strip().splitlines() or ["nothing"]
            raise UserError(f"TRL's process ended; the last it said was: {lines[-1]}")
        return json.loads(line)


def settings_for(
    config: ConfigDict, folder: Path, prompts: np.ndarray, threads: int, scratch: Path
) -> dict[str, Any]:
    """What `trl_worker` reads: the same numbers by TRL's names."""
    batch, settings, adapter = config.ppo.batch_size, config.ppo.settings, config.rewriter.lora
    return {
        "folder": str(folder),
        "threads": threads,
        "prompts": prompts.tolist(),
        "check": prompts[:2].tolist(),
        "lora": {"r": adapter.rank, "lora_alpha": adapter.alpha, "target_modules": TARGETS},
        "ppo": {
            "output_dir": str(scratch / "trl"),
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "num_sample_generations": 0,
            "total_episodes": 10**6 * batch,
            # One step a minibatch: TRL's accumulation would join them.
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": 1,
            "local_rollout_forward_batch_size": batch,
            "num_mini_batches": settings.minibatches,
            "num_ppo_epochs": settings.epochs,
            "response_length": config.rewriter.max_new_tokens,
            "temperature": config.rewriter.temperature,
            "stop_token": "eos",
            "missing_eos_penalty": settings.missing_end_penalty,
            "kl_coef": settings.kl_coef,
            "gamma": settings.gamma,
            "lam": settings.gae_lambda,
            "cliprange": settings.clip_policy,
            "cliprange_value": settings.clip_value,
            "vf_coef": settings.value_coef,
            "learning_rate": config.optim.learning_rate,
            "lr_scheduler_type": "constant",
        },
    }
