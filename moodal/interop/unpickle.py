"""Reading pickles that hold plain data, and nothing else: a pickle is a program, and this runs only harmless ones.

Allowed: None, booleans, numbers, strings, bytes, lists, tuples, dicts, sets, ordered dicts, and NumPy arrays and
scalars of booleans, numbers, strings and such objects. The names a pickle may ask for are a closed table, and each
leads to a function of this file that checks its arguments; no class of the pickle's choice is ever made or touched.
Python's unpickler in C reserves memory by numbers found in the file; the one written in Python, used here, does not.
"""

from __future__ import annotations

import hashlib
import io
import math
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn

import numpy as np

from moodal.core.errors import DataError

#: told how many bytes of how many are read.
ReadProgress = Callable[[int, int], None]

_FAULTS = (
    *(pickle.UnpicklingError, EOFError, IndexError, KeyError, ValueError, TypeError, AttributeError, UnicodeError),
    *(MemoryError, OverflowError, RecursionError, struct.error, AssertionError),
)


class RefusedPickle(DataError):
    """The file asks for something plain data does not need. Nothing of it was run."""


def load_plain(path: Path, *, progress: ReadProgress | None = None) -> tuple[Any, str]:
    """The data pickled in ``path`` and the SHA-256 of the file.

    Raises ``RefusedPickle`` naming what the file asks for beyond plain data, and ``DataError`` if it is absent,
    truncated or not a pickle.
    """
    try:
        with path.open("rb", buffering=0) as file:
            return _load(file, path, progress)
    except OSError as fault:
        raise DataError(f"{path} could not be read ({fault.strerror or fault}).") from fault


def _load(file: io.FileIO, path: Path, progress: ReadProgress | None) -> tuple[Any, str]:
    size = path.stat().st_size
    raw = _Counting(file, size, progress)
    source = _Bounded(io.BufferedReader(raw, 1 << 20), size)
    try:
        value = _PlainUnpickler(source, encoding="latin1").load()
    except RefusedPickle as fault:
        raise RefusedPickle(f"{path.name}: {fault}") from fault
    except _FAULTS as fault:
        reason = str(fault) or type(fault).__name__
        raise DataError(
            f"{path} is not a readable pickle ({reason}, after {raw.read_bytes} of {size} bytes); "
            "it may be truncated or another kind of file, get it again."
        ) from fault
    source.drain()
    return value, raw.hash.hexdigest()


class _Counting(io.RawIOBase):
    """The file, its checksum and the count of bytes, as they go by."""

    def __init__(self, file: io.FileIO, size: int, progress: ReadProgress | None) -> None:
        super().__init__()
        self._file, self._size, self._progress = file, size, progress
        self.hash, self.read_bytes = hashlib.sha256(), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = memoryview(buffer)[: 1 << 24]  # at most 16 MiB at once, so that progress is seen
        count = self._file.readinto(part)
        self.hash.update(part[:count])
        self.read_bytes += count
        if self._progress is not None:
            self._progress(self.read_bytes, self._size)
        return count


class _Bounded:
    """What an unpickler reads from. Asking for more than the file has left fails before memory is reserved."""

    def __init__(self, file: io.BufferedReader, size: int) -> None:
        self._file, self._left = file, size

    def read(self, count: int) -> bytes:
        self._take(count)
        return self._file.read(count)

    def readinto(self, buffer: Any) -> int:
        self._take(len(buffer))
        return self._file.readinto(buffer)

    def readline(self) -> bytes:
        line = self._file.readline(self._left)
        self._left -= len(line)
        return line

    def drain(self) -> None:
        """Read to the end, for the checksum."""
        while self._file.read(1 << 20):
            pass

    def _take(self, count: int) -> None:
        if not 0 <= count <= self._left:
            raise EOFError(f"{count} bytes are announced where {self._left} are left")
        self._left -= count


class _DType:
    """A pickled ``numpy.dtype``: kept as its text until the array that uses it is made."""

    __slots__ = ("order", "text")

    def __init__(self, text: str) -> None:
        self.text, self.order = text, ""

    def setstate(self, state: Any) -> None:
        """From ``(version, byte order, subarray, names, fields, ...)``; records with fields are not plain data."""
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError("a dtype is malformed")
        if any(part is not None for part in state[2:5]):
            raise RefusedPickle("it holds a structured array, which plain data does not need.")
        self.order = state[1]

    def real(self) -> np.dtype:
        return np.dtype(self.text if self.order in ("", "|") else self.order + self.text)


