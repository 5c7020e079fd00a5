"""The pickle inside PyTorch's `.bin` files, read as data.

A pickle is a program for a stack machine. This machine knows the operations that `torch.save`
writes for a table of tensors. It makes plain containers and its own records, imports nothing,
calls nothing, and refuses every other operation and name.
"""

from __future__ import annotations

import pickle
import pickletools
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from prompteol_jax.errors import UserError
from prompteol_jax.weights.safetensors import LARGEST, are_naturals

_MOST_STEPS: Final = 2**20  # operations; a tensor takes about 30


class Storage(NamedTuple):
    """A reference to the bytes of one or more tensors."""

    kind: str  # such as "Float" of torch.FloatStorage
    key: str
    items: int


class Tensor(NamedTuple):
    """The description of one tensor; offset and strides count items."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_state(pickled: bytes) -> dict[str, Tensor]:
    """Read the state dict that a pickle describes.

    Memory is proportional to the pickle, which may have no more than 2^20 operations.

    Raises: UserError for an operation, a name or a value that a table of tensors does not need, and
        for a pickle that is damaged.
    """
    try:
        state = _Machine(pickled).run()
    except UserError:
        raise
    except (ValueError, LookupError, TypeError, struct.error) as error:
        raise UserError(f"its pickle is damaged: {str(error)[:200]}") from error
    return _table(state)


class _Global(str):
    """The dotted name of something that a pickle asks for; never the thing itself."""


class _Machine:
    """The pickle, the stack, the stacks below its marks, and the memo."""

    def __init__(self, pickled: bytes) -> None:
        self.pickled = pickled
        self.position = 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(_MOST_STEPS):
            code = self.bytes(1)
            if code == pickle.STOP:
                return self.stack.pop()
            step = _STEPS.get(code)
            if step is None:
                raise UserError(f"refused, a table of tensors needs no {_operation(code)}")
            step(self)
        raise UserError(f"its pickle has more than {_MOST_STEPS} operations")

    def bytes(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.pickled):
            raise UserError("its pickle is damaged: it has no end")
        found = self.pickled[self.position : end]
        self.position = end
        return found

    def number(self, width: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.bytes(width), "little", signed=signed)

    def text(self, width: int) -> str:
        return self.bytes(self.number(width)).decode("utf-8", "surrogatepass")

    def line(self) -> str:
        end = self.pickled.index(b"\n", self.position)
        return self.bytes(end + 1 - self.position)[:-1].decode()

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def long(self) -> int:
        value = self.number(self.number(1), signed=True)
        if abs(value) > LARGEST:
            raise UserError("a number in its pickle is above 2^62")
        return value

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        values, self.stack = self.stack, self.below.pop()
        return values

    def put(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def memoize(self) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, key: int) -> None:
        self.stack.append(self.memo[key])

    def extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise UserError("its pickle appends to something else than a list")
        target.extend(values)

    def update(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(values) % 2:
            raise UserError("its pickle sets items of something else than a dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) not in (str, int):
                raise UserError(f"a name in its state dict is a {type(key).__name__}, not text")
            target[key] = value

    def last(self, count: int) -> list[Any]:
        return [self.stack.pop() for _ in range(count)][::-1]

    def build(self) -> None:
        """Drop what torch keeps as attributes of a state dict, such as its `_metadata`."""
        attributes, target = self.stack.pop(), self.stack[-1]
        if type(attributes) is not dict or type(target) is not dict:
            raise UserError("refused, its pickle sets attributes of something else than a dict")

    def find(self, module: str, name: str) -> None:
        dotted = f"{module}.{name}"
        if dotted not in _CALLS and dotted not in _STORAGES:
            raise UserError(
                f"refused, it asks for {dotted:.200}, which a file of tensors does not need and "
                "which could run code; use a safetensors file"
            )
        self.stack.append(_Global(dotted))

    def find_on_stack(self) -> None:
        module, name = self.last(2)
        if type(module) is not str or type(name) is not str:
            raise UserError("its pickle asks for something without a name")
        self.find(module, name)

    def reduce(self) -> None:
        function, arguments = self.last(2)
        call = _CALLS.get(function) if type(function) is _Global else None
        if call is None or type(arguments) is not tuple:
            raise UserError("refused, its pickle calls something that a table does not need")
        self.stack.append(call(*arguments))

    def storage(self) -> None:
        reference = self.stack.pop()
        if type(reference) is not tuple or len(reference) != 5 or reference[0] != "storage":
            raise UserError("its pickle holds an unknown reference")
        _, kind, key, _, items = reference
        known = type(kind) is _Global and kind in _STORAGES
        if not known or type(key) is not str or not are_naturals([items]):
            raise UserError("its pickle describes a storage that is not one of numbers")
        self.stack.append(Storage(_STORAGES[kind], key, items))


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    _gradient, _hooks, flags, *more = (*rest, *[None] * (3 - len(rest)))
    if more:
        raise UserError("a tensor in its pickle has too many parts")
    known = type(storage) is Storage and are_naturals([offset])
    if not known or not are_naturals(shape) or not are_naturals(strides):
        raise UserError("a tensor's shape, strides or offset are not numbers >= 0")
    if len(shape) != len(strides):
        raise UserError(f"shape {shape} has other axes than strides {strides}")
    if flags is not None and type(flags) is not dict:
        raise UserError("the flags of a tensor are not a dict")
    active = [str(name) for name, value in (flags or {}).items() if value is not False]
    if active:
        raise UserError(
            f"a tensor is stored with the flag {active[0]!r:.80}, which changes its numbers when "
            "it is read; call resolve_neg() and resolve_conj() on it and save it again"
        )
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(tensor: Any, _gradient: Any = None, _hooks: Any = None, /) -> Tensor:
    if type(tensor) is not Tensor:
        raise UserError("a parameter in its pickle is no tensor")
    return tensor


def _ordered_dict() -> dict[Any, Any]:
    return {}


_CALLS: Final[Mapping[str, Callable[..., Any]]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
}
_STORAGES: Final[Mapping[str, str]] = {
    f"torch.{kind}Storage": kind
    for kind in "Bool Byte Char Short Half BFloat16 Int Float Long Double".split()
}


_STEPS: Final[Mapping[bytes, Callable[[_Machine], Any]]] = {
    pickle.PROTO: lambda machine: machine.bytes(1),
    pickle.FRAME: lambda machine: machine.bytes(8),
    pickle.NONE: lambda machine: machine.push(None),
    pickle.NEWTRUE: lambda machine: machine.push(True),
    pickle.NEWFALSE: lambda machine: machine.push(False),
    pickle.BININT: lambda machine: machine.push(machine.number(4, signed=True)),
    pickle.BININT1: lambda machine: machine.push(machine.number(1)),
    pickle.BININT2: lambda machine: machine.push(machine.number(2)),
    pickle.LONG1: lambda machine: machine.push(machine.long()),
    pickle.BINFLOAT: lambda machine: machine.push(struct.unpack(">d", machine.bytes(8))[0]),
    pickle.BINUNICODE: lambda machine: machine.push(machine.text(4)),
    pickle.SHORT_BINUNICODE: lambda machine: machine.push(machine.text(1)),
    pickle.BINPUT: lambda machine: machine.put(machine.number(1)),
    pickle.LONG_BINPUT: lambda machine: machine.put(machine.number(4)),
    pickle.BINGET: lambda machine: machine.get(machine.number(1)),
    pickle.LONG_BINGET: lambda machine: machine.get(machine.number(4)),
    pickle.MEMOIZE: _Machine.memoize,
    pickle.MARK: _Machine.mark,
    pickle.EMPTY_TUPLE: lambda machine: machine.push(()),
    pickle.TUPLE: lambda machine: machine.push(tuple(machine.since_mark())),
    pickle.TUPLE1: lambda machine: machine.push(tuple(machine.last(1))),
    pickle.TUPLE2: lambda machine: machine.push(tuple(machine.last(2))),
    pickle.TUPLE3: lambda machine: machine.push(tuple(machine.last(3))),
    pickle.EMPTY_LIST: lambda machine: machine.push([]),
    pickle.APPEND: lambda machine: machine.extend(machine.last(1)),
    pickle.APPENDS: lambda machine: machine.extend(machine.since_mark()),
    pickle.EMPTY_DICT: lambda machine: machine.push({}),
    pickle.SETITEM: lambda machine: machine.update(machine.last(2)),
    pickle.SETITEMS: lambda machine: machine.update(machine.since_mark()),
    pickle.BUILD: _Machine.build,
    pickle.GLOBAL: lambda machine: machine.find(machine.line(), machine.line()),
    pickle.STACK_GLOBAL: _Machine.find_on_stack,
    pickle.REDUCE: _Machine.reduce,
    pickle.BINPERSID: _Machine.storage,
}


def _operation(code: bytes) -> str:
    # The type stubs lack this table.
    code2op = pickletools.code2op  # pyright: ignore[reportAttributeAccessIssue]
    known = code2op.get(code.decode("latin-1"))
    return known.name if known else f"operation {code!r}"


def _table(state: Any) -> dict[str, Tensor]:
    if type(state) is not dict:
        raise UserError(f"holds a {type(state).__name__}, not a state dict of tensors")
    others = [
        f"{name!r:.80}: {type(value).__name__}"
        for name, value in state.items()
        if type(name) is not str or type(value) is not Tensor
    ]
    if others:
        raise UserError(
            f"a state dict maps names to tensors, but this holds {', '.join(others[:8])}"
        )
    return state
