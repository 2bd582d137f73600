"""TRL's PPO trainer, one iteration a request; runs as a script in an environment of its own.

Nothing here imports the package, as that environment has no JAX. ``python trl_worker.py SETTINGS``
says in one line of JSON what it has loaded; then each line that it reads makes one iteration, and
one line of JSON answers it. It ends where its input ends.
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO


def share_of_vowels(text: str) -> float:
    """The stub in place of a reward model, on both sides; its cost does not depend on a model."""
    return sum(letter in "aeiou" for letter in text) / max(len(text), 1)


def main() -> None:
    """Loads all, says so, and works until its input ends."""
    # Libraries print where they like: answers go out by a stream of their own.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    settings = json.loads(Path(sys.argv[1]).read_text())
    trainer, hello = _load(settings)
    trainer.add_callback(_turns(answers, hello))
    trainer.train()


def _load(settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    import torch
    import transformers
    import trl
    from datasets import Dataset
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    torch.set_num_threads(settings["threads"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(settings["folder"], padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(settings["folder"], dtype="float32")
    check = torch.tensor(settings["check"])
    with torch.no_grad():
        distribution = policy(input_ids=check).logits[:, :-1].log_softmax(-1)
    logprobs = distribution.gather(2, check[:, 1:, None]).sum((1, 2)).tolist()
    critic = AutoModelForSequenceClassification.from_pretrained(
        settings["folder"], num_labels=1, dtype="float32"
    )
    # The trainer wraps its policy by itself; a wrapped critic it would take for its own head.
    critic = inject_adapter_in_model(LoraConfig(**settings["lora"]), critic)
    critic.score.requires_grad_(True)
    prompts = [{"input_ids": ids} for ids in settings["prompts"]]
    trainer = PPOTrainer(
        args=PPOConfig(**settings["ppo"]),
        processing_class=tokenizer,
        model=policy,
        ref_model=None,  # the policy without its adapter
        reward_model=_stub(tokenizer, check.shape[1]),
        value_model=critic,
        train_dataset=Dataset.from_list(prompts),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **settings["lora"]),
    )
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    versions = {m.__name__: m.__version__ for m in (trl, torch, transformers)}
    return trainer, {"versions": versions, "trained": trained, "logprobs": logprobs}


def _stub(tokenizer: Any, prompt_length: int) -> Any:
    """A reward model as TRL calls one, that reads the texts."""
    import torch

    class Stub(torch.nn.Module):
        base_model_prefix = "backbone"

        @property
        def backbone(self) -> "Stub":
            return self

        def forward(self, input_ids: Any, **options: Any) -> SimpleNamespace:
            texts = tokenizer.batch_decode(input_ids[:, prompt_length:], skip_special_tokens=True)
            scores = torch.tensor([share_of_vowels(text.strip()) for text in texts])
            states = scores[:, None, None].expand(-1, input_ids.shape[1], 1)
            return SimpleNamespace(hidden_states=(states,))

        def score(self, states: Any) -> Any:
            return states

    return Stub()


def _turns(answers: TextIO, hello: dict[str, Any]) -> Any:
    """Makes the trainer's loop wait for a request before each iteration."""
    from transformers import TrainerCallback

    def wait() -> None:
        if not sys.stdin.readline():
            sys.exit(0)

    class Turns(TrainerCallback):
        def on_train_begin(self, *args: Any, **options: Any) -> None:
            answers.write(json.dumps(hello) + "\n")
            wait()

        def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
            answers.write(json.dumps(state.log_history[-1]) + "\n")
            state.log_history.clear()
            wait()

    return Turns()


if __name__ == "__main__":
    main()
