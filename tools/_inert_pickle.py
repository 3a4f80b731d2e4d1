"""Reads PyTorch's checkpoint files without importing or calling anything that they name.

A pickle is a program: it may name any function of any installed package and have it called. `torch.load` refuses such
files, or runs them. Here a name becomes a `Foreign`: nobody looks it up, and a call of it, or attributes and items that
it is given, lead to nothing. Only what makes up weights is built, by functions of this file: tensors, parameters and
dictionaries. Read are the zip format (PyTorch 1.6 and later) and the stream of pickles before it, not TorchScript.
"""

import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, ClassVar

import torch
from torch import Tensor
from vertebra.backbones._checkpoint import check_file, in_words, no_checkpoint
from vertebra.backbones._errors import UserError

_MAGIC = 0x1950A86A20F9469CFC6C  # opens a stream of pickles
_LoadStorage = Callable[[torch.dtype, Any, int], Tensor]


class Foreign:
    """Stands for whatever a file calls `name`: nobody looked it up, nobody calls it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}, not loaded>"


def read_inert(path: str | Path) -> tuple[dict[Any, Any], list[str]]:
    """Read a checkpoint that holds objects which no safe loader takes.

    Returns:
        The file's dictionary, with `Foreign` for what was not loaded, and the names of that.

    Raises:
        UserError: the file is missing, empty, truncated, no checkpoint, or holds something other than a dictionary.
    """
    path, foreign = check_file(path), set()
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            content = _read_zip(file, foreign) if zipped else _read_stream(file, path.stat().st_size, foreign)
    except UserError as error:
        raise UserError(f"checkpoint {path} {error}") from error
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # what comes of bytes that anyone may have written has no end of names
        reason = in_words(str(error), "its bytes make no sense")
        raise UserError(no_checkpoint(path, reason)) from error
    if not isinstance(content, dict):
        kind = content.name if isinstance(content, Foreign) else type(content).__name__
        raise UserError(f"checkpoint {path} holds a {kind}; a dictionary of weights is what can be converted")
    return content, sorted(foreign)


def _read_zip(file: IO[bytes], foreign: set[str]) -> Any:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(roots) != 1:
            raise UserError("is a zip file, but no checkpoint: there is no data.pkl in it")
        root = roots[0]
        if f"{root}constants.pkl" in names:
            raise UserError("is a TorchScript program, not a file of weights; save its state_dict() where you trust it")
        if f"{root}byteorder" in names and _stored(archive, f"{root}byteorder") != b"little":
            raise UserError("was written on a big-endian machine, which is not supported")
        loaded: dict[tuple[str, torch.dtype], Tensor] = {}

        def load_storage(dtype: torch.dtype, key: Any, length: int) -> Tensor:
            if (key, dtype) not in loaded:
                content = _stored(archive, f"{root}data/{key}")
                loaded[key, dtype] = (
                    torch.frombuffer(content, dtype=dtype, count=length) if length else torch.empty(0, dtype=dtype)
                )
            return loaded[key, dtype]

        with archive.open(f"{root}data.pkl") as stream:
            return _Unpickler(stream, load_storage, foreign).load()


def _stored(archive: zipfile.ZipFile, name: str) -> bytearray:
    """One entry of the archive; its check sum is compared."""
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED:
        raise pickle.UnpicklingError(f"{name} is compressed, which PyTorch never does")
    with archive.open(entry) as file:
        return bytearray(file.read())


def _read_stream(file: IO[bytes], size: int, foreign: set[str]) -> Any:
    """The format before the zip files: pickles of a header, the object and the storages' keys, then their bytes."""
    storages: dict[Any, Tensor] = {}

    def load_storage(dtype: torch.dtype, key: Any, length: int) -> Tensor:
        if key not in storages:
            if length * dtype.itemsize > size - sum(storage.nbytes for storage in storages.values()):
                raise pickle.UnpicklingError("it says that it is longer than it is")
            storages[key] = torch.zeros(length, dtype=dtype)
        return storages[key]

    def load() -> Any:
        return _Unpickler(file, load_storage, foreign).load()

    if load() != _MAGIC:
        raise pickle.UnpicklingError("it does not begin as PyTorch's files do")
    _protocol, _machine, content, keys = load(), load(), load(), load()
    for key in keys:
        storage = storages[key]
        (length,) = struct.unpack("<q", file.read(8))
        data = bytearray(file.read(storage.nbytes))
        if length != len(storage) or len(data) != storage.nbytes:
            raise pickle.UnpicklingError("its end is missing")
        if length:
            storage.copy_(torch.frombuffer(data, dtype=storage.dtype))
    return content


# ---- what may be built


def _rebuild_tensor(storage: Tensor, offset: int, size: Iterable[int], stride: Iterable[int], *_: Any) -> Tensor:
    return storage.as_strided(tuple(size), tuple(stride), storage.storage_offset() + offset)


