"""The guard: LoRA on both towers of a LLaVA, cross-entropy on the label that comes next.

From the paper (CrossGuard, arXiv 2510.17687): the base LLaVA-1.5-7B, adapters on the vision tower
and on the language model, the loss, and the mixture's kinds of data (implicit from ImpForge,
explicit from VLGuard and FigStep, benign from VQAv2). It gives no number for any field below, so
every number here is ours.

A variant is a scale (``tiny``, ``llava_7b``) and perhaps an ablation of it: ``explicit_only`` is
``tiny``'s, ``llava_7b_explicit_only`` the other's.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

# Regular expressions over whole module paths. A tower's layers are one stack, without an index.
VISION = r"vision_tower\..*\.(q|k|v|out)_proj"
LANGUAGE = r"language_model\..*\.(q|k|v|o|gate|up|down)_proj"
BENIGN = ("benign_vqa", "vqav2", "talk")
TRUTH = ("implicit", "implicit_wide", "two_pictures")
"""Sources of implicit rows; all but a forged table know what is true of the small world."""

IMPFORGE = "data/impforge/train.jsonl"


def tiny() -> ConfigDict:
    """The small world's guard: minutes on two cores, through the code of the 7B."""
    config = ConfigDict()
    # toy:// is a model that ships with the package; any Hub folder may stand here.
    # int8 rounds the frozen kernels, half the bytes of bfloat16, and has the rest in bfloat16;
    # int8-float32 has it in float32.
    # vision_tower: a folder whose picture tower takes the place of the model's own: FARE's, TeCoA's
    # or Sim-CLIP's, as open_clip's or transformers' CLIP; "" leaves it.
    config.model = {
        "path": "toy://llava",
        "dtype": "float32",
        "remat": "names",
        "vision_tower": "",
    }
    config.lora = {
        "rank": 16,
        "alpha": 32.0,
        "targets": f"{VISION}|{LANGUAGE}",
        # Numbers of the layers that learn, in every tower that `targets` matches; () is all.
        "layers": (),
    }
    config.data = {
        # A prompt by its name; it brings its two label words.
        "prompt": "short",
        # A control trains with one input the same for all: "picture" or "text".
        "blank": "",
        # A picture that is no square is padded to one ("pad") or loses its margins ("crop").
        "picture": "pad",
        # Tokens of a training row, its picture's among them. Of a longer harmless text one window
        # is learned from; a longer harmful one is left out.
        "max_length": 48,
        # Whether rows are put with others about as long, of 32 batches at a time, and padded to
        # those: saves tokens, costs a compilation a length. Else all are padded to max_length.
        "buckets": False,
        "sources": {
            "implicit": small_world("implicit", weight=0.18, limit=12_288),
            "implicit_wide": small_world("implicit_wide", weight=0.08, limit=4_096),
            "two_pictures": small_world("two_pictures", weight=0.1, limit=4_096),
            "explicit_text": small_world("explicit_text", weight=0.22, limit=16_384),
            "explicit_picture": small_world("explicit_picture", weight=0.07, limit=4_096),
            "picture_only": small_world("picture_only", weight=0.04, limit=2_048),
            "typographic": small_world("typographic", weight=0.09, limit=4_096),
            "benign_vqa": small_world("benign_vqa", weight=0.09, limit=8_192),
            "talk": small_world("talk", weight=0.13, limit=4_096),
        },
        # Rows made of those sources', as shares of all: "long" ones, filled up with sentences of
        # the talk, and ones with a forged turn "injected" into the text. They have more tokens:
        # how long a window the guard reads by.
        "augment": {
            "long": 0.25,
            "injected": 0.08,
            "max_length": 96,
            "talk": small_world("talk", limit=4_096),
        },
        "validation": {
            "implicit": small_world("implicit", split="val", limit=512),
            "benign_vqa": small_world("benign_vqa", split="val", limit=256),
        },
    }
    config.optim = {
        "learning_rate": 2e-3,
        "schedule": "cosine",
        "warmup_steps": 30,
        "end_learning_rate": 0.0,
        "b1": 0.9,
        "b2": 0.99,
        "weight_decay": 0.0,
        "clip_norm": 1.0,
        # Microbatches to a step; the gradient is that of the whole batch.
        "accumulate": 1,
    }
    config.train = {
        "steps": 1_200,
        "batch_size": 40,
        "eval_every": 150,
        "save_every": 150,
        # The checkpoint kept beside the latest: the one with the best validation figure, the
        # highest or, after "-", the lowest; of equals the later.
        "keep_best": "auroc",
        # -log p(label) over the whole "vocabulary", so that the guard answers by itself, or over
        # the two "labels" alone (the paper's binary cross-entropy).
        "loss": "vocabulary",
        # The share of steps in which the labels alone count, before the vocabulary does too: as a
        # first thing, lifting two words that the base never says there costs what it would say,
        # and the verdict needs that. A prompt that asks for the two words needs no such steps.
        "labels_first": 0.5,
        "seed": 0,
    }
    # Devices along each axis of the mesh, -1 for all that are left.
    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1}
    # Logical axis -> mesh axis, laid over the default table; None keeps an axis whole.
    config.axis_rules = {}
    return config


