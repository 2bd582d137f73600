"""CMAI: a consistency check, adversarial training across modalities, and an adaptive mechanism.

From the proposal: S_c, the seed's inner objective, the mixed outer loss, the controller's rule and
the four ways to answer. It gives no number for any field below, so every number here is ours.

A variant is a scale (``tiny``, ``vqa_tiny`` on another task, ``llava_7b``) and perhaps an ablation
of it: ``cmcv`` is ``tiny``'s, ``vqa_cmcv`` and ``llava_7b_cmcv`` the others'.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

# Of a LLaVA, or of a CLIP.
VISION = r"vision_(tower|model)\..*\.(q|k|v|out)_proj"
WHOLE_VISION = r"vision_(tower|model)\..*\.((q|k|v|out)_proj|fc1|fc2)"
LANGUAGE = r"(language_model|text_model)\..*\.(q|k|v|o|out|gate|up|down)_proj"
PROJECTOR = r"multi_modal_projector\..*"
IMPFORGE = "data/impforge/train.jsonl"


def common() -> ConfigDict:
    """What every scale begins with."""
    config = ConfigDict()
    # What is immunized: a guard, or any LLaVA; toy:// is a model that ships with the package.
    # vision_tower: a published robust tower in place of a LLaVA's own; see configs/guard.py.
    config.model = {
        "path": "runs/quickstart/models/guard",
        "dtype": "float32",
        "remat": "names",
        "vision_tower": "",
    }
    # "answers": of a closed list, by the words they begin with; none are the prompt's two. Or the
    # most common labels of the training rows, as many as are asked for. "vqa", "captions": in the
    # model's own words, to `form` (of a question, with its {text} in it). "retrieval": of a CLIP.
    config.task = {
        "kind": "answers",
        "labels": (),
        "most_common": 0,
        "form": "{text}",
        "max_new_tokens": 40,
    }
    # Layers: the numbers of those that learn, in every tower that `targets` matches; () is all.
    config.lora = {"rank": 16, "alpha": 32.0, "targets": f"{VISION}|{LANGUAGE}", "layers": ()}
    config.cmcv = {
        "on": True,
        # "heads" (the cosine of two projections) or "verifier" (a probability).
        "kind": "heads",
        "shared_width": 64,
        "hidden_width": 128,
        # "clip" (the text twin of LLaVA's own picture tower) or "language_model".
        "text_source": "clip",
        "text_path": "toy://clip",
        # The check learns alone first, and beside MBAT with this weight; jointly: its loss moves
        # the adapter too.
        "train": {"steps": 200, "batch_size": 64, "save_every": 200},
        "optim": optim(learning_rate=1e-3),
        "weight": 0.5,
        "joint": False,
        # Beside MBAT, the check learns that a picture fits its text less once it is attacked.
        "adversarial": True,
        # Noise on the pictures that the check learns from, up to this standard deviation (pixels in
        # [0, 1]): what a certificate of its cut has to see through. Costs a pass of the picture
        # tower beside MBAT.
        "noise": 0.0,
        # The share of clean pairs that must pass, and how sure that is.
        "pass_rate": 0.99,
        "confidence": 0.95,
    }
    config.mbat = {
        "on": True,
        # "answers" (the task's loss) or "features" (how far the picture's features move).
        "goal": "answers",
        # "seed", "evasive" or "both" (drawn for each row); "picture", "text" (its embeddings),
        # "both" of these, or "edits" of the text's letters, of which `steps` are tried.
        "inner": "both",
        "perturb": "picture",
        "alpha": 1.0,
        "evasion": 10.0,
        "norm": "linf",
        "steps": 3,
        "text_epsilon": 0.0,
        "edits": 2,
        # What is learned from adversarial rows: the "task", or "trades": the model's own answers to
        # the clean ones, weighed lambda / (1 - lambda).
        "outer": "task",
    }
    config.arm = {
        # Training: the adversary is hardened while the mean S_c of its rows is below what this
        # share of clean pairs is below, or varies more than this.
        "alarm_rate": 0.5,
        "max_variance": float("inf"),
        # Whether that, and what the evasive adversary stays above, follow the training rows' clean
        # S_c, which moves as the check learns on.
        "follow": True,
        # From start to maximum in 50 alarms. A ramp of 200, half of the training with a weaker
        # adversary, cost VQA 7 points of robust accuracy.
        "beta": {"start": 0.1, "maximum": 0.5, "step": 0.01, "decay": 0.0},
        "epsilon": {"start": 6 / 255, "maximum": 8 / 255, "step": 0.04 / 255, "decay": 0.0},
        "lambda_": {"start": 0.35, "maximum": 0.4, "step": 0.002, "decay": 0.0},
        # Inference: each branch ends where this share of clean pairs is above it.
        "branches": (
            {"pass_rate": 0.99, "do": "reject"},
            {"pass_rate": 0.9, "do": "smooth", "n": 2, "sigma": 0.03},
        ),
    }
    config.data = {
        # A prompt's name; "" is what the model folder says.
        "prompt": "short",
        "blank": "",
        # "pad" or "crop" a picture that is no square; "" is what the model folder says.
        "picture": "",
        "max_length": 48,
        # Whether rows are put with others about as long, of 32 batches at a time, and padded to
        # those: saves tokens, costs a compilation a length. Else all are padded to max_length.
        "buckets": False,
        # More danger that only the picture shows than a guard learns from: a tower that is held
        # still forgets that first.
        "sources": {
            "implicit": small_world("implicit", weight=0.25, limit=6_144),
            "implicit_wide": small_world("implicit_wide", weight=0.05, limit=2_048),
            "explicit_text": small_world("explicit_text", weight=0.15, limit=8_192),
            "explicit_picture": small_world("explicit_picture", weight=0.22, limit=4_096),
            "picture_only": small_world("picture_only", weight=0.03, limit=2_048),
            "typographic": small_world("typographic", weight=0.1, limit=4_096),
            "benign_vqa": small_world("benign_vqa", weight=0.18, limit=4_096),
            "talk": small_world("talk", weight=0.02, limit=2_048),
        },
        # Rows made of those sources': see configs/guard.py.
        "augment": {
            "long": 0.1,
            "injected": 0.03,
            "max_length": 96,
            "talk": small_world("talk", limit=4_096),
        },
        # Clean pairs that nothing learned from: where the check cuts rests on them.
        "validation": {
            "implicit": small_world("implicit", split="val", limit=1_024),
            "benign_vqa": small_world("benign_vqa", split="val", limit=512),
        },
    }
    # At 3e-3 one seed of three forgot what it knew: 93% of clean test rows right, not 98 or 99%.
    config.optim = optim(learning_rate=2e-3)
    # The loss is -log p(answer) over the "vocabulary" or over the answers' "labels" alone.
    config.train = {
        "steps": 400,
        "batch_size": 16,
        "save_every": 100,
        "seed": 0,
        "loss": "vocabulary",
    }
    config.attack = attack()
    # Devices along each axis of the mesh, -1 for all that are left.
    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1}
    # Logical axis -> mesh axis, laid over the default table; None keeps an axis whole.
    config.axis_rules = {}
    return config


def tiny() -> ConfigDict:
    """All of CMAI on the small world's guard: minutes on two cores, through the code of the 7B."""
    config = common()
    # What `toy immunizing` says is worth its cost. The tower's MLPs, the projector and the rank
    # were worth 13 points of robust accuracy; a lambda of 0.7 from the first step on left 70% of
    # clean rows right; and where a 14th of the rows was lettering, a guard forgot to read it.
    config.lora.update({"rank": 32, "alpha": 64.0})
    config.lora.targets = f"{WHOLE_VISION}|{PROJECTOR}|{LANGUAGE}"
    config.mbat.steps = 2
    config.arm.epsilon.update({"start": 2 / 255, "step": 0.06 / 255})
    config.arm.lambda_.update({"start": 0.3, "maximum": 0.6, "step": 0.003})
    weights = {
        "implicit": 0.4,
        "explicit_text": 0.13,
        "explicit_picture": 0.13,
        "typographic": 0.13,
        "benign_vqa": 0.11,
    }
    for name, weight in weights.items():
        config.data.sources[name].weight = weight
    config.train.steps = 500
    return config


