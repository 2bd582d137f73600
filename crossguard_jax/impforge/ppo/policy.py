"""The rewriter as PPO sees it: policy, critic and reference over one frozen base.

Policy and critic are two small LoRA trees; the critic has a float32 head beside its own, zero at
the start. The reference is the same frozen base with empty LoRA slots: no second copy.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from crossguard_jax.core.typing import Array, Bool, Float, Int, PRNGKeyArray
from crossguard_jax.nn import lora, sampling
from crossguard_jax.nn.llama import Llama


@dataclass(frozen=True)
class RewriterPolicy:
    """The static half; every method takes the arrays.

    Attributes:
        adapted: graph of the model with LoRA, of policy and critic alike.
        bare: graph of the model without.
        max_new_tokens: N.
        eos_ids: tokens that end a text.
        pad_id: fills what is after the end.
        temperature: of sampling and of all log-probabilities.
    """

    adapted: Any
    bare: Any
    max_new_tokens: int
    eos_ids: tuple[int, ...]
    pad_id: int
    temperature: float = 1.0

    def sample(
        self,
        trainable: Any,
        frozen: Any,
        prompt: Int[Array, "B L"],
        prompt_mask: Bool[Array, "B L"],
        key: PRNGKeyArray,
    ) -> sampling.Sampled:
        """Texts for left-padded prompts, by the policy."""
        model = lora.merge(self.adapted, trainable["policy"], frozen)
        return self._sample(model, prompt, prompt_mask, key)

    def sample_reference(
        self, frozen: Any, prompt: Int[Array, "B L"], prompt_mask: Bool[Array, "B L"], key: Any
    ) -> sampling.Sampled:
        """Texts by the reference."""
        return self._sample(lora.merge(self.bare, frozen), prompt, prompt_mask, key)

    def _sample(self, model: Llama, prompt: Array, mask: Array, key: Any) -> sampling.Sampled:
        return sampling.sample(
            model,
            model.embed_tokens(prompt),
            mask,
            key,
            max_new_tokens=self.max_new_tokens,
            eos_ids=self.eos_ids,
            pad_id=self.pad_id,
            temperature=self.temperature,
        )

    def evaluate(
        self, trainable: Any, frozen: Any, inputs: dict[str, Array]
    ) -> tuple[Float[Array, "B N"], Float[Array, "B N"]]:
        """Log-probabilities of the texts' tokens, and the critic's value before each token.

        Args:
            trainable: ``policy`` and ``critic`` adapters, and the critic's ``head``.
            frozen: the base.
            inputs: ``prompt``, ``prompt_mask`` [B, L], ``tokens``, ``mask`` [B, N].
        """
        model = lora.merge(self.adapted, trainable["policy"], frozen)
        logprobs = self._logprobs(model, inputs)
        critic = lora.merge(self.adapted, trainable["critic"], frozen)
        states = self._states(critic, inputs).astype(jnp.float32)
        head = trainable["head"]
        return logprobs, states @ head["kernel"] + head["bias"]

    def reference(self, frozen: Any, inputs: dict[str, Array]) -> Float[Array, "B N"]:
        """Log-probabilities of the texts' tokens under the reference."""
        return self._logprobs(lora.merge(self.bare, frozen), inputs)

    def _logprobs(self, model: Llama, inputs: dict[str, Array]) -> Array:
        states = self._states(model, inputs)
        return sampling.logprobs_of(model, states, inputs["tokens"], self.temperature)

    def _states(self, model: Llama, inputs: dict[str, Array]) -> Array:
        ids = jnp.concatenate([inputs["prompt"], inputs["tokens"]], axis=1)
        mask = jnp.concatenate([inputs["prompt_mask"], inputs["mask"]], axis=1)
        return sampling.completion_states(model, ids, mask, inputs["tokens"].shape[1])


def make_policy(
    model: Llama,
    *,
    targets: str,
    rank: int,
    alpha: float,
    key: PRNGKeyArray,
    max_new_tokens: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    temperature: float = 1.0,
) -> tuple[RewriterPolicy, dict[str, Any], Any]:
    """``(policy, trainable, frozen)`` from a base model.

    Args:
        model: the base; its arrays are shared, not copied.
        targets, rank, alpha: of both adapters; see `lora.attach`.
        key: of the adapters' start.
        max_new_tokens, eos_ids, pad_id, temperature: see `RewriterPolicy`.
    """
    keys = jax.random.split(key)
    base = lora.detach(model)
    adapted, policy, _ = lora.split(lora.attach(base, targets, rank, alpha, keys[0]))
    _, critic, frozen = lora.split(lora.attach(base, targets, rank, alpha, keys[1]))
    bare, _, _ = lora.split(base)
    width = model.config.hidden_size
    head = {"kernel": jnp.zeros(width), "bias": jnp.zeros(())}
    trainable = {"policy": policy, "critic": critic, "head": head}
    return (
        RewriterPolicy(adapted, bare, max_new_tokens, eos_ids, pad_id, temperature),
        trainable,
        frozen,
    )
