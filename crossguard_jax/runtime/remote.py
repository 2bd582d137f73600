"""Folders in a bucket: ``--out gs://BUCKET/FOLDER``, or whatever else fsspec opens.

A bucket is no file system: nothing in it is appended to, locked or renamed. So a run writes into a
folder of this machine's, and the first process copies that to the bucket: before each checkpoint,
every now and then, and at the end. As a run starts it fetches what the bucket has: it goes on where
nothing of it is, and its processes need share no disk. Checkpoints alone go to ``gs://`` straight,
since each process writes its shards of them. Nothing else asks where a folder is: `staged` puts the
folder here into the arguments, and what is printed names the bucket.
"""

import argparse
import contextlib
import logging
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from etils import epath

from crossguard_jax.core.errors import UserError, reason
from crossguard_jax.runtime import preemption, processes

CHECKPOINTS = ("latest", "best")
"""Folders of checkpoints in a run's."""
STRAIGHT = "gs://"
"""What Orbax writes checkpoints to as it is."""
NOTE = ".straight"
"""In a bucket's folder whose checkpoints were never here."""
CLOSING = ("_CHECKPOINT_METADATA", "commit_success.txt")
"""Files that say that a checkpoint is whole: copied after all others, removed before them."""
UNFINISHED = ".orbax-checkpoint-tmp"
"""In the name of a folder that Orbax has not finished writing."""
PERIOD = 60.0
"""Seconds between copies, whatever the run is at."""