def tiny_long() -> ConfigDict:
    """`tiny` to the end, in the small world: 1,400 steps of 32 rows, eighteen minutes of a core."""
    config = tiny()
    config.train.update({"steps": 1_400, "batch_size": 32, "save_every": 200})
    return config


def forged() -> ConfigDict:
    """The implicit rows are what ``forge`` wrote; what does not agree is rejected, no more."""
    config = tiny()
    config.arm.branches = ({"pass_rate": 0.99, "do": "reject"},)
    # Quickstart has twelve minutes for all it does.
    del config.attack.attacks.policy, config.attack.attacks.transfer
    for name, steps in {"apgd": 20, "selective": 20, "square": 60}.items():
        config.attack.attacks[name].steps = steps
    del config.data.sources.implicit_wide
    implicit = config.data.sources.implicit
    implicit.update({"reader": "table", "path": "runs/forge/train.jsonl", "limit": 0})
    return config


def vqa_tiny() -> ConfigDict:
    """Questions with a closed list of answers, of a LLaVA as it is."""
    config = common()
    config.model.path = "toy://llava"
    config.task.most_common = 64
    config.optim.learning_rate = 3e-3  # no seed forgets here
    config.data.picture = "pad"
    config.data.sources = {"vqa": small_world("vqa_closed", limit=8_192)}
    # More words would make another question.
    config.data.augment.update({"long": 0.0, "injected": 0.0, "talk": source("", "")})
    config.data.validation = {"vqa": small_world("vqa_closed", split="val", limit=1_024)}
    return config