def tiny_long() -> ConfigDict:
    """`tiny` for four times as long, in the small world: what long texts want of its guard."""
    config = tiny()
    config.train.update({"steps": 4_800, "eval_every": 600, "save_every": 600})
    return config


def forged() -> ConfigDict:
    """The implicit rows are what ``forge`` wrote; no labelled row says which step is best."""
    config = tiny()
    _without(config, *TRUTH)
    config.data.sources.implicit = source("table", "runs/forge/train.jsonl", weight=0.4)
    config.data.validation = {}
    config.train.update({"eval_every": 0, "keep_best": ""})
    return config


def refuses_explicit() -> ConfigDict:
    """Not a guard but a target: refuses requests by what their words say, as aligned models do."""
    config = tiny()
    _without(config, *TRUTH)
    config.data.sources.named = small_world("named", weight=0.4, limit=12_288)
    config.data.validation = {"named": small_world("named", split="val", limit=512)}
    return config


def nlvr() -> ConfigDict:
    """The same training on another task: is a sentence true of a picture (NLVR v1)?"""
    config = tiny()
    config.data.prompt = "true_false"
    config.data.max_length = 96
    config.data.sources = {"nlvr": source("nlvr", "data/nlvr", split="dev")}
    # More words would make another statement.
    config.data.augment.update({"long": 0.0, "injected": 0.0, "talk": source("", "")})
    config.data.validation = {}
    # 989 rows: a few passes, and what fits them best beyond that is memory.
    config.train.update({"steps": 120, "eval_every": 0, "save_every": 60, "keep_best": ""})
    config.optim.warmup_steps = 10
    return config


def llava_7b() -> ConfigDict:
    """The paper's guard, from a downloaded LLaVA-1.5-7B and the sources' own downloads."""
    config = tiny()
    config.model.update({"path": "llava-hf/llava-1.5-7b-hf", "dtype": "bfloat16"})
    config.data.prompt = "llava_v1"
    # 576 picture tokens, the prompt's own words, and the text.
    config.data.update({"max_length": 768, "buckets": True})
    # FigStep with benign twins, since all of its own rows have one text.
    config.data.sources = {
        "implicit": source("table", IMPFORGE, weight=0.4, tenth="without"),
        "vlguard": source("vlguard", "data/VLGuard", weight=0.25, tenth="without"),
        "figstep": source("figstep_twins", "data/FigStep", weight=0.1, tenth="without"),
        "vqav2": source("vqav2", "data/VQAv2", weight=0.25, limit=20_000),
    }
    config.data.augment.max_length = 1_024
    config.data.augment.talk = source("vqav2", "data/VQAv2", limit=20_000)
    # Of training files alone: test files are for the test. VLGuard has both labels.
    config.data.validation = {
        "implicit": source("table", IMPFORGE, tenth="only"),
        "vlguard": source("vlguard", "data/VLGuard", tenth="only"),
        "figstep": source("figstep_twins", "data/FigStep", tenth="only"),
        "vqav2": source("vqav2", "data/VQAv2", split="val", limit=500),
    }
    config.optim.update({"learning_rate": 1e-4, "warmup_steps": 100, "accumulate": 8})
    # 64 rows divide over every slice up to 64 chips; one card takes eight at a time.
    config.train.batch_size = 64
    # Easy rows are in order long before the others are learned, and AUROC is 1 from then on.
    config.train.update({"steps": 2_000, "eval_every": 250, "save_every": 250})
    config.train.keep_best = "-loss"
    config.train.labels_first = 0.0
    # The frozen base is what fills the memory, so every device holds a part of it.
    config.mesh = {"data": 1, "fsdp": -1, "tensor": 1}
    return config