class _Allowed:
    """A function a pickle may call by name. Slots and no state: a pickle cannot change it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


def _dtype(text: Any, *_flags: Any) -> _DType:
    text = text.decode("ascii") if isinstance(text, bytes) else text
    match = re.fullmatch(r"[<>=|]?([?biufcSUO])(\d{0,9})", text) if isinstance(text, str) else None
    if match is None:
        raise RefusedPickle(f"it holds an array of {text!r}, which is none of booleans, numbers, strings and objects.")
    return _DType("O" if match[1] == "O" else text)


def _array(data: bytes | str | list[Any], dtype: Any, shape: Any, *, order: Literal["C", "F"]) -> np.ndarray:
    """A checked array of its bytes, or of its list of objects."""
    if not isinstance(dtype, _DType):
        raise pickle.UnpicklingError("an array has no dtype")
    shape = (shape,) if isinstance(shape, int) else shape
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise pickle.UnpicklingError(f"an array has the shape {shape!r}")
    real, count = dtype.real(), math.prod(shape)
    if real.hasobject:
        if not isinstance(data, list) or len(data) != count:
            raise pickle.UnpicklingError("an array of objects is malformed")
        return np.fromiter(data, dtype=object, count=count).reshape(shape, order=order)
    data = data.encode("latin1") if isinstance(data, str) else data  # written by Python 2
    if not isinstance(data, (bytes, bytearray)) or len(data) != count * real.itemsize:
        raise pickle.UnpicklingError(f"an array of shape {shape} does not have the bytes it needs")
    if count == 0 or real.itemsize == 0:
        return np.zeros(shape, real)
    if real.kind == "U" and int(np.frombuffer(data, real.newbyteorder("=").str[0] + "u4").max()) > 0x10FFFF:
        raise pickle.UnpicklingError("an array of strings is malformed")
    return np.frombuffer(data, real).reshape(shape, order=order)


class _Blank:
    """The empty array that ``_reconstruct`` makes, before its state is known."""

    __slots__ = ()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    return _array(data, dtype, shape, order="F" if order == "F" else "C")


def _scalar(dtype: Any, data: Any) -> Any:
    return data if isinstance(dtype, _DType) and dtype.text == "O" else _array(data, dtype, (), order="C")[()]


def _latin1(text: Any, encoding: Any = "latin1") -> bytes:
    """Bytes, as protocol 2 writes them."""
    if not isinstance(text, str) or encoding != "latin1":
        raise RefusedPickle(f"it encodes text as {encoding!r}; only latin1 is used for bytes.")
    return text.encode("latin1")


_ARRAY_TYPE = object()  # stands for numpy.ndarray: may be named, cannot be called
_NUMPY: dict[tuple[str, str], Any] = {
    ("multiarray", "_reconstruct"): _Allowed(lambda *_args: _Blank()),
    ("multiarray", "scalar"): _Allowed(_scalar),
    ("numeric", "_frombuffer"): _Allowed(_from_buffer),
}
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _ARRAY_TYPE,
    ("numpy", "dtype"): _Allowed(_dtype),
    ("_codecs", "encode"): _Allowed(_latin1),
    ("collections", "OrderedDict"): _Allowed(OrderedDict),
    **{(module, kind.__name__): _Allowed(kind) for module in ("builtins", "__builtin__") for kind in (set, frozenset)},
    **{(module, "bytes"): _Allowed(lambda: b"") for module in ("builtins", "__builtin__")},  # protocol 2, empty
    **{(f"numpy.{core}.{part}", name): f for core in ("core", "_core") for (part, name), f in _NUMPY.items()},
}
#: instructions that make objects of classes, use registered codes or outside objects.
_FORBIDDEN = (
    *(pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4),
    *(pickle.PERSID, pickle.BINPERSID, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
)


class _PlainUnpickler(pickle._Unpickler):
    """Python's own unpickler with the table of names closed and the instructions for objects taken out."""

    stack: list[Any]
    memo: dict[int, Any]
    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        found = _ALLOWED.get((module, name))
        if found is None:
            raise RefusedPickle(
                f"it asks for '{module}.{name}', which plain data does not need; nothing of it was run. "
                "Save the data again as dictionaries of NumPy arrays, numbers and text."
            )
        return found

    def load_build(self) -> None:
        """Arrays and dtypes get their state; ordered dicts have none; nothing else may be given any."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _Blank):
            self._finish_array(target, state)
        elif isinstance(target, _DType):
            target.setstate(state)
        else:
            raise RefusedPickle(f"it sets the state of a {type(target).__name__}, which plain data does not need.")

    def _finish_array(self, blank: _Blank, state: Any) -> None:
        _, shape, dtype, fortran, data = state if len(state) == 5 else (0, *state)
        array = _array(data, dtype, shape, order="F" if fortran else "C")
        self.stack[-1] = array
        # The blank was remembered just before; the array takes its place there, so it can be referred to.
        for place in reversed(self.memo):
            if self.memo[place] is blank:
                self.memo[place] = array
                break

    def load_forbidden(self) -> NoReturn:
        raise RefusedPickle("it uses an instruction that plain data does not need; nothing of it was run.")

    dispatch[pickle.BUILD[0]] = load_build
    dispatch.update(dict.fromkeys((code[0] for code in _FORBIDDEN), load_forbidden))