def captions_tiny() -> ConfigDict:
    """What a LLaVA says of a picture, of a LLaVA as it is; the check holds the picture against the
    caption."""
    config = vqa_tiny()
    config.task.update({"kind": "captions", "most_common": 0, "form": "describe the picture."})
    config.data.sources = {"captions": small_world("captions", limit=8_192)}
    config.data.validation = {"captions": small_world("captions", split="val", limit=1_024)}
    config.data.max_length = 80
    config.arm.branches = ({"pass_rate": 0.99, "do": "reject"},)
    return config


def retrieval_tiny() -> ConfigDict:
    """Which caption a picture has and the reverse, of a CLIP as it is."""
    config = captions_tiny()
    config.task.kind = "retrieval"
    config.model.path = "toy://clip"
    config.train.batch_size = 64  # rows are each other's wrong answers
    return config


def llava_7b() -> ConfigDict:
    """All of CMAI on what `guard.py:llava_7b` makes, exported."""
    config = common()
    config.model.update({"path": "runs/guard_7b/merged", "dtype": "bfloat16"})
    config.cmcv.update({"shared_width": 512, "hidden_width": 1_024})
    # The text twin of LLaVA-1.5's own picture tower.
    config.cmcv.text_path = "openai/clip-vit-large-patch14-336"
    config.attack.sentence = "sentence-transformers/all-MiniLM-L6-v2"
    config.cmcv.train.update({"steps": 1_000, "save_every": 250})
    config.cmcv.optim.accumulate = 4
    config.data.update({"prompt": "", "max_length": 768, "buckets": True})
    # The guard has not seen the tenth that is held out here, nor VQAv2's validation split.
    config.data.sources = {
        "implicit": source("table", IMPFORGE, weight=0.4, tenth="without"),
        "vlguard": source("vlguard", "data/VLGuard", weight=0.3, tenth="without"),
        "figstep": source("figstep_twins", "data/FigStep", weight=0.1, tenth="without"),
        "vqav2": source("vqav2", "data/VQAv2", weight=0.2, limit=20_000),
    }
    config.data.augment.max_length = 1_024
    config.data.augment.talk = source("vqav2", "data/VQAv2", limit=20_000)
    # FigStep's one text fits none of its pictures, so it says nothing of where the check cuts.
    config.data.validation = {
        "implicit": source("table", IMPFORGE, tenth="only"),
        "vlguard": source("vlguard", "data/VLGuard", tenth="only"),
        "vqav2": source("vqav2", "data/VQAv2", split="val", limit=1_000),
    }
    config.optim.update({"learning_rate": 1e-4, "warmup_steps": 100, "accumulate": 2})
    config.train.update({"steps": 2_000, "save_every": 250})
    # The frozen base is what fills the memory, so every device holds a part of it.
    config.mesh = {"data": 1, "fsdp": -1, "tensor": 1}
    return config


