"""The small world's LLaVA with an adapter, a check and a policy that nobody trained."""

import jax
import jax.numpy as jnp
from flax import nnx

from crossguard_jax.cmai.consistency import Check, ConsistencyConfig, make_check
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.cmai.policy import Policy
from crossguard_jax.cmai.task import Reader, Task
from crossguard_jax.guard.guard import Guard
from crossguard_jax.toy.world.sources import records
from tests.small_models import adapted

LENGTH = 48
RECORDS = [
    row
    for rows in zip(records("implicit", "test", 4), records("text_safety", "test", 4), strict=True)
    for row in rows
]
"""Four rows with a picture, and after each one without."""


def base() -> Guard:
    """The LLaVA as it ships."""
    return Guard.from_pretrained("toy://llava", prompt="short")


def with_adapter(guard: Guard) -> Guard:
    """The same with an adapter of random numbers, on both towers and the projector."""
    return Guard(adapted(guard.model), guard.folder, guard.settings)


def check_for(guard: Guard, reader: Reader, seed: int = 0) -> Check:
    """A check of random numbers."""
    config = ConsistencyConfig(
        picture_width=2 * guard.model.config.vision.hidden_size,
        text_width=reader.width,
        shared_width=8,
        hidden_width=16,
        text_source=reader.source,
    )
    return make_check(config, jax.random.key(seed))


def system_of(guard: Guard, source: str = "clip", policy: Policy | None = None) -> Immunized:
    """All of it in one."""
    reader = Reader(guard, source, "toy://clip" if source == "clip" else "", LENGTH)
    check = check_for(guard, reader)
    task = Task(guard, (), reader, check)
    trainable = {"adapters": task.adapters, "check": nnx.split(check, graph=False)[1]}
    return Immunized(task, trainable, task.frozen_parts, policy or Policy())


def on_device(rows: dict) -> dict:
    """Arrays for JAX."""
    return {name: jnp.asarray(value) for name, value in rows.items()}
