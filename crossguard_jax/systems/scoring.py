"""The verb ``score``: one request from flags, or a file of them to a file of verdicts."""

import argparse
import contextlib
import functools
import itertools
import json
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from crossguard_jax.cmai.review import Flagged, ReviewQueue
from crossguard_jax.core.errors import UserError
from crossguard_jax.data import sources
from crossguard_jax.data.records import Record, Rejected
from crossguard_jax.data.sources.catalogue import tested_split
from crossguard_jax.data.sources.common import text_field
from crossguard_jax.data.sources.packed import reader_of
from crossguard_jax.guard.arguments import PARTS
from crossguard_jax.guard.verdict import Verdict
from crossguard_jax.hf.load import folder_name
from crossguard_jax.hf.trained import content_hash
from crossguard_jax.io import archives, jsonl
from crossguard_jax.io.progress import Progress
from crossguard_jax.runtime import preemption, processes
from crossguard_jax.runtime.mesh import inference_mesh
from crossguard_jax.systems.load import identity, load
from crossguard_jax.systems.results import Item, Results, row_of, row_out
from crossguard_jax.systems.store import VerdictStore, store_folder
from crossguard_jax.systems.system import System, notes_of
from crossguard_jax.systems.tally import Tally

# A window is what is in memory at once, and what a kill costs: at most so many rows, as many as
# take about so long, and so many bytes of encoded pictures.
WINDOW_ROWS = 1_024
WINDOW_SECONDS = 20.0
WINDOW_BYTES = 256 * 2**20


@runtime_checkable
class AddsToRows(Protocol):
    """Adds fields to rows of verdicts, as `why.Explained` does."""

    def rows(
        self, records: Sequence[Record], verdicts: Sequence[Verdict | UserError]
    ) -> list[dict[str, Any]]:
        """Those of each record."""


def main(args: argparse.Namespace) -> int:
    """The verb. Returns 0 if every row has a verdict, 1 if one was rejected."""
    _check(args)
    with warnings.catch_warnings():
        # Pillow's remarks about odd pictures; what matters of them is in the rejected rows.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        if args.shards is not None:
            return _score_shards(args)
        return _score_one(args) if args.input is None else _score_file(args)


def _check(args: argparse.Namespace) -> None:
    """Refuses arguments that do not go together."""
    if args.input is not None and args.image is not None:
        args.usage_error("--image is for one request; name the column with --image-column")
    for name in ("why_parts", "heatmaps"):
        if args.why is None and getattr(args, name) is not None:
            args.usage_error(f"--{_flag(name)} goes with --why")
    requests = (args.text is not None or args.image is not None, args.input, args.shards)
    if sum(map(bool, requests)) != 1:
        args.usage_error("give --text, --image or both, or --input, or --shards")
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        args.usage_error(f"--threshold {args.threshold} is no probability; give 0 to 1")
    given = [name for name, value in _table_options(args).items() if value is not None]
    for name in ("on", "workers", "threads", "deadline"):
        if args.shards is None and getattr(args, name) is not None:
            args.usage_error(f"--{name} goes with --shards")
    if args.input is None and args.shards is None:
        own = ("output", "split", "missing_pictures", "restart")
        stray = [*given, *(name for name in own if getattr(args, name))]
        if stray:
            args.usage_error(f"--{_flag(stray[0])} goes with --input")
        return
    for name in ("workers", "threads", "deadline"):
        if (value := getattr(args, name)) is not None and not value > 0:
            args.usage_error(f"--{name} {value}: give more than 0")
    if args.shards is not None and args.restart:
        args.usage_error("--restart goes with --input; give another --output")
    if args.output is None:
        args.usage_error("--input and --shards need --output, where the verdicts go")
    if args.format != "table" and given:
        args.usage_error(f"--{_flag(given[0])} is for tables, not for --format {args.format}")
    if args.format == "table" and args.split is not None:
        args.usage_error("--split is not for tables; give the split's own file")
    if args.missing_pictures and not sources.has_option(args.format, "missing_pictures"):
        args.usage_error(f"--missing-pictures is not for --format {args.format}")
    if args.text_only and (args.image_column or args.images):
        args.usage_error("--text-only has no pictures, so no --image-column and no --images")
    if args.input and Path(args.output).resolve() == Path(args.input).resolve():
        args.usage_error("--output is the input itself; give another file")


def _table_options(args: argparse.Namespace) -> dict[str, Any]:
    names = ("images", "id_column", "image_column", "text_column", "label_column")
    return {name: getattr(args, name) for name in names} | {"text_only": args.text_only or None}


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _score_one(args: argparse.Namespace) -> int:
    text = text_field({"text": args.text or ""}, "text", blank=args.image is not None)
    system = _load(args)
    (verdict,) = system.score_each([args.image or ()], [text])
    if isinstance(verdict, UserError):
        raise verdict
    row = asdict(verdict)
    if args.queue or args.why is not None:
        pictures = tuple(Path(file).read_bytes() for file in args.image or ())
        record = Record(content_hash(text, pictures)[:16], pictures, text)
        if args.queue:
            queue_flagged(ReviewQueue(args.queue), system, [record], [verdict])
        if explained := explained_by(why_options(args), system, 1):
            row |= explained.rows([record], [verdict])[0]
    print(json.dumps(row))
    return 0


