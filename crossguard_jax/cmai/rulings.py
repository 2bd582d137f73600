"""What people decide on flagged requests: a log beside the queue, and training rows made of it.

``review.decisions.jsonl`` beside ``review.jsonl`` has every decision that was ever taken in; of
those on one request the latest one counts.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from crossguard_jax.cmai.review import Queued, now, read_queue
from crossguard_jax.core.errors import UserError, short
from crossguard_jax.data.prompts import PromptTemplate
from crossguard_jax.data.records import Record, Rejected, kind, write_jsonl
from crossguard_jax.data.sources.common import text_field
from crossguard_jax.io import images
from crossguard_jax.io.jsonl import RowError, exclusive_writer, read_json, read_jsonl
from crossguard_jax.report.review import ReviewCard, render

CHOICES = ("safe", "unsafe", "skip")
"""What can be decided; a skipped request stays open."""


@dataclass(frozen=True)
class Ruling:
    """One decision on one request.

    Attributes:
        key: the request's, see `review.content_key`.
        decision: one of `CHOICES`.
        note: whatever its maker has to say.
        who: its maker; "" if nobody says.
        when: of the decision, in ISO 8601; "" if nobody says.
        taken: when it came into the log, ISO 8601; "" before that.
    """

    key: str
    decision: str
    note: str = ""
    who: str = ""
    when: str = ""
    taken: str = field(default="", compare=False)

    @classmethod
    def of(cls, value: Any) -> "Ruling":
        """From JSON.

        Raises:
            UserError: it is no decision; the message says why.
        """
        if not isinstance(value, dict):
            raise UserError(f"not an object but {short(repr(value))}")
        texts = {each.name: value.get(each.name) or "" for each in fields(cls)}
        for name, text in texts.items():
            if not isinstance(text, str):
                raise UserError(f"{name} {short(repr(text))} is no text")
        if not texts["key"]:
            raise UserError("no key, so nobody knows which request is meant")
        if texts["decision"] not in CHOICES:
            choices = ", ".join(CHOICES)
            raise UserError(f"decision {short(repr(texts['decision']))} is none of {choices}")
        for name in ("when", "taken"):
            try:
                _ = texts[name] and _instant(texts[name])
            except ValueError:
                raise UserError(f"{name} {short(repr(texts[name]))} is no time") from None
        return cls(**texts)

    @property
    def instant(self) -> datetime:
        """When it was made, of one that was taken in. One from the future was made when it came:
        a clock that is ahead must not make its decision the latest for good."""
        taken = _instant(self.taken)
        return min(_instant(self.when), taken) if self.when else taken


def _instant(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


@dataclass
class Review:
    """A queue as it stands: its requests, what is wrong with its files, and the decisions.

    Attributes:
        path: the queue's.
        rows: by key, in the order in which they came.
        damaged: rows of the queue or of the log that could not be read.
        rulings: by key, the latest one on each request.
        log_rows: all of them.
    """

    path: Path
    rows: dict[str, Queued] = field(default_factory=dict)
    damaged: list[Rejected] = field(default_factory=list)
    rulings: dict[str, Ruling] = field(default_factory=dict)
    log_rows: set[Ruling] = field(default_factory=set)

    @classmethod
    def read(cls, path: str | Path) -> "Review":
        """The queue's file and the log beside it.

        Raises:
            UserError: the queue cannot be opened.
        """
        review = cls(Path(path))
        for row in read_queue(path):
            if isinstance(row, Rejected):
                review.damaged.append(row)
            else:
                review.rows[row.key] = row
        if review.log.exists():
            for number, value in read_jsonl(review.log):
                try:
                    if isinstance(value, RowError):
                        raise UserError(value.reason)
                    ruling = Ruling.of(value)
                    if not ruling.taken:
                        raise UserError("no time at which it was taken in")
                    review._add(ruling)
                except UserError as error:
                    review.damaged.append(Rejected(str(review.log), number, str(error)))
        return review

    def _add(self, ruling: Ruling) -> None:
        self.log_rows.add(ruling)
        latest = self.rulings.get(ruling.key)
        if latest is None or ruling.instant >= latest.instant:
            self.rulings[ruling.key] = ruling

    @property
    def log(self) -> Path:
        """Every decision that was taken in."""
        return self.path.with_name(f"{self.path.stem}.decisions.jsonl")

    def decision(self, key: str) -> str:
        """One of `CHOICES`, or "" where nobody has looked at the request."""
        return self.rulings[key].decision if key in self.rulings else ""

    @property
    def open(self) -> list[Queued]:
        """Requests without a decision, oldest first; those that were skipped come last."""
        rows = [r for r in self.rows.values() if self.decision(r.key) in ("", "skip")]
        return sorted(rows, key=lambda row: self.decision(row.key) == "skip")

    @property
    def decided(self) -> list[Queued]:
        """The others."""
        return [r for r in self.rows.values() if self.decision(r.key) in ("safe", "unsafe")]

    def lines(self) -> Iterator[str]:
        """The summary: what is open, by reason."""
        counts = Counter(self.decision(key) for key in self.rows)
        skipped = f" ({counts['skip']:,} skipped)" if counts["skip"] else ""
        yield (
            f"{self.path}: {len(self.rows):,} requests: {len(self.open):,} open{skipped}, "
            f"{counts['safe']:,} safe, {counts['unsafe']:,} unsafe"
        )
        groups: dict[str, list[str]] = {}
        for row in self.open:
            groups.setdefault(kind(row.reason), []).append(row.time)
        if groups:
            yield from _aligned(
                ("open", "oldest", "reason"),
                [
                    (f"{len(times):,}", min(times), reason)
                    for reason, times in sorted(groups.items(), key=lambda g: -len(g[1]))
                ],
            )

    def take(self, file: str | Path) -> "Taken":
        """Takes in a page's decisions: each is in the log, on the disk, when this returns.

        Raises:
            UserError: the file is not one of decisions.
        """
        taken = Taken()
        with exclusive_writer(self.log) as writer:
            for number, value in enumerate(_decisions(file), start=1):
                try:
                    ruling = Ruling.of(value)
                    if ruling.key not in self.rows:
                        raise UserError(
                            f"key {short(ruling.key)} is of no request in {self.path.name}; give "
                            "the queue that the page was made from"
                        )
                except UserError as error:
                    taken.refused.append(Rejected(str(file), number, str(error)))
                    continue
                latest = self.rulings.get(ruling.key)
                if latest == ruling or ruling.when and ruling in self.log_rows:
                    taken.repeated += 1
                    continue
                ruling = replace(ruling, taken=now())
                writer.append(asdict(ruling))
                self._add(ruling)
                taken.new += 1
                taken.replaced += latest is not None and self.rulings[ruling.key] is ruling
        return taken

    def page(self, limit: int) -> str:
        """The page to decide on open requests, as text: at most ``limit``, the oldest ones."""
        rows = self.open
        title = f"{len(rows):,} requests to decide on, from {self.path.name}"
        if len(rows) > limit:
            title += f": the first {limit:,}"
        return render(title, [_card(row) for row in rows[:limit]])

    def records(self, prompt: PromptTemplate, left_out: list[Rejected]) -> Iterator[Record]:
        """The decided requests as training rows, by their content's name.

        Args:
            prompt: whose label words the rows have.
            left_out: gets those that no reader would take.
        """
        words = {"safe": prompt.negative, "unsafe": prompt.positive}
        for row in self.decided:
            try:
                pictures = row.images()
                for path, picture in zip(row.pictures, pictures, strict=True):
                    images.decode(picture, str(path))
                text_field({"text": row.text}, "text", blank=bool(pictures))
            except UserError as error:
                left_out.append(Rejected(str(self.path), row.line, str(error)))
                continue
            yield Record(
                id=f"review-{row.key[:16]}",
                images=pictures,
                text=row.text,
                label=words[self.decision(row.key)],
                category=row.category,
                source="review",
                provenance={"file": self.path.name, "row": str(row.line), "id": row.id},
            )

    def export(self, table: Path, prompt: PromptTemplate) -> tuple[int, list[Rejected]]:
        """Writes the decided requests as `data.records.write_jsonl` does.

        Returns:
            How many were written, and those that were left out.

        Raises:
            UserError: none is decided, or the table's name does not end in ``.jsonl``.
        """
        if table.suffix != ".jsonl":
            raise UserError(f"{table}: training rows are JSON lines; give a name.jsonl")
        if table.resolve() in (self.path.resolve(), self.log.resolve()):
            raise UserError(f"{table} is the queue's own; give another name")
        if not self.decided:
            raise UserError(
                f"{self.path}: no request is decided; write a page with --page, decide there, and "
                "take the decisions in with --decisions"
            )
        left_out: list[Rejected] = []
        return write_jsonl(self.records(prompt, left_out), table.parent, table.stem), left_out


@dataclass
class Taken:
    """What came of a file of decisions.

    Attributes:
        new: decisions that went into the log.
        replaced: those of them that changed an earlier one.
        repeated: decisions that were the last ones already.
        refused: the others, by reason.
    """

    new: int = 0
    replaced: int = 0
    repeated: int = 0
    refused: list[Rejected] = field(default_factory=list)

    def line(self) -> str:
        """The summary."""
        return (
            f"{self.new:,} decisions taken in, {self.replaced:,} of them in place of earlier ones; "
            f"{self.repeated:,} were there already, {len(self.refused):,} refused"
        )


def _card(row: Queued) -> ReviewCard:
    try:
        pictures, problem = row.images(), ""
    except UserError as error:
        pictures, problem = (), str(error)
    scores = {"p(unsafe)": row.p_unsafe, "S_c": row.s_c}
    facts = {
        "reason": row.reason,
        **{name: f"{score:.3f}" for name, score in scores.items() if score is not None},
        "model": row.model,
        "branch": row.branch,
        "flagged": row.time,
        "pictures": problem,
    }
    shown = tuple((name, value) for name, value in facts.items() if value)
    return ReviewCard(row.key, row.id, row.text, pictures, shown)


def _decisions(file: str | Path) -> list[Any]:
    whole = read_json(file)
    rows = whole.get("decisions") if isinstance(whole, Mapping) else whole
    if not isinstance(rows, list):
        raise UserError(f"{file}: holds no list of decisions; save it from the page again")
    return rows


def _aligned(heading: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    """A table for the terminal; the last column is as long as it is."""
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    for row in (heading, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        yield "  " + "  ".join(cells).rstrip()
