"""Attacked rows as a table with pictures, for any other system: ``evaluate`` and ``score`` read
them as they read any benchmark, and so does whatever reads PNG files and JSON lines."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crossguard_jax.attacks.curves import Curve, pictures_at
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.core.errors import UserError
from crossguard_jax.data.records import Record, write_jsonl
from crossguard_jax.evals.robustness.figures import level
from crossguard_jax.evals.robustness.prompts import SharedPicture
from crossguard_jax.evals.robustness.runs import cells_of
from crossguard_jax.evals.robustness.texts import AttackedTexts
from crossguard_jax.io.images import encode_png
from crossguard_jax.runtime import processes


def check_saving(config: Any, cells: Path) -> None:
    """Refuses a run whose pictures could not be saved, before it starts.

    Args:
        config: ``attack`` of ``configs/cmai.py``.
        cells: what earlier runs have left.

    Raises:
        UserError: the radius is none of the suite's, or an earlier run kept no pictures.
    """
    epsilon, radii = config.convergence.epsilon, [*config.epsilons]
    if epsilon not in radii:
        given = ", ".join(f"{radius:.4g}" for radius in radii)
        raise UserError(
            f"--save: attack.convergence.epsilon {epsilon:.4g}, which pictures are saved at, is "
            f"none of attack.epsilons ({given}); set it to one"
        )
    for path in cells.glob("*/curve/*@*.npz"):
        if float(path.stem.partition("@")[2]) == 0:
            continue
        with np.load(path, allow_pickle=False) as fields:
            if "x_adv" not in fields.files and fields["rows"].size:
                raise UserError(
                    f"{path}: made without --save, so no picture was kept; give another --out"
                )


def save_pictures(
    folder: Path,
    system: Immunized,
    records: Sequence[Record],
    curve: Curve,
    cells: Path,
    epsilon: float,
    which: int | None,
) -> Path:
    """Every row's worst picture within a radius, in ``FOLDER/NORM_LEVEL.jsonl``; rows that were not
    right when clean keep theirs, so that the table has the same rows for every system.

    Args:
        folder: of one system's attacked rows.
        system: whose resolution the pictures have.
        records: the rows, in the curve's order.
        curve: what the suite found.
        cells: where it keeps what it made.
        epsilon: the radius.
        which: the picture of a row that was perturbed; None is all.

    Raises:
        UserError: pictures were not kept, or the system's processor would change them.
    """
    split = f"{curve.plan.norm}_{level(curve.plan.norm, epsilon)}"
    attacked = pictures_at(curve, cells_of(cells, curve.plan), epsilon)
    encoder = system.task.guard.encoder

    def rows() -> Iterator[Record]:
        for i, record in enumerate(records):
            levels = [encoder.levels(image) for image in record.images]
            pictures = [np.round(255 * one).astype(np.uint8) for one in levels]
            if i in attacked:
                shown = attacked[i] if attacked[i].ndim == 4 else attacked[i][None]
                first = 0 if which is None else min(which, len(pictures) - 1)
                for slot, picture in enumerate(shown[: len(pictures) - first]):
                    pictures[first + slot] = picture
            images = tuple(encode_png(_image(picture)) for picture in pictures)
            if i == next(iter(attacked), -1):
                _check(encoder, images[0], pictures[0])
            about = _about(record, split, i in attacked)
            yield replace(record, images=images, provenance=about)

    processes.by_first(lambda: write_jsonl(rows(), folder, split))
    return folder / f"{split}.jsonl"


def save_texts(folder: Path, records: Sequence[Record], results: dict[str, AttackedTexts]) -> None:
    """Every attack's texts beside the rows' own pictures, in ``FOLDER/ATTACK.jsonl``."""
    for name, result in results.items():
        if result.attack.route != "tokens":
            continue
        texts = dict(zip(result.rows.tolist(), result.texts, strict=True))
        rows = [
            replace(
                record, text=texts.get(i, record.text), provenance=_about(record, name, i in texts)
            )
            for i, record in enumerate(records)
        ]
        processes.by_first(lambda rows=rows, name=name: write_jsonl(rows, folder, name))


def save_shared(folder: Path, name: str, shared: SharedPicture, label: str) -> None:
    """The one picture with each of its prompts, in ``FOLDER/NAME.jsonl``.

    Args:
        folder: of one system's attacked rows.
        name: of the attack.
        shared: what came of it.
        label: the prompts' answer beside the picture as it is, where there are but two answers.
    """
    image = encode_png(_image(shared.attacked))
    rows = [
        Record(f"{name}-{i}", (image,), text, label, source=name)
        for i, text in enumerate(shared.texts)
    ]
    processes.by_first(lambda: write_jsonl(rows, folder, name))


def _about(record: Record, attack: str, attacked: bool) -> dict[str, str]:
    # By its name: these rows are there to be handed on.
    file = {"file": Path(record.provenance["file"]).name} if "file" in record.provenance else {}
    return {**record.provenance, **file, "attack": attack, "attacked": str(attacked).lower()}


def _image(levels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(np.moveaxis(levels, 0, -1)))


def _check(encoder: object, png: bytes, levels: np.ndarray) -> None:
    again = np.round(255 * encoder.levels(png)).astype(np.uint8)  # type: ignore[attr-defined]
    if not np.array_equal(again, levels):
        raise UserError(
            "--save: the model's picture processor changes pictures of its own resolution; mend "
            "its preprocessor_config.json (size and crop_size)"
        )
