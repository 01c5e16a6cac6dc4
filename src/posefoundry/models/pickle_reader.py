"""Reads the pickle inside a published checkpoint as data: nothing in it is imported, called or executed.

A pickle is a program for a small stack machine. This file interprets the part of it that data needs, with an answer
of its own to each opcode: a class name becomes an inert `Structure` that keeps what it is given, a tensor is cut out
of the archive's bytes with its bounds checked, and any global that is not on the lists below is refused by its name.
"""

import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posefoundry.errors import PosefoundryError

MAX_PICKLE_BYTES = 64 << 20  # the largest published model's is under 1 MiB; tensors are not part of it

STORAGE_DTYPES = {
    "torch DoubleStorage": torch.float64,
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
}

# Classes whose objects make up the module tree and its settings: kept as Structure, never looked up.
STRUCTURE_PREFIXES = ("ultralytics.", "torch.nn.modules.")
STRUCTURE_NAMES = frozenset(
    {
        "torch device", "torch dtype", "pathlib PosixPath", "pathlib PurePosixPath", "pathlib WindowsPath",
        "numpy dtype", "numpy.core.multiarray scalar", "numpy._core.multiarray scalar", "_codecs encode",
        "datetime datetime",
    }
)  # fmt: skip


@dataclass(eq=False)
class Structure:
    """Stands for an object of a class that was not loaded.

    Attributes:
        class_name: Full dotted name of the class.
        arguments: What the class would have been called with.
        state: The object's attributes.
    """

    class_name: str
    arguments: tuple[Any, ...] = ()
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Global:
    name: str  # "module attribute", as pickle writes it


class _Mark:
    pass


def read_checkpoint(path: Path) -> Any:
    """Reads a PyTorch checkpoint (zip form) into plain containers, tensors and `Structure` objects.

    Raises:
        PosefoundryError: The file is missing, damaged or not such an archive, or its pickle names a global outside
            the lists of this module; the message gives the name.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(archive, path)
    except FileNotFoundError:
        raise PosefoundryError(f"{path}: expected a checkpoint, found nothing there.") from None
    except (zipfile.BadZipFile, OSError) as error:
        raise PosefoundryError(
            f"{path}: expected a PyTorch checkpoint in zip form, got a file that is not one ({error}). "
            "Save it again with a PyTorch of 1.6 or newer, or download it again."
        ) from None


def _read_archive(archive: zipfile.ZipFile, path: Path) -> Any:
    records = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in records if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1 or pickles[0].count("/") > 1:
        raise PosefoundryError(f"{path}: expected one data.pkl in the checkpoint's top folder, got {pickles}.")
    prefix = pickles[0].removesuffix("data.pkl")

    def read(name: str) -> bytes:
        info = records.get(prefix + name)
        if info is None:
            raise PosefoundryError(f"{path}: expected a record {name} in the checkpoint, found none.")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > path.stat().st_size:
            raise PosefoundryError(f"{path}: expected stored records, got {name} compressed.")
        return archive.read(info)

    if prefix + "byteorder" in records and read("byteorder") != b"little":
        raise PosefoundryError(f"{path}: expected little-endian tensors.")
    program = read("data.pkl")
    if len(program) > MAX_PICKLE_BYTES:
        raise PosefoundryError(f"{path}: expected a pickle below {MAX_PICKLE_BYTES} bytes, got {len(program)}.")
    try:
        return _Machine(lambda key: read(f"data/{key}")).run(program)
    except PosefoundryError as error:
        raise PosefoundryError(f"{path}: {error}") from None
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, OverflowError) as error:
        raise PosefoundryError(f"{path}: the checkpoint's pickle is damaged ({error}). Download it again.") from None


class _Machine:
    """The stack machine: one method a kind of opcode, and no way to call anything the pickle names."""

    def __init__(self, read_record: Callable[[str], bytes]) -> None:
        self._read_record = read_record
        self._storages: dict[str, Tensor] = {}
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, program: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name == "STOP":
                return self._stack.pop()
            self._step(opcode.name, argument)
        raise PosefoundryError("the pickle ends too early.")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                stack.append(_Mark())
            case "POP":
                stack.pop()
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINBYTES" | "SHORT_BINBYTES":
                stack.append(argument)
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE" | "EMPTY_SET":
                stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": set}[name]())
            case "TUPLE" | "LIST":
                items = self._pop_to_mark()
                stack.append(tuple(items) if name == "TUPLE" else items)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND" | "APPENDS" | "SETITEM" | "SETITEMS" | "ADDITEMS" | "DICT":
                self._fill_container(name)
            case "GLOBAL":
                stack.append(_admit(argument))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(_admit(f"{module} {attribute}"))
            case "NEWOBJ":
                arguments, origin = stack.pop(), stack.pop()
                stack.append(_structure(origin, arguments))
            case "REDUCE":
                arguments, origin = stack.pop(), stack.pop()
                stack.append(self._construct(origin, arguments))
            case "BUILD":
                self._build()
            case "BINPERSID":
                stack.append(self._storage(stack.pop()))
            case _:
                raise PosefoundryError(
                    f"expected a pickle of weights, got the opcode {name}, which weights don't need."
                )

    def _pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while not isinstance(item := self._stack.pop(), _Mark):
            items.append(item)
        return items[::-1]

    def _fill_container(self, name: str) -> None:
        if name == "DICT":
            items = self._pop_to_mark()
            self._stack.append({})
        elif name in ("APPEND", "SETITEM"):
            count = 1 if name == "APPEND" else 2
            items = self._stack[-count:]
            del self._stack[-count:]
        else:
            items = self._pop_to_mark()
        container = self._stack[-1]
        if isinstance(container, list) and name.startswith("APPEND"):
            container.extend(items)
        elif isinstance(container, set) and name == "ADDITEMS":
            container.update(map(_key, items))
        elif isinstance(container, dict) and name in ("SETITEM", "SETITEMS", "DICT"):
            container.update(zip(map(_key, items[::2]), items[1::2], strict=True))
        else:
            raise PosefoundryError(f"the pickle puts items into a {type(container).__name__} by {name}.")

    def _construct(self, origin: Any, arguments: Any) -> Any:
        if not isinstance(origin, _Global) or not isinstance(arguments, tuple):
            raise PosefoundryError("the pickle constructs an object of something that is not a class.")
        match origin.name:
            case "torch._utils _rebuild_tensor_v2":
                return _tensor(*arguments[:4])
            case "torch._utils _rebuild_parameter":
                return arguments[0]
            case "collections OrderedDict":
                (pairs,) = arguments or ([],)
                return {_key(key): value for key, value in pairs}
            case "__builtin__ set" | "builtins set":
                (items,) = arguments or ([],)
                return {_key(item) for item in items}
            case "torch Size":
                return tuple(*arguments)
            case _:
                return _structure(origin, arguments)

    def _build(self) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if isinstance(target, Structure):
            # (attributes, slots) is pickle's form for classes with slots; other states have no names.
            parts = state if isinstance(state, tuple) else (state,)
            for part in parts:
                if isinstance(part, dict):
                    target.state.update(part)
        elif not isinstance(target, dict):  # an OrderedDict's own attributes (a state dict's version notes) are dropped
            raise PosefoundryError(f"the pickle sets attributes of a {type(target).__name__}.")

    def _storage(self, reference: Any) -> Tensor:
        """Reads a storage as a flat tensor of its type."""
        match reference:
            case ("storage", _Global(name=type_name), str(key), _, int(length)) if type_name in STORAGE_DTYPES:
                pass
            case _:
                raise PosefoundryError("the pickle refers to a storage in an unknown form.")
        if key not in self._storages:
            content = bytearray(self._read_record(key))
            dtype = STORAGE_DTYPES[type_name]
            if len(content) != length * dtype.itemsize:
                raise PosefoundryError(
                    f"expected {length * dtype.itemsize} bytes in storage {key}, got {len(content)}."
                )
            self._storages[key] = torch.frombuffer(content, dtype=dtype) if length else torch.empty(0, dtype=dtype)
        return self._storages[key]


def _key(value: Any) -> Any:
    """Refuses keys that weights don't have; to hash a deeply nested tuple would end the process."""
    if not isinstance(value, str | int | float | None):
        raise PosefoundryError(f"the pickle uses a {type(value).__name__} as a key.")
    return value


