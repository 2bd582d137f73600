"""Writes a random open_clip model as a folder, with open_clip's own results: our reference.

``python tests/hf/open_clip_reference.py SEED FOLDER``, in an environment that has open_clip_torch
3.3.0. ``fixtures/open_clip/SEED`` is what it writes. open_clip wants torchvision, whose wheels do
not fit a torch without CUDA, and with a torchvision that does not fit no picture processor of
transformers can be imported. So it is kept out of the tests' own environment::

    pip install --no-deps --target DIR open_clip_torch==3.3.0 torchvision==0.28.0 timm ftfy wcwidth
    CROSSGUARD_OPEN_CLIP=DIR pytest tests/hf/test_open_clip.py
"""

import gzip
import json
import random
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

try:
    import torchvision.ops  # noqa: F401
except RuntimeError:  # its compiled half does not load, and nothing here needs it
    for name in ("nms", "qnms"):
        schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        torch.library.define(f"torchvision::{name}", schema)
    for module in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
        del sys.modules[module]

import open_clip
from open_clip.push_to_hf_hub import save_config_for_hf
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2

MERGES = """
t h
th e</w>
i n
r e
e r</w>
o n</w>
in g</w>
k e
ke t
t l
tl e</w>
ket tle</w>
re d</w>
a n
an d</w>
h o
ho t</w>
""".strip()
TEXTS = [
    "a red kettle",
    "The  HOT kettle, and the pan.",
    "",
    "it's 42% hot!! don't",
    "ça va? Ünïcödé 東京 🍳",
    "the kettle and the pan and the hot thing " * 4,
]
SIZES = [(40, 23), (23, 40), (31, 31), (64, 16), (7, 9), (45, 32)]


def draw(rng: random.Random, vocab_size: int) -> dict:
    """``model_cfg`` and ``preprocess_cfg``: what a published folder may set, drawn at random."""
    patch, head = rng.choice([4, 6, 8]), rng.choice([8, 12])
    vision = {
        "layers": rng.choice([1, 2]),
        "width": head * rng.choice([2, 3]),
        "head_width": head,
        "patch_size": patch,
        "image_size": patch * rng.choice([2, 3]) + rng.choice([0, 1]),
    }
    heads = rng.choice([2, 3])
    text = {
        "context_length": rng.choice([16, 21]),
        "vocab_size": vocab_size,
        "width": heads * 8,
        "heads": heads,
        "layers": rng.choice([1, 2]),
    }
    for tower in (vision, text):
        if rng.random() < 0.5:
            tower["mlp_ratio"] = rng.choice([2.0, 2.6667])
        if rng.random() < 0.5:
            tower["norm_kwargs"] = {"eps": rng.choice([1e-6, 1e-3])}
    model = {"embed_dim": rng.choice([12, 20]), "vision_cfg": vision, "text_cfg": text}
    activation = rng.choice(["gelu", "quick", "tanh"])
    if activation == "quick":
        model["quick_gelu"] = True
    elif activation == "tanh":
        vision["act_kwargs"] = text["act_kwargs"] = {"approximate": "tanh"}
    if rng.random() < 0.5:
        model["custom_text"] = True
    preprocess = {
        "interpolation": rng.choice(["bicubic", "bilinear"]),
        "resize_mode": rng.choice(["shortest", "shortest", "longest", "squash"]),
    }
    if rng.random() < 0.7:
        preprocess["mean"] = [round(rng.uniform(0.3, 0.6), 3) for _ in range(3)]
        preprocess["std"] = [round(rng.uniform(0.1, 0.4), 3) for _ in range(3)]
    return {"model": model, "preprocess": preprocess}


def build(settings: dict, seed: int) -> torch.nn.Module:
    """open_clip's model with every weight random, norms and biases too."""
    kind = open_clip.CustomTextCLIP if settings.get("custom_text") else open_clip.CLIP
    model = kind(**{k: v for k, v in settings.items() if k != "custom_text"})
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim >= 2:
                p.normal_(0, p[0].numel() ** -0.5)
            elif ".ln_" in name and name.endswith("weight"):
                p.uniform_(0.5, 1.5)
            elif name != "logit_scale":
                p.normal_(0, 0.1)
    return model.eval()


def main(seed: int, folder: Path) -> None:
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    bpe = folder / "bpe_simple_vocab_16e6.txt.gz"
    with bpe.open("wb") as file, gzip.GzipFile(fileobj=file, mode="wb", mtime=0) as packed:
        packed.write(f"version\n{MERGES}".encode())
    merges = MERGES.split("\n")
    tokenizer = SimpleTokenizer(str(bpe))
    assert tokenizer.vocab_size == 512 + len(merges) + 2
    settings = draw(rng, tokenizer.vocab_size)
    model = build(settings["model"], seed)
    cfg = PreprocessCfg(size=model.visual.image_size, **settings["preprocess"])
    model.visual.preprocess_cfg = settings["preprocess"]
    model.visual.image_mean, model.visual.image_std = cfg.mean, cfg.std
    save_config_for_hf(model, folder / "open_clip_config.json", settings["model"])
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")

    noise = np.random.default_rng(seed)
    pictures = {
        f"picture_{i}": noise.integers(0, 256, (height, width, 3), np.uint8)
        for i, (width, height) in enumerate(SIZES)
    }
    transform = image_transform_v2(cfg, is_train=False)
    pixels = torch.stack([transform(Image.fromarray(p)) for p in pictures.values()])
    ids = tokenizer(TEXTS, context_length=settings["model"]["text_cfg"]["context_length"])
    with torch.no_grad():
        results = {
            "ids": ids,
            "pixels": pixels,
            "picture_vectors": model.encode_image(pixels, normalize=True),
            "text_vectors": model.encode_text(ids, normalize=True),
            "logit_scale": model.logit_scale.detach().clone(),
        }
    results |= {name: torch.tensor(p) for name, p in pictures.items()}
    save_file(results, folder / "expected.st")
    (folder / "texts.json").write_text(json.dumps(TEXTS))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
