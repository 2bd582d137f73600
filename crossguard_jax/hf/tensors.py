"""Tensors by key: the safetensors of a Hub folder, mapped and not read before that is needed."""

import json
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from crossguard_jax.core.errors import UserError
from crossguard_jax.hf import names
from crossguard_jax.hf.folder import weight_files

BLOCK = 256
"""Rows of a tensor that are read or compared at a time."""

_FLOATS: dict[str, np.dtype[Any]] = {
    "F64": jnp.dtype("float64"),
    "F32": jnp.dtype("float32"),
    "F16": jnp.dtype("float16"),
    "BF16": jnp.dtype("bfloat16"),
}
"""Numpy's names of the types that weights may have."""


@runtime_checkable
class Source(Protocol):
    """Tensors by key, and what is wrong with where they come from."""

    problems: list[str]

    def __iter__(self) -> Iterator[str]: ...

    def shape(self, key: str) -> tuple[int, ...]: ...

    def read(self, key: str) -> np.ndarray:
        """The tensor, perhaps as it lies in a file: what is kept of it has to be copied."""
        ...


class Tensors:
    """The tensors of a folder by key: shapes from the headers, values as they lie in the files.

    A file is mapped into memory, so that a part of a tensor costs the reading of that part.
    """

    def __init__(self, folder: Path, files: Sequence[str] | None = None):
        self.problems: list[str] = []
        self._files: dict[str, _File] = {}
        self._last: _File | None = None
        for file in weight_files(folder) if files is None else files:
            try:
                opened = _File(folder / file)
            except FileNotFoundError:
                self.problems.append(f"{file}: missing; download it too")
            except (SafetensorError, OSError) as error:
                self.problems.append(f"{file}: truncated or not a safetensors file ({error})")
            else:
                self._files.update(dict.fromkeys(opened.header, opened))
        self._refuse_quantized(folder)

    def _refuse_quantized(self, folder: Path) -> None:
        types = {
            key: file.header[key]["dtype"]
            for key, file in self._files.items()
            if not names.IGNORED.match(key)
        }
        quantized = [key for key, kind in types.items() if kind not in _FLOATS]
        if quantized:
            raise UserError(
                f"{folder}: {len(quantized)} tensors are of {types[quantized[0]]} or its like, "
                f"such as {quantized[0]}; quantized weights are not computed here: give the "
                "unquantized model"
            )

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __contains__(self, key: str) -> bool:
        return key in self._files

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape, from the header."""
        return tuple(self._files[key].header[key]["shape"])

    def read(self, key: str) -> np.ndarray:
        """The tensor as it lies in the file: reading follows use."""
        if self._last is not None:
            self._last.let_go()  # what was to be kept of it is copied by now
        self._last = self._files[key]
        return self._last.view(key)


class _File:
    """One safetensors file, mapped; the mapping lasts as long as a view of it."""

    def __init__(self, path: Path):
        with safe_open(path, framework="np"):
            pass  # it checks header and length
        with path.open("rb") as file:
            n_header = int.from_bytes(file.read(8), "little")
            self.header: dict[str, Any] = json.loads(file.read(n_header))
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.header.pop("__metadata__", None)
        self._start = 8 + n_header

    def let_go(self) -> None:
        """Its pages need not stay in this process; a view that is used again brings them back."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._bytes.madvise(mmap.MADV_DONTNEED)

    def view(self, key: str) -> np.ndarray:
        """A tensor of a type that weights may have."""
        entry = self.header[key]
        begin, end = entry["data_offsets"]
        kind = _FLOATS[entry["dtype"]]
        flat = np.frombuffer(self._bytes, kind, (end - begin) // kind.itemsize, self._start + begin)
        return flat.reshape(entry["shape"])


def open_tensors(folder: str | Path, files: Sequence[str] | None = None) -> Tensors:
    """A folder's weights, or the safetensors named.

    Raises:
        UserError: a file is missing or truncated; the keys that it would have held are not listed.
    """
    tensors = Tensors(Path(folder), files)
    if tensors.problems:
        refuse(str(folder), tensors.problems)
    return tensors


def refuse(folder: str, problems: list[str]) -> NoReturn:
    """Raises all problems of a folder in one line.

    Raises:
        UserError: always.
    """
    shown = "; ".join(problems[:40]) + f"; and {len(problems) - 40} more" * (len(problems) > 40)
    raise UserError(f"{folder}: {len(problems)} problem(s): {shown}")