def cmcv(config: ConfigDict) -> ConfigDict:
    """Row (i): the consistency check alone; the model stays as it is."""
    config.mbat.on = False
    config.arm.branches = ({"pass_rate": 0.99, "do": "reject"},)
    return config


def mbat(config: ConfigDict) -> ConfigDict:
    """Row (ii): adversarial training alone, with nothing that checks."""
    config = fixed(config)
    config.cmcv.on = False
    config.arm.branches = ()
    return config


def cmcv_mbat(config: ConfigDict) -> ConfigDict:
    """Row (iii): both, with a fixed adversary and rejection as the only way out."""
    config = fixed(config)
    config.arm.branches = ({"pass_rate": 0.99, "do": "reject"},)
    return config


def seed(config: ConfigDict) -> ConfigDict:
    """Row (iv) with the proposal's adversary alone, which lowers S_c."""
    config.mbat.inner = "seed"
    return config


def evasive(config: ConfigDict) -> ConfigDict:
    """Row (iv) with the adversary alone that stays consistent."""
    config.mbat.inner = "evasive"
    return config


def clean_check(config: ConfigDict) -> ConfigDict:
    """Row (iv) with a check that learns from clean pairs alone."""
    config.cmcv.adversarial = False
    return config


def noisy_check(config: ConfigDict) -> ConfigDict:
    """Row (iv) with a check that learns through as much noise as certificates are sampled with."""
    config.cmcv.noise = config.attack.certificate.sigma
    return config


def other_loss(config: ConfigDict) -> ConfigDict:
    """Row (iv) with cross-entropy over the answers where the scale has it over the vocabulary, and
    the reverse."""
    losses = {"vocabulary": "labels", "labels": "vocabulary"}
    config.train.loss = losses[config.train.loss]
    return config


def pgd_at(config: ConfigDict) -> ConfigDict:
    """Baseline: PGD adversarial training of the vision tower."""
    config = mbat(config)
    # As much of the tower as the scale itself adapts.
    whole = config.lora.targets.startswith(WHOLE_VISION)
    config.lora.targets = WHOLE_VISION if whole else VISION
    return config


def fare(config: ConfigDict) -> ConfigDict:
    """Baseline: a vision tower that keeps its clean features under attack (arXiv 2402.12336)."""
    config = pgd_at(config)
    config.mbat.goal = "features"
    config.arm.lambda_.update({"start": 1.0, "maximum": 1.0})
    return config


def e2at(config: ConfigDict) -> ConfigDict:
    """Baseline: joint training of projector and language model, both modalities perturbed, after
    E2AT (arXiv 2503.04833)."""
    config = mbat(config)
    config.lora.targets = f"{PROJECTOR}|{LANGUAGE}"
    config.mbat.update({"perturb": "both", "text_epsilon": 0.05})
    return config


def fixed(config: ConfigDict) -> ConfigDict:
    """Without a controller: the adversary is what it will be from the first step on."""
    for knob in (config.arm.beta, config.arm.epsilon, config.arm.lambda_):
        knob.start = knob.maximum
    return config


def attack() -> dict[str, object]:
    """The suite that judges: the same for every row of a table."""
    return {
        "norm": "linf",
        "epsilons": tuple(level / 255 for level in (0, 4, 8, 16, 32)),
        # Each attack on what it has not broken itself, so that attacks can be compared.
        "alone": False,
        # A guard is also attacked where this share of clean safe rows is answered "unsafe": at even
        # odds alone, one that is sure of itself looks robust. () leaves it at those.
        "fpr": (0.01, 0.05),
        # Small, since the last batch of the rows that still stand is filled up.
        "batch_size": 16,
        # Evaluations that a judge takes the mean of, where the system is random.
        "draws": 4,
        # Of several pictures of a row, the one that is perturbed, by its place; -1 is all.
        "picture": -1,
        "seed": 0,
        "attacks": {
            # Oblivious of what checks; aware of it; through all the policy's branches and noise;
            # without gradients; and made on the model that was never immunized.
            "apgd": {"search": "apgd", "climb": "margin", "steps": 40},
            "selective": {"search": "apgd", "climb": "selective", "steps": 40},
            "policy": {"search": "pgd", "climb": "policy", "steps": 5, "samples": 2},
            "square": {"search": "square", "climb": "selective", "steps": 100},
            "transfer": {"search": "pgd", "climb": "margin", "steps": 10, "transfer": True},
        },
        # Twice the steps and the restarts, on some rows at one radius; single attacks and saved
        # pictures are of that radius, too. No rows: not at all.
        "convergence": {"epsilon": 8 / 255, "rows": 64},
        # What measures how like an edited text is to the user's; "" measures nothing.
        "sentence": "toy://sentence",
        # Randomized smoothing: noise, samples that choose and that bound, the chance to be wrong;
        # rows and samples of a forward pass; and the attack that each certificate has to stand.
        "certificate": {
            "sigma": 0.12,
            "n0": 100,
            "n": 1_000,
            "alpha": 0.001,
            "rows": 8,
            "chunk": 50,
            "steps": 10,
            "samples": 8,
        },
    }


