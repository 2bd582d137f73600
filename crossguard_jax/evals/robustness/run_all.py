"""All attacks of a configuration on several systems: pictures, texts and shared pictures."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossguard_jax.attacks.registry import EMBEDDINGS, ROWS, TOKENS, WHOLE, Registered
from crossguard_jax.cmai.immunized import Immunized
from crossguard_jax.core.metrics import Estimate
from crossguard_jax.data.records import Record
from crossguard_jax.evals.robustness import saved
from crossguard_jax.evals.robustness.breakdown import attacks_section, groups_section
from crossguard_jax.evals.robustness.figures import Robustness, figures
from crossguard_jax.evals.robustness.fixed import Operating
from crossguard_jax.evals.robustness.fixed_report import AtCut, fixed_figures, fixed_section
from crossguard_jax.evals.robustness.flags import flags, flags_section, gradients
from crossguard_jax.evals.robustness.prompts import SharedPicture, share_pictures
from crossguard_jax.evals.robustness.report import robustness_section
from crossguard_jax.evals.robustness.rewriting import Sentences
from crossguard_jax.evals.robustness.systems import (
    attack_records,
    configured,
    operating_for,
    which,
)
from crossguard_jax.evals.robustness.texts import AttackedTexts, TextSuite
from crossguard_jax.hf.sentence import load_sentence
from crossguard_jax.report.blocks import Section


@dataclass(frozen=True)
class AllAttacks:
    """What came of them, by system's name.

    Attributes:
        config: ``attack`` of ``configs/cmai.py``.
        attacks: by name, as configured.
        cells: where results are kept.
        pictures: the suite's; empty where no attack is on pictures.
        texts: of attacks on texts.
        shared: of one picture for many prompts.
        operating: where guards cut.
        at_cuts: of the attacks on texts and with one picture, by cut.
        warnings: AutoAttack's.
    """

    config: Any
    attacks: Mapping[str, Registered]
    cells: Path
    pictures: dict[str, Robustness] = field(default_factory=dict)
    texts: dict[str, dict[str, AttackedTexts]] = field(default_factory=dict)
    shared: dict[str, dict[str, SharedPicture]] = field(default_factory=dict)
    operating: dict[str, Operating] = field(default_factory=dict)
    at_cuts: dict[str, dict[str, AtCut]] = field(default_factory=dict)
    warnings: dict[str, list[str]] = field(default_factory=dict)

    @property
    def epsilon(self) -> float:
        """The radius that single attacks are compared at, and pictures saved."""
        return float(self.config.convergence.epsilon)

    def sections(self, records: Sequence[Record], how: str = "") -> list[Section]:
        """Of the report; the worst case comes first.

        Args:
            records: the rows.
            how: which clean rows cuts were chosen by.
        """
        sections = [robustness_section(self.pictures)] if self.pictures else []
        if self.operating:
            sections.append(
                fixed_section(
                    *(self.operating, self.config.norm, self.pictures, self.at_cuts),
                    *(records, how),
                )
            )
        args = self.attacks, self.pictures, self.texts, self.shared, self.epsilon, records
        sections.append(attacks_section(*args))
        if self.pictures:
            sections += [groups_section(self.pictures, records), flags_section(self.warnings)]
        return sections

    def save(
        self, folder: Path, systems: Mapping[str, Immunized], records: Sequence[Record]
    ) -> Iterator[str]:
        """Attacked rows of every system in ``FOLDER/SYSTEM``; says where.

        Raises:
            UserError: see `saved.save_pictures`; a radius that was not run.
        """
        for name, system in systems.items():
            place = folder / name
            if (result := self.pictures.get(name)) is not None:
                args = result.any, self.cells / name / "curve", self.epsilon, which(self.config)
                table = saved.save_pictures(place, system, records, *args)
                yield f"attacked pictures of {name}: {table}"
            saved.save_texts(place, records, self.texts.get(name, {}))
            for attack, shared in self.shared.get(name, {}).items():
                left = [label for label in system.task.labels if label != shared.target]
                saved.save_shared(place, attack, shared, left[0] if len(left) == 1 else "")

    def tell(self) -> None:
        """Prints the worst cases, and each attack's own where it is on texts."""

        def line(name: str, estimate: Estimate) -> None:
            interval = f"[{estimate.low:.4f}, {estimate.high:.4f}]"
            print(f"{name} {estimate.value:.4f} {interval} n={estimate.n}")

        for name, result in self.pictures.items():
            for figure, estimate in figures(result).items():
                if figure.endswith((".accuracy", ".robust_accuracy")):
                    line(f"{name} {figure}", estimate)
            if result.scores:
                for figure, estimate in fixed_figures([*result.scores.values()]).items():
                    line(f"{name} {figure}", estimate)
        for name, results in self.texts.items():
            for attack, attacked in results.items():
                print(f"{name} {attack}.asr {attacked.won.mean():.4f} n={len(attacked.rows)}")
        for name, pictures in self.shared.items():
            for attack, shared in pictures.items():
                print(f"{name} {attack}.asr {shared.won.mean():.4f} n={len(shared.won)}")
        for name, cuts in self.at_cuts.items():
            for cut, made in cuts.items():
                for figure, estimate in made.figures(cut).items():
                    line(f"{name} {figure}", estimate)


