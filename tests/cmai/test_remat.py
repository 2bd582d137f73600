"""What a gradient computes again: asked for in a configuration or a flag, it reaches the attack."""

from argparse import Namespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossguard_jax.cmai.answering import Answering
from crossguard_jax.cmai.arm import ArmState
from crossguard_jax.cmai.folders import load_immunized
from crossguard_jax.cmai.mbat import MbatSettings, clean_inputs, perturbed
from crossguard_jax.core.config import load_config
from crossguard_jax.core.sharding import DEFAULT_RULES, make_mesh
from crossguard_jax.evals.robustness.attack import load_options
from crossguard_jax.guard.recipe import load_base
from crossguard_jax.nn.clip import VisionConfig
from crossguard_jax.nn.llama import LlamaConfig
from crossguard_jax.nn.llava import Llava, LlavaConfig


def remats(guard):
    config = guard.model.config
    return config.vision.remat, config.text.remat


@pytest.mark.parametrize("flag, remat", [(None, "names"), ("full", "full"), ("none", "none")])
def test_the_attack_verbs_flag_reaches_both_towers(flag, remat):
    asked = Namespace(prompt=None, noise_seed=0, mesh=None, dtype="auto", remat=flag)
    system = load_immunized("toy://llava", **load_options(asked))
    assert remats(system.task.guard) == (remat, remat)


@pytest.mark.parametrize("recipe", ["guard", "cmai"])
def test_a_configurations_field_reaches_both_towers(recipe):
    overrides = ["--config.model.remat=full", "--config.model.path=toy://llava"]
    config = load_config(f"configs/{recipe}.py:tiny", overrides)
    assert remats(load_base(config, make_mesh(1), DEFAULT_RULES)) == ("full", "full")


ROWS, LENGTH = 4, 96


def attack_bytes(remat):
    """Temporaries of an attack of one step on a small LLaVA of twelve layers."""
    vision = VisionConfig(64, 256, 6, 4, image_size=24, patch_size=4, remat=remat)
    text = LlamaConfig(64, 64, 256, 12, 4, 4, 16, remat=remat)
    model = jax.eval_shape(
        lambda: Llava(LlavaConfig(vision=vision, text=text, image_token_id=3), jax.random.key(0))
    )
    normalization = np.zeros((3, 1, 1), np.float32), np.ones((3, 1, 1), np.float32)
    answering = Answering(model, (5, 9), normalization)
    settings = MbatSettings("evasive", steps=1)

    def attack(frozen, batch, key):
        trainable = {"adapters": answering.adapters}
        clean = clean_inputs(batch, answering.width)
        arm = ArmState(*(jnp.float32(0.1) for _ in range(5)))
        return perturbed(
            *(answering.answers, settings, trainable, {"model": frozen}, batch, clean, key, arm)
        )

    ints = {name: ((ROWS, LENGTH), jnp.int32) for name in ("input_ids", "attention_mask")}
    kinds = ints | {
        "text_mask": ((ROWS, LENGTH), bool),
        "pixels": ((ROWS, 3, 24, 24), jnp.float32),
        "pictures": ((ROWS,), jnp.int32),
        "has_picture": ((ROWS,), bool),
        "labels": ((ROWS,), jnp.int32),
    }
    batch = {name: jax.ShapeDtypeStruct(*kind) for name, kind in kinds.items()}
    compiled = jax.jit(attack).lower(answering.frozen, batch, jax.random.key(0)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_an_attacks_gradient_keeps_what_the_policy_says(compiled_as_users_do):
    sizes = {remat: attack_bytes(remat) for remat in ("none", "names", "full")}
    print(f"temporaries of an attack's step: {sizes}")
    assert sizes["full"] < 0.5 * sizes["none"] and sizes["names"] < 0.8 * sizes["none"]