def nlvr() -> ConfigDict:
    """Pair reasoning: is a sentence true of a picture (NLVR v1)? On what `guard.py:nlvr` makes,
    exported."""
    config = common()
    config.model.path = "runs/nlvr/model"
    config.data.update({"prompt": "true_false", "max_length": 96})
    config.data.sources = {"nlvr": source("nlvr", "data/nlvr", split="train")}
    config.data.augment.update({"long": 0.0, "injected": 0.0, "talk": source("", "")})
    config.data.validation = {"nlvr": source("nlvr", "data/nlvr", split="dev")}
    return config


def optim(learning_rate: float) -> dict[str, object]:
    """Adam with warm-up and a cosine to 0."""
    return {
        "learning_rate": learning_rate,
        "schedule": "cosine",
        "warmup_steps": 20,
        "end_learning_rate": 0.0,
        "b1": 0.9,
        "b2": 0.99,
        "weight_decay": 0.0,
        "clip_norm": 1.0,
        # Microbatches to a step; the gradient is that of the whole batch.
        "accumulate": 1,
    }


def source(
    reader: str,
    path: str,
    *,
    split: str = "train",
    weight: float = 1.0,
    limit: int = 0,
    tenth: str = "",
) -> dict[str, object]:
    """Where rows come from, and their share of the mixture; see ``configs/guard.py``."""
    return {
        "reader": reader,
        "path": path,
        "split": split,
        "weight": weight,
        "limit": limit,
        "labels": (),
        "tenth": tenth,
    }


def small_world(
    name: str, *, split: str = "train", weight: float = 1.0, limit: int
) -> dict[str, object]:
    """One of the small world's sources, drawn when it is asked for."""
    return source("toy", name, split=split, weight=weight, limit=limit)


def ablated(
    base: Callable[[], ConfigDict], ablation: Callable[[ConfigDict], ConfigDict]
) -> Callable[[], ConfigDict]:
    """The variant of a scale and an ablation."""

    def variant() -> ConfigDict:
        return ablation(base())

    variant.__doc__ = f"`{base.__name__}`: {ablation.__doc__}"
    return variant


ABLATIONS = (
    *(cmcv, mbat, cmcv_mbat, seed, evasive, clean_check, noisy_check, other_loss),
    *(pgd_at, fare, e2at),
)
"""Each of any scale; ``tiny``'s go by their names alone."""

SCALES = {
    "": tiny,
    "vqa_": vqa_tiny,
    "captions_": captions_tiny,
    "retrieval_": retrieval_tiny,
    "llava_7b_": llava_7b,
}

VARIANTS = {
    "tiny": tiny,
    "tiny_long": tiny_long,
    "vqa_tiny": vqa_tiny,
    "captions_tiny": captions_tiny,
    "retrieval_tiny": retrieval_tiny,
    "llava_7b": llava_7b,
    "forged": forged,
    "nlvr": nlvr,
}
VARIANTS |= {
    f"{prefix}{ablation.__name__}": ablated(base, ablation)
    for prefix, base in SCALES.items()
    for ablation in ABLATIONS
    # Only a closed list has answers to compare among each other alone.
    if ablation is not other_loss or base().task.kind == "answers"
}


def get_config(variant: str) -> ConfigDict:
    """The configuration of that name."""
    return VARIANTS[variant]()