def _admit(name: str) -> _Global:
    constructors = {
        "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "torch Size", "collections OrderedDict",
        "__builtin__ set", "builtins set",
    }  # fmt: skip
    known = name in constructors or name in STORAGE_DTYPES or _is_structure(name)
    if not known:
        raise PosefoundryError(
            f"expected nothing but weights, got a checkpoint that asks for {name.replace(' ', '.')!r}. It was refused "
            "and nothing was run. Get the weights from a source you trust, or as safetensors."
        )
    return _Global(name)


def _is_structure(name: str) -> bool:
    return name in STRUCTURE_NAMES or name.startswith(STRUCTURE_PREFIXES)


def _structure(origin: Any, arguments: Any) -> Structure:
    if not isinstance(origin, _Global) or not _is_structure(origin.name) or not isinstance(arguments, tuple):
        raise PosefoundryError("the pickle makes an object of something that is not a class.")
    return Structure(origin.name.replace(" ", "."), arguments)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    """Cuts a tensor out of its storage, refusing a view that reaches beyond it or repeats its elements."""
    shape_ok = isinstance(storage, Tensor) and isinstance(size, tuple) and isinstance(stride, tuple)
    if not shape_ok or len(size) != len(stride) or any(type(n) is not int or n < 0 for n in (offset, *size, *stride)):
        raise PosefoundryError("the pickle describes a tensor in an unknown form.")
    count = 1
    for n in size:
        count *= n
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else offset
    if count > storage.numel() or last >= storage.numel() + (count == 0):
        raise PosefoundryError(f"a tensor of shape {list(size)} reaches beyond its storage of {storage.numel()}.")
    return storage.as_strided(size, stride, offset)