def run_all(
    config: Any,
    systems: Mapping[str, Immunized],
    records: Sequence[Record],
    cells: Path,
    other: Immunized | None = None,
    *,
    keep: bool = False,
    validation: Sequence[Record] = (),
) -> AllAttacks:
    """Every attack of the configuration on every system; killed and called again, it goes on.

    Args:
        config: ``attack`` of ``configs/cmai.py``.
        systems: by dotted name.
        records: with a picture and a label.
        cells: where results are kept.
        other: the model that transfer attacks have.
        keep: the suite's cells keep pictures.
        validation: clean rows by which guards' cuts are chosen; none: even odds alone.

    Raises:
        UserError: see `attack_records`, `operating_for`, `TextSuite.run` and `share_pictures`.
    """
    attacks = configured(config)
    made = AllAttacks(config, attacks, cells)
    routes = {attack.route for attack in attacks.values()}
    sentences = None
    if TOKENS in routes and config.get("sentence"):
        sentences = Sentences(load_sentence(config.sentence))
    epsilon, size = made.epsilon, config.batch_size
    words = TextSuite(
        *(dict(attacks), config.norm, epsilon, size, config.draws, config.seed),
        *(sentences, which(config)),
    )
    for name, system in systems.items():
        place = cells / name
        operating = operating_for(config, system, validation) if validation else None
        if routes & {ROWS, WHOLE}:
            given = system, records, place, other
            result = attack_records(config, *given, keep=keep, operating=operating)
            made.pictures[name] = result
            n = min(len(records), max(config.convergence.rows, size))
            x, rows = system.rows(records[:n], which(config))
            looked = gradients(system, x, rows, size)
            made.warnings[name] = flags(result, len(system.task.labels), looked)
        share = functools.partial(
            share_pictures,
            *(dict(attacks), system, records),
            norm=config.norm,
            epsilon=epsilon,
            batch_size=size,
            seed=config.seed,
        )
        if routes & {TOKENS, EMBEDDINGS}:
            made.texts[name] = words.run(system, records, place / "texts")
        if shared := share(place / "prompts"):
            made.shared[name] = shared
        if operating is None:
            continue
        made.operating[name], made.at_cuts[name] = operating, {}
        for cut, where in operating.cuts.items():
            at = where.at, operating.unit
            made.at_cuts[name][cut] = AtCut(
                words.run(system, records, place / cut / "texts", at),
                share(place / cut / "prompts", at=at),
            )
    return made