class Mirror:
    """A folder here, and the bucket's that it stands for.

    Args:
        folder: that is not there yet.
        address: ``gs://BUCKET/FOLDER``.

    Raises:
        UserError: nothing that is installed opens such an address.
    """

    def __init__(self, folder: Path, address: str):
        self._files, self._root = opened(address)
        self.folder, self.address = folder, address.rstrip("/")
        self._copied: dict[str, tuple[int, int]] = {}  # by name, as it was here
        self._fetched: dict[str, Any] = {}  # by name, as it was there
        self._straight: set[PurePosixPath] = set()  # folders that are not written here
        self._lock = threading.Lock()
        # As old as anything here: who removes by age what lies around removes it, too.
        self._mark = folder.with_name(f".{folder.name}.mark")

    def begin(self) -> None:
        """Fetches what there is, and sees that more may be written.

        Raises:
            UserError: there is no such bucket, or no permission to list, write and delete in it.
        """
        with self._working("read"):
            self._mark.parent.mkdir(parents=True, exist_ok=True)
            self._mark.touch()
        self.fetch()
        with self._working("written to"):
            probe = f"{self._root}/.crossguard"
            self._files.pipe_file(probe, b"")
            self._files.rm_file(probe)

    def fetch(self, under: str = "") -> None:
        """Fetches what is another than before of the bucket's folder, or of one in it."""
        with self._lock, self._working("read"):
            start = f"{self._root}/"
            listed = self._files.find(f"{start}{under}".rstrip("/"), detail=True)
            there = {p.removeprefix(start): listed[p] for p in listed if p.startswith(start)}
            self._leave(*(p.parent for p in map(PurePosixPath, there) if p.name == NOTE))
            names = [n for n in there if self._takes(n) and self._fetched.get(n) != there[n]]
            if names:
                self._files.get([start + n for n in names], [str(self.folder / n) for n in names])
            for name in names:
                self._fetched[name] = there[name]
                self._copied[name] = _stamp(self.folder / name)

    def copy(self) -> None:
        """Copies what has changed here to the bucket; what was removed here is removed there.

        Raises:
            UserError: the bucket does not take it; or somebody else has removed what was here, and
                nothing is removed there.
        """
        with self._lock, self._working("written to"):
            while True:
                try:
                    return self._copy()
                except FileNotFoundError as error:
                    # Orbax's threads remove an old checkpoint while it is copied: look anew.
                    if not str(error.filename).startswith(str(self.folder)):
                        raise

    def _copy(self) -> None:
        every = (path for path in self.folder.rglob("*") if path.is_file())
        paths = {path.relative_to(self.folder).as_posix(): path for path in every}
        here = {name: _stamp(path) for name, path in paths.items() if self._takes(name)}
        for names in _apart([n for n in here if self._copied.get(n) != here[n]]):
            self._files.put([str(paths[n]) for n in names], [f"{self._root}/{n}" for n in names])
            self._copied |= {name: here[name] for name in names}
        if not self._mark.exists() or (self._copied and not self.folder.is_dir()):
            raise UserError(
                f"{self.address}: its copy in {self.folder.parent} was removed by somebody else; "
                "set TMPDIR to a folder that nobody cleans, and start again: it goes on from what "
                "the bucket has"
            )
        for names in reversed(_apart([n for n in self._copied if n not in here])):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    self._files.rm_file(f"{self._root}/{name}")
                del self._copied[name]

    def straight(self, folder: Path) -> str | None:
        """Where Orbax writes the checkpoints of a folder in this one; None: here, and they are
        copied, as are all that others write.

        Raises:
            UserError: it is of several processes, whose shards are not in one folder here.
        """
        if self.address.startswith(STRAIGHT):
            name = PurePosixPath(folder.relative_to(self.folder).as_posix())
            with self._lock, self._working("written to"):
                self._leave(name)
                if processes.is_first():
                    self._files.pipe_file(f"{self._root}/{name / NOTE}", b"")
            return f"{self.address}/{name}"
        if processes.count() > 1:
            raise UserError(
                f"{self.address}: several processes write checkpoints to {STRAIGHT} or to a file "
                "system; mount the bucket, and give its folder"
            )
        return None

    def _leave(self, *folders: PurePosixPath) -> None:
        """Leaves checkpoints to Orbax; what was fetched of them is not kept up."""
        self._straight |= {folder / name for folder in folders for name in CHECKPOINTS}
        self._copied = {name: s for name, s in self._copied.items() if self._takes(name)}

    def _takes(self, name: str) -> bool:
        """Whether a file is copied: no scratch file is, and nothing that Orbax writes straight."""
        path = PurePosixPath(name)
        scratch = any(part.startswith(".") or UNFINISHED in part for part in path.parts)
        return not scratch and self._straight.isdisjoint(path.parents)

    @contextlib.contextmanager
    def _working(self, what: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # the clients have no error in common
            raise UserError(f"{self.address}: cannot be {what} ({_mend(error)})") from error


def opened(address: str, what: str = "") -> tuple[Any, str]:
    """The client of an address, and its path there; nothing is asked of it yet.

    Args:
        address: ``gs://BUCKET/FOLDER``.
        what: what has the address, for the error.

    Raises:
        UserError: nothing that is installed opens it, or there is no bucket in it.
    """
    import fsspec  # of no use to most runs

    # What goes wrong is raised, and told as one line.
    for name in ("gcsfs", "s3fs", "google"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Other processes write too: a listing that is kept would be of the past (Orbax's own client).
    for protocol in ("gs", "gcs", "s3"):
        fsspec.config.conf.setdefault(protocol, {}).setdefault("use_listings_cache", False)
    try:
        files, root = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{what}{address}: cannot be opened ({reason(error)}); for gs://, pip install gcsfs; "
            "for s3://, s3fs"
        ) from error
    if not root.strip("/"):
        raise UserError(
            f"{what}{address}: has no bucket; write {address.partition(':')[0]}://BUCKET/FOLDER"
        )
    return files, root


def _mend(error: Exception) -> str:
    """What a client says, and what is to be done where that is clear."""
    text = reason(error)
    if getattr(error, "filename", None) is not None:  # a file here
        room = "; set TMPDIR to a folder with room" if "No space" in text else ""
        return f"{getattr(error, 'strerror', text)} in {tempfile.gettempdir()}{room}"
    refused = str(getattr(error, "code", "")) in ("401", "403") or "Forbidden" in text
    if refused or isinstance(error, PermissionError):
        return f"{text}: give this machine's account the right to list, write and delete there"
    if isinstance(error, FileNotFoundError):
        return f"{text}: there is no such bucket; make it, or correct its name"
    return text


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of a file; nothing of one that was just removed."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _apart(names: Sequence[str]) -> list[list[str]]:
    """Names in the order in which they are written: what closes a folder after all others."""
    closing = [name for name in names if PurePosixPath(name).name in CLOSING]
    others = [name for name in names if PurePosixPath(name).name not in CLOSING]
    return [some for some in (others, closing) if some]


_mirrors: list[Mirror] = []
_shown: dict[str, str] = {}
"""Addresses by the folders that stand for them, in any process."""


@contextlib.contextmanager
def staged(args: argparse.Namespace, addresses: Mapping[str, str]) -> Iterator[None]:
    """Around a verb's work that is written to buckets.

    Args:
        args: the verb's, whose arguments then name folders of this machine's.
        addresses: by argument.

    Raises:
        UserError: a bucket cannot be opened, read or written to.
    """
    scratch = Path(tempfile.mkdtemp(prefix="crossguard-")).resolve()
    with contextlib.ExitStack() as removed:
        removed.callback(shutil.rmtree, scratch, ignore_errors=True)
        try:
            for name, address in addresses.items():
                folder = scratch / name / PurePosixPath(address).name
                _mirrors.append(Mirror(folder, address))
                setattr(args, name, str(folder))
            _begin()
            with _addresses_in_print(), _copied(scratch, removed):
                yield
        except UserError as error:
            raise UserError(shown(str(error))) from error
        except preemption.Stopped as stop:
            stop.reason = shown(stop.reason)
            raise
        finally:
            _mirrors.clear()
            _shown.clear()


def _begin() -> None:
    """What is in the buckets is here, in every process."""

    def first() -> None:
        for mirror in _mirrors:
            mirror.begin()

    processes.by_first(first)
    for mirror in () if processes.is_first() else _mirrors:
        mirror.fetch()
    for names in processes.exchange({str(mirror.folder): mirror.address for mirror in _mirrors}):
        _shown.update(names)


@contextlib.contextmanager
def _copied(scratch: Path, removed: contextlib.ExitStack) -> Iterator[None]:
    """Around the work: what it writes is copied now and then, and however it ends."""
    ended = threading.Event()

    def now_and_then() -> None:
        while not ended.wait(PERIOD):
            with contextlib.suppress(UserError):  # the next may succeed, and the last one tells
                copy()

    def at_the_end() -> None:
        ended.set()
        thread.join()
        try:
            copy()
        except UserError as error:
            removed.pop_all()
            raise UserError(f"{error}; what it has not is left in {scratch}") from error

    thread = threading.Thread(target=now_and_then, name="copy", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        try:
            at_the_end()
        except UserError as error:
            print(f"crossguard: {error}", file=sys.stderr)
        raise
    with preemption.saving():
        at_the_end()


def copy() -> None:
    """What was written up to now is in the bucket, where a folder is one; the first process does.

    Raises:
        UserError: the bucket does not take it.
    """
    for mirror in _mirrors if processes.is_first() else ():
        mirror.copy()


def share(folder: str | Path) -> None:
    """What the first process has written in a folder is there for every process, where they share
    no disk; all call it.

    Raises:
        UserError: the bucket does not take it, or does not give it.
    """
    for mirror in _mirrors:
        if Path(folder).is_relative_to(mirror.folder):
            processes.by_first(mirror.copy)
            if not processes.is_first():
                mirror.fetch(Path(folder).relative_to(mirror.folder).as_posix())


def checkpoints(folder: str | Path) -> epath.Path:
    """Where Orbax writes a folder of checkpoints.

    Raises:
        UserError: see `Mirror.straight`.
    """
    folder = Path(folder).resolve()
    for mirror in _mirrors:
        if folder.is_relative_to(mirror.folder):
            return epath.Path(mirror.straight(folder) or folder)
    return epath.Path(folder)


def shown(text: str) -> str:
    """A text with addresses in place of the folders that stand for them."""
    for folder, address in _shown.items():
        text = text.replace(folder, address)
    return text


class _AddressStream:
    """A stream of text in which `shown` names what is written."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes it."""
        return self._stream.write(shown(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _addresses_in_print() -> Iterator[None]:
    out, err = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _AddressStream(out), _AddressStream(err)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, err