def explicit_only(config: ConfigDict) -> ConfigDict:
    """Ablation: danger that one modality shows alone and benign questions, nothing of ImpForge."""
    for name in TRUTH:
        if name in config.data.sources:
            config.data.sources[name].weight = 0.0
    return config


def no_benign(config: ConfigDict) -> ConfigDict:
    """Ablation: no safe row at all: no benign questions, no safe halves of the other sources."""
    for name, rows in config.data.sources.items():
        rows.labels = ("unsafe",)
        if name in BENIGN:
            rows.weight = 0.0
    return config


def vision_lora(config: ConfigDict) -> ConfigDict:
    """Ablation: adapters on the vision tower alone."""
    config.lora.targets = VISION
    return config


def language_lora(config: ConfigDict) -> ConfigDict:
    """Ablation: adapters on the language model alone."""
    config.lora.targets = LANGUAGE
    return config


def other_loss(config: ConfigDict) -> ConfigDict:
    """Ablation: cross-entropy over the two labels where the scale has it over the vocabulary, and
    the reverse."""
    losses = {"vocabulary": "labels", "labels": "vocabulary"}
    config.train.loss = losses[config.train.loss]
    return config


def at_once(config: ConfigDict) -> ConfigDict:
    """Ablation: the labels' mass counts from the first step on."""
    config.train.labels_first = 0.0
    return config


def crop(config: ConfigDict) -> ConfigDict:
    """Ablation: pictures lose their margins, as processors that crop have it."""
    config.data.picture = "crop"
    return config


def _without(config: ConfigDict, *names: str) -> None:
    for name in names:
        del config.data.sources[name]


def no_augment(config: ConfigDict) -> ConfigDict:
    """Ablation: no row is made longer, and none has a forged turn in its text."""
    config.data.augment.update({"long": 0.0, "injected": 0.0})
    return config


def source(
    reader: str,
    path: str,
    *,
    split: str = "train",
    weight: float = 1.0,
    limit: int = 0,
    tenth: str = "",
) -> dict[str, object]:
    """Where rows come from: a reader, what it reads, and the source's share of the mixture.

    A weight of 0 leaves the source out. A limit of 0 reads all rows; another draws so many, by
    ``train.seed``. ``labels`` keeps the rows with these labels, all where it is empty. A tenth of
    the rows, always the same, is held out of a file that has no validation split: ``tenth`` reads
    all the rows (""), those "without" it, or it "only".
    """
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


ABLATIONS = (explicit_only, no_benign, vision_lora, language_lora, other_loss, crop, no_augment)
"""Each of any scale; ``tiny``'s go by their names alone."""

VARIANTS = {
    "tiny": tiny,
    "tiny_long": tiny_long,
    "forged": forged,
    "llava_7b": llava_7b,
    "nlvr": nlvr,
    "refuses_explicit": refuses_explicit,
}
VARIANTS |= {ablation.__name__: ablated(tiny, ablation) for ablation in (*ABLATIONS, at_once)}
VARIANTS |= {f"llava_7b_{ablation.__name__}": ablated(llava_7b, ablation) for ablation in ABLATIONS}


def get_config(variant: str) -> ConfigDict:
    """The configuration of that name."""
    return VARIANTS[variant]()