def why_options(args: argparse.Namespace) -> dict[str, Any] | None:
    """What ``--why`` says, as JSON values; None where it was not given."""
    if args.why is None:
        return None
    folder = str(Path(args.why).resolve()) if args.why else ""
    parts = [part for part in PARTS if part in (args.why_parts or PARTS)]
    return {"folder": folder, "parts": parts, "heatmaps": args.heatmaps}


def explained_by(
    options: Mapping[str, Any] | None, system: System, batch_size: int
) -> AddsToRows | None:
    """What explains, by `why_options`; it is imported when it is asked for."""
    if options is None:
        return None
    from crossguard_jax.systems.why import Explained

    return Explained(system, **options, batch_size=batch_size)


def why_identity(options: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What explanations depend on, by `why_options`."""
    if options is None:
        return None
    from crossguard_jax.systems.why import run_identity

    return run_identity(options)


def _load(args: argparse.Namespace) -> System:
    return load(**_load_arguments(args), mesh=inference_mesh(args.mesh))


def _load_arguments(args: argparse.Namespace) -> dict[str, Any]:
    names = ("adapter", "dtype", "prompt", "threshold", "noise_seed")
    return {"path": args.model} | {name: getattr(args, name) for name in names}


def _score_shards(args: argparse.Namespace) -> int:
    """Here nothing is loaded and no device is taken: the workers do."""
    from crossguard_jax.systems import sharded

    spec = {
        "load": _load_arguments(args),
        "mesh": args.mesh,
        "store": store_folder(args.store),
        "queue": args.queue or f"{Path(args.output)}.review.jsonl",
        "batch_size": args.batch_size,
        "format": args.format,
        "options": _reader_options(args),
        "blank": "",
        "described": False,
        "why": why_options(args),
    }
    return sharded.main(args, spec)


def _score_file(args: argparse.Namespace) -> int:
    options = _reader_options(args)
    if sources.has_option(args.format, "check_pictures"):
        options["check_pictures"] = False  # the guard decodes them anyway
    reading = sources.read(args.format, args.input, **options)
    items: Iterator[Item] = reading
    # The input's faults show before the model is loaded.
    first = next(items, None)
    if first is None:
        raise UserError(f"{args.input}: no rows in it; check the file")
    items, table = itertools.chain([first], items), Path(_file_of(first))
    system = _load(args)
    explained = explained_by(why_options(args), system, args.batch_size)
    source = {"format": args.format, **{k: str(v) for k, v in options.items()}}
    run = identity(system) | {
        "model": str(system.folder.resolve()),
        "threshold": system.settings.threshold,
        "input": str(Path(args.input).resolve()),
        "reader": source,
        "why": why_identity(why_options(args)),
    }
    store = VerdictStore(store_folder(args.store), system)
    queue = ReviewQueue(args.queue or Path(args.output).with_name("review.jsonl"))
    began = time.monotonic()
    opened: list[Results] = []
    processes.by_first(lambda: opened.append(Results(args.output, run, args.restart)))
    with opened[0] if opened else contextlib.nullcontext() as results:
        total = last_row(table)
        tally = score_items(store, items, results, queue, args.batch_size, total, explained)
    seconds = time.monotonic() - began
    print("\n".join([*reading.lines(), *tally.lines(), *notes_of(system)]))
    if store.computed < tally.verdicts:
        print(f"{tally.verdicts - store.computed:,} of the verdicts had been made before")
    if store.computed:
        rate = store.computed / seconds
        print(f"{store.computed:,} rows in {seconds:,.1f} s, {rate:,.1f} rows/s")
    print(f"verdicts: {args.output}")
    if results:
        print(f"rejected rows: {results.rejected}")
    if tally.branches["flag"]:
        print(f"flagged for review: {queue.path} (crossguard review)")
    if tally.rejected:
        print("exit code 1, because rows were rejected")
        return 1
    return 0


def _reader_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of the format's reader that were given, by the reader's names for them."""
    if args.format != "table":
        given = {name: getattr(args, name) for name in ("split", "missing_pictures")}
        given["split"] = given["split"] or tested_split(args.format, args.input or "") or None
        return {name: value for name, value in given.items() if value is not None}
    names = {"images": "pictures"} | {f"{n}_column": n for n in ("id", "image", "text", "label")}
    given = _table_options(args)
    options = {ours: given[flag] for flag, ours in names.items() if given[flag] is not None}
    return options | ({"image": None} if args.text_only else {})


def _file_of(item: Item) -> str:
    return item.file if isinstance(item, Rejected) else item.provenance["file"]


def last_row(file: Path) -> int | None:
    """About the number of a table's last row, cheaply, for the time that is left; None where its
    lines are no rows, or counting them would cost more than that is worth."""
    packed = reader_of(file) is not None or archives.archive_of(file) is not None
    if packed or file.stat().st_size > 2**26:
        return None
    lines, start, end = 0, b"", b"\n"
    with file.open("rb") as handle:
        for block in iter(lambda: handle.read(2**20), b""):
            start = start or block[:4096].removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
            lines, end = lines + block.count(b"\n"), block[-1:]
    lines += end != b"\n"
    if file.suffix.lower() != ".json" or (start == b"{" and lines > 1):
        return lines
    content = jsonl.read_json(file)
    lists = [content, *(content.values() if isinstance(content, dict) else ())]
    return max((len(value) for value in lists if isinstance(value, list)), default=1)


def score_items(
    store: VerdictStore,
    items: Iterable[Item],
    results: Results | None,
    queue: ReviewQueue,
    batch_size: int = 16,
    total: int | None = None,
    explained: AddsToRows | None = None,
) -> Tally:
    """Scores what is not in the results yet, in windows, and writes it in order.

    Several processes read the same items and divide a window's; the first one writes.

    Args:
        store: the system's verdicts.
        items: records and rejected rows, as the readers of `data.sources` yield them.
        results: where verdicts and rejected rows go; None in a process that is not the first.
        queue: where flagged requests go.
        batch_size: rows to a forward pass, at most.
        total: the number of the last row, for the progress line.
        explained: adds ``why`` to the rows.

    Returns:
        What the files hold now.

    Raises:
        Stopped: it was told to stop; the windows so far are written.
    """
    words = store.system.settings.prompt
    remaining = iter(items)

    def pass_over() -> tuple[Tally, int, int]:
        """What is there, the number of its last row, and how many items that is."""
        nonlocal remaining
        tally, reached = Tally((words.negative, words.positive)), [0]

        def done(row: Mapping[str, Any]) -> None:
            tally.add(row)
            reached.append(row["row"])

        assert results
        remaining = results.remaining(remaining, done)
        return tally, reached[-1], len(reached) - 1

    tally, reached, n = processes.by_first(pass_over)
    if results is None:
        remaining = itertools.islice(remaining, n, None)
    with Progress("scoring", total, start=reached) as progress, preemption.saving():
        for window in _windows(remaining, batch_size):
            rows = [*score_window(store, window, queue, batch_size, explained)]
            processes.by_first(functools.partial(_add, results, rows))
            for row in rows:
                tally.add(row)
            progress.update(row_of(window[-1]) - progress.n)
            preemption.check()
    return tally


def _add(results: Results | None, rows: Iterable[Mapping[str, Any]]) -> None:
    assert results
    for row in rows:
        results.add(row)


def _windows(items: Iterator[Item], batch_size: int) -> Iterator[list[Item]]:
    """Items in lists of a few batches that grow or shrink with the time each one takes."""
    most = max(WINDOW_ROWS, batch_size)
    rows = min(4 * batch_size, most)
    window: list[Item] = []
    size = 0
    for item in items:
        window.append(item)
        size += 0 if isinstance(item, Rejected) else sum(map(len, item.images)) + len(item.text)
        if len(window) >= rows or size >= WINDOW_BYTES:
            began = time.monotonic()
            yield window
            seconds = time.monotonic() - began
            slow = processes.by_first(lambda seconds=seconds: seconds > WINDOW_SECONDS)
            rows = max(rows // 2, batch_size) if slow else min(rows * 2, most)
            window, size = [], 0
    if window:
        yield window


def score_window(
    store: VerdictStore,
    window: list[Item],
    queue: ReviewQueue,
    batch_size: int,
    explained: AddsToRows | None = None,
) -> Iterator[dict[str, Any]]:
    """The rows to write for a window's items, in order."""
    records = [item for item in window if isinstance(item, Record)]
    verdicts = store.score(records, batch_size)
    queue_flagged(queue, store.system, records, verdicts)
    more = explained.rows(records, verdicts) if explained else [{} for _ in records]
    remaining = zip(verdicts, more, strict=True)
    for item in window:
        if isinstance(item, Rejected):
            yield row_out(item, {})
            continue
        verdict, why = next(remaining)
        if isinstance(verdict, UserError):
            yield row_out(item, {"reason": str(verdict)})
        else:
            yield row_out(item, asdict(verdict) | why)


def _reason(s_c: float | None) -> str:
    return "S_c is no number" if s_c is None else f"S_c {s_c:.4g}"


def queue_flagged(
    queue: ReviewQueue,
    system: System,
    records: Sequence[Record],
    verdicts: Sequence[Verdict | UserError],
) -> None:
    """Adds what a policy flagged to the queue for review; it is on the disk when this returns."""
    model = folder_name(system.folder)
    flagged = [
        Flagged(record, _reason(each.s_c), each.p_unsafe, each.s_c, each.branch, model)
        for record, each in zip(records, verdicts, strict=True)
        if isinstance(each, Verdict) and each.branch == "flag"
    ]
    if flagged:
        processes.by_first(lambda: queue.add(flagged))
