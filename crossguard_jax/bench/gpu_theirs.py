"""transformers and PEFT beside ``gpu_ours``: a process that prints a JSON line a row."""

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from crossguard_jax.bench.gpu_sizes import Sizes, report, timed

ALPHA, BEFORE, LABELS, LEARNING_RATE, RANK = 32, 4, (1_000, 2_000), 1e-4, 16
TARGETS = r".*(vision_tower|language_model)\..*\.(q|k|v|o|out|gate|up|down)_proj"
EPSILON, PGD_STEPS = 8 / 255, 10


class Rival:
    """The model of random weights, and each row of the table by name."""

    def __init__(self, sizes: Sizes):
        self.sizes = sizes
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = getattr(torch, sizes.dtype)
        text = {k: v for k, v in sizes.text.items()}
        config = LlavaConfig(
            vision_config=CLIPVisionConfig(**sizes.vision),
            text_config=LlamaConfig(**text, pad_token_id=0),
            image_token_index=32_000,
        )
        torch.manual_seed(0)
        torch.set_default_dtype(self.dtype)
        with torch.device(self.device):
            base = LlavaForConditionalGeneration(config)
        torch.set_default_dtype(torch.float32)
        self.patches = (sizes.vision["image_size"] // sizes.vision["patch_size"]) ** 2
        adapters = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS)
        self.model: Any = get_peft_model(base, adapters)

    def card(self) -> dict[str, Any]:
        """The device, and its rate on one large matrix product in the model's own type."""
        n = self.sizes.product
        a = torch.randn(n, n, device=self.device).to(self.dtype)
        figures = timed(lambda: self._done(a @ a), least=9)
        name = torch.cuda.get_device_name() if self.device == "cuda" else "cpu"
        flops = 2.0 * n**3 / figures["seconds"]
        versions = {"torch": torch.__version__}
        return {"device": name, "flops_per_second": flops, "versions": versions}

    def rows(self, n: int) -> dict[str, Any]:
        """Random rows, as `base.make_batch`'s."""
        rng, side = np.random.default_rng(0), self.sizes.vision["image_size"]
        ids = rng.integers(3, 31_000, (n, self.patches + self.sizes.n_text))
        ids[:, BEFORE : BEFORE + self.patches] = 32_000
        pixels = torch.as_tensor(rng.normal(size=(n, 3, side, side)))
        arrays = {
            "input_ids": torch.as_tensor(ids),
            "attention_mask": torch.ones(ids.shape, dtype=torch.long),
            "pixel_values": pixels.to(self.dtype),
        }
        return {name: x.to(self.device) for name, x in arrays.items()}

    def _done(self, result: Any = None) -> Any:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return result

    def _measured(self, run: Callable[[], Any], n: int) -> dict[str, Any]:
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        figures = timed(lambda: self._done(run()))
        peak = torch.cuda.max_memory_allocated() if self.device == "cuda" else 0
        return figures | {"rows": n, "peak_bytes": peak}

    def _logits(self, batch: dict[str, Any]) -> Any:
        return self.model(**batch, logits_to_keep=1).logits[:, -1].float()

    def step(self, n: int) -> dict[str, Any]:
        """A LoRA step on ``n`` rows, whose loss is over the vocabulary."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        adam, batch = torch.optim.AdamW(trained, LEARNING_RATE), self.rows(n)
        labels = torch.arange(n, device=self.device) % 2 * 1_000 + 1_000

        def run() -> None:
            torch.nn.functional.cross_entropy(self._logits(batch), labels).backward()
            adam.step()
            adam.zero_grad()

        return self._measured(run, n)

    def score(self, n: int) -> dict[str, Any]:
        """One forward pass on ``n`` rows."""
        batch = self.rows(n)

        def run() -> None:
            with torch.inference_mode():
                self._logits(batch)[:, list(LABELS)].softmax(-1)

        return self._measured(run, n)

    def pgd(self, n: int) -> dict[str, Any]:
        """Ten steps on ``n`` pictures."""
        self.model.requires_grad_(False)
        batch = self.rows(n)
        start = batch.pop("pixel_values").float()
        labels = torch.arange(n, device=self.device) % 2

        def run() -> None:
            x = start.clone()
            for _ in range(PGD_STEPS):
                x.requires_grad_(True)
                pixels = {"pixel_values": x.to(self.dtype)}
                logits = self._logits(batch | pixels)[:, list(LABELS)]
                loss = torch.nn.functional.cross_entropy(logits, labels)
                (gradient,) = torch.autograd.grad(loss, x)
                moved = x.detach() + EPSILON / 4 * gradient.sign()
                x = start + (moved - start).clamp(-EPSILON, EPSILON)

        return self._measured(run, n)

    def generate(self, n: int) -> dict[str, Any]:
        """generate() on ``n`` prompts, and one forward pass over prompts and texts: what there is
        beside PPO."""
        sizes, rng = self.sizes, np.random.default_rng(0)
        prompt = torch.as_tensor(rng.integers(3, 31_000, (n, sizes.prompt))).to(self.device)
        options = {"max_new_tokens": sizes.new, "min_new_tokens": sizes.new, "do_sample": True}
        whole = prompt.repeat(1, 2)[:, : sizes.prompt + sizes.new]

        def write() -> None:
            self.model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **options)

        def read() -> None:
            with torch.inference_mode():
                self.model(input_ids=whole, logits_to_keep=sizes.new)

        figures = self._measured(write, n)
        return figures | {"forward_seconds": self._measured(read, n)["seconds"]}


def main(argument: str) -> None:
    """Measures the rows that ``argument`` names, of its sizes; a step that does not fit again
    with its activations computed twice."""
    order = json.loads(argument)
    side = Rival(Sizes(**order["sizes"]))
    report("card", **side.card())
    for name in order["rows"]:
        n = side.sizes.texts if name == "generate" else side.sizes.rows
        try:
            report(name, **getattr(side, name)(n))
        except torch.cuda.OutOfMemoryError:
            side.model.gradient_checkpointing_enable({"use_reentrant": False})
            side.model.enable_input_require_grads()
            side.model.train()
            report(name, **getattr(side, name)(n), checkpointed=True)


if __name__ == "__main__":
    main(sys.argv[1])
