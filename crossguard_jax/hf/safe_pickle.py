"""Pickles of arrays and plain containers, opened without calling anything they name.

A pickle is a program: it may name any function and have it called. Here the few names that arrays
are written with stand for functions of this file, every other name is refused before anything is
imported, and of the opcodes only those are run that a tree of arrays needs. Neither numpy's nor
jax's own unpickling code runs.
"""

import itertools
import math
import mmap
import pickle
import pickletools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from crossguard_jax.core.errors import UserError

MAX_NODES = 1_000_000
"""The most arrays, numbers and containers a tree may have, counted where they occur: a list that
holds one list twice, which holds one list twice, ... is short to write and endless to walk."""

_OPCODES = """
PROTO FRAME MARK STOP MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET
NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT
SHORT_BINUNICODE BINUNICODE SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8
EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS
GLOBAL STACK_GLOBAL REDUCE BUILD
""".split()


class _Refused(Exception):
    """The pickle wants what no tree of arrays needs."""


class _Named:
    """What a name stands for while a pickle is read: a call of ours, and never a thing to build."""

    __slots__ = ("name", "call")

    def __init__(self, name: str, call: Callable[..., Any] | None = None):
        self.name, self.call = name, call

    def __call__(self, *arguments: Any) -> Any:
        if self.call is None:
            raise _Refused(f"it calls {self.name}")
        return self.call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise _Refused(f"it gives {self.name} a state")


class _Dtype:
    """A dtype on its way: its name first, then its byte order."""

    __slots__ = ("value",)

    def __init__(self, name: Any, align: Any = False, copy: Any = True):
        if isinstance(name, _Named) and name.name == "ml_dtypes.bfloat16":
            self.value = np.dtype(ml_dtypes.bfloat16)
        elif isinstance(name, str) and re.fullmatch(r"f[248]|[iu][1248]|b1", name):
            self.value = np.dtype(name)
        else:
            raise _Refused(f"it wants an array of {getattr(name, 'name', name)!r}")

    def __setstate__(self, state: Any) -> None:
        _, order, subarray, names, fields, *_ = state
        if order not in ("<", ">", "=", "|") or (subarray, names, fields) != (None, None, None):
            raise _Refused("it wants an array of records")
        self.value = self.value.newbyteorder(order)


class _Array:
    """An array on its way: empty first, then its contents."""

    __slots__ = ("value",)

    def __init__(self, value: np.ndarray | None = None):
        self.value = value

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _contents(data, dtype, shape, "F" if fortran else "C")


def _contents(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """The bytes as an array: nothing is allocated that the file does not hold."""
    if not (isinstance(data, bytes) and isinstance(dtype, _Dtype) and isinstance(shape, tuple)):
        raise ValueError("an array that is not written as numpy writes it")
    whole = all(type(n) is int and n >= 0 for n in shape)
    if not whole or math.prod(shape) * dtype.value.itemsize != len(data):
        raise ValueError(f"an array of shape {shape} in {len(data)} bytes")
    array = np.frombuffer(data, dtype.value).reshape(shape, order=order)
    return array.astype(dtype.value.newbyteorder("="), copy=False)


def _empty(cls: Any, shape: Any, typecode: Any) -> _Array:
    return _Array()


def _jax_array(make: Any, arguments: Any, state: Any, aval: Any) -> _Array:
    array = _Array()
    array.__setstate__(state)
    return array


def _latin1(text: str, encoding: str) -> bytes:
    """How protocol 2 writes bytes."""
    if encoding != "latin1":
        raise ValueError(f"bytes in {encoding!r}")
    return text.encode("latin1")


def _mapping(*items: Any) -> dict[Any, Any]:
    return dict(*items)


_CALLS: dict[str, Callable[..., Any] | None] = {
    "numpy.ndarray": None,
    "ml_dtypes.bfloat16": None,
    "numpy.dtype": _Dtype,
    "_codecs.encode": _latin1,
    "collections.OrderedDict": _mapping,
    "flax.core.frozen_dict.FrozenDict": _mapping,
    "jax._src.array._reconstruct_array": _jax_array,
    "jax._src.device_array.reconstruct_device_array": _jax_array,
}
for _core in ("numpy.core", "numpy._core"):  # numpy 1 and 2
    _CALLS |= {
        f"{_core}.multiarray._reconstruct": _empty,
        f"{_core}.multiarray.scalar": lambda dtype, data: _Array(_contents(data, dtype, (), "C")),
        f"{_core}.numeric._frombuffer": lambda data, dtype, shape, order: _Array(
            _contents(data, dtype, shape, order)
        ),
    }


def _refuse(name: str) -> Callable[[Any], None]:
    def handler(unpickler: Any) -> None:
        raise _Refused(f"it uses the opcode {name}")

    return handler


def _bytearray8(unpickler: Any) -> None:
    """Bytes for a bytearray; the library's own handler allocates what the file merely claims."""
    size = int.from_bytes(unpickler.read(8), "little")
    unpickler.append(unpickler.read(size))


# Python's own unpickler rather than C's: its opcodes can be taken away, and its memo is a dict (C's
# is an array that one opcode can make gigabytes long).
class _Unpickler(pickle._Unpickler):
    dispatch = {
        ord(op.code): pickle._Unpickler.dispatch[ord(op.code)]
        if op.name in _OPCODES
        else _refuse(op.name)
        for op in pickletools.opcodes
    } | {ord("\x96"): _bytearray8}

    def find_class(self, module: str, name: str) -> _Named:
        path = f"{module}.{name}"
        if path not in _CALLS:
            raise _Refused(f"it wants {path}")
        return _Named(path, _CALLS[path])


def _plain(value: Any, count: Iterator[int]) -> Any:
    """The tree with its arrays done."""
    if next(count) >= MAX_NODES:
        raise ValueError(f"more than {MAX_NODES:,} entries")
    if isinstance(value, _Array):
        if value.value is None:
            raise ValueError("an array without contents")
        return value.value
    if type(value) is dict:
        return {_key(k): _plain(v, count) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(v, count) for v in value)
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    raise ValueError(f"a {getattr(value, 'name', type(value).__name__)} among the values")


def _key(key: Any) -> Any:
    if not isinstance(key, str | int):
        raise ValueError(f"a key that is a {type(key).__name__}")
    return key


def load(path: str | Path) -> Any:
    """The tree in a pickle file: dicts, lists, tuples, strings, numbers and numpy arrays.

    jax arrays come back as numpy arrays, `FrozenDict` and `OrderedDict` as dicts. Nothing that the
    file names is imported or called.

    Raises:
        UserError: no such file, it wants anything else (the message says what), or it is damaged.
    """
    try:
        with (
            open(path, "rb") as file,
            # A read from a map returns what is there; a file's allocates what was asked for.
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            return _plain(_Unpickler(content).load(), itertools.count())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except _Refused as error:
        raise UserError(
            f"{path}: {error}; only arrays and plain containers are opened, so that a pickle can "
            "run nothing: take the weights from another source, or as safetensors"
        ) from error
    except Exception as error:  # a damaged pickle raises nearly anything
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path}: not a pickle of arrays and plain containers ({first}); download it again"
        ) from error