def _rebuild_tensor_v3(
    storage: Tensor, offset: int, size: Any, stride: Any, _grad: bool, _hooks: Any, dtype: torch.dtype, *_: Any
) -> Tensor:
    return _rebuild_tensor(storage.view(dtype), offset, size, stride)


def _rebuild_parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _make_dict(items: Iterable[tuple[Any, Any]] = ()) -> dict[Any, Any]:
    return dict(items)


def _make_tuple(items: Iterable[Any] = ()) -> tuple[Any, ...]:
    return tuple(items)


_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
_BUILDERS = {
    "collections.OrderedDict": _make_dict,
    "torch.Size": _make_tuple,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
}
_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
_KNOWN: dict[str, Any] = {
    **_BUILDERS,
    **_DTYPES,
    **{f"{module}.{name}": dtype for name, dtype in _STORAGES.items() for module in ("torch", "torch.cuda")},
    "torch.storage.UntypedStorage": torch.uint8,
}


class _Unpickler(pickle._Unpickler):
    """The pickle machine with every instruction that could reach code replaced by one that cannot."""

    def __init__(self, file: IO[bytes], load_storage: _LoadStorage, foreign: set[str]) -> None:
        super().__init__(file, encoding="latin1")  # what Python 2 wrote as str; any byte is valid
        self._load_storage, self._foreign = load_storage, foreign

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in _KNOWN:
            self._foreign.add(full)
        return _KNOWN.get(full) or Foreign(full)

    def persistent_load(self, pid: Any) -> Any:
        if isinstance(pid, tuple) and pid[0] == "module" and len(pid) > 1:
            return pid[1]
        kind, dtype, key, _location, length, *view = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or length < 0:
            raise pickle.UnpicklingError("it refers to something other than a storage")
        storage = self._load_storage(dtype, key, length)
        if view and view[0] is not None:
            _key, start, view_length = view[0]
            return storage[start : start + view_length]
        return storage

    def _call(self, called: Any, args: Any) -> Any:
        if isinstance(called, Foreign):
            return Foreign(called.name)
        if not any(called is builder for builder in _BUILDERS.values()):
            raise pickle.UnpicklingError(f"it calls a {type(called).__name__}")
        return args[0] if args and isinstance(args[0], Foreign) else called(*args)

    def _load_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], args)

    def _load_newobj_ex(self) -> None:
        del self.stack[-1]  # keywords: no builder takes any
        self._load_reduce()

    def _load_inst(self) -> None:
        module, name = (self.readline()[:-1].decode("ascii") for _ in range(2))
        args = self.pop_mark()
        self.append(self._call(self.find_class(module, name), args))

    def _load_obj(self) -> None:
        called, *args = self.pop_mark()
        self.append(self._call(called, args))

    def _load_build(self) -> None:
        del self.stack[-1]  # attributes; weights have none that matter

    def _fill(self, kind: type, method: Callable[[Any, Any], Any], items: Any) -> None:
        target = self.stack[-1]
        if type(target) is kind:
            method(target, items)
        elif not isinstance(target, Foreign):
            raise pickle.UnpicklingError(f"it puts items into a {type(target).__name__}")

    def _load_append(self) -> None:
        item = self.stack.pop()
        self._fill(list, list.append, item)

    def _load_appends(self) -> None:
        self._fill(list, list.extend, self.pop_mark())

    def _load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill(dict, dict.update, [(key, value)])

    def _load_setitems(self) -> None:
        items = self.pop_mark()
        self._fill(dict, dict.update, list(zip(items[::2], items[1::2], strict=True)))

    def _load_additems(self) -> None:
        self._fill(set, set.update, self.pop_mark())

    # by name, so that an instruction which a later Python adds is unknown here, and refused, until someone has read it
    _INERT = (
        "PROTO FRAME STOP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING "
        "BINSTRING SHORT_BINSTRING BINBYTES BINBYTES8 SHORT_BINBYTES BYTEARRAY8 UNICODE BINUNICODE BINUNICODE8 "
        "SHORT_BINUNICODE TUPLE EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 LIST EMPTY_LIST DICT EMPTY_DICT EMPTY_SET FROZENSET "
        "MARK POP POP_MARK DUP PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET "
        "GLOBAL STACK_GLOBAL PERSID BINPERSID"  # which call find_class or persistent_load
    )
    dispatch: ClassVar[dict[int, Callable[["_Unpickler"], None]]] = {
        **{code: pickle._Unpickler.dispatch[code] for code in (getattr(pickle, op)[0] for op in _INERT.split())},
        pickle.REDUCE[0]: _load_reduce,
        pickle.NEWOBJ[0]: _load_reduce,
        pickle.NEWOBJ_EX[0]: _load_newobj_ex,
        pickle.INST[0]: _load_inst,
        pickle.OBJ[0]: _load_obj,
        pickle.BUILD[0]: _load_build,
        pickle.APPEND[0]: _load_append,
        pickle.APPENDS[0]: _load_appends,
        pickle.SETITEM[0]: _load_setitem,
        pickle.SETITEMS[0]: _load_setitems,
        pickle.ADDITEMS[0]: _load_additems,
    }
