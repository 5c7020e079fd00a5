"""Laws of state_pickle: a pickle stays data, and costs no more than its own size."""

from __future__ import annotations

import pickle
import resource

import ml_dtypes
import numpy as np
import pytest

from prompteol_jax.errors import UserError
from prompteol_jax.weights import state_pickle

pytestmark = pytest.mark.unit

NAME = b"X\x01\x00\x00\x00w"
STORAGE = (
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
)
# The arguments of a tensor of four items, up to its flag `requires_grad`.
ARGUMENTS = STORAGE + b"K\x00K\x04\x85K\x01\x85\x89"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def table(arguments: bytes, before: bytes = b"") -> bytes:
    return b"\x80\x02" + before + b"}" + NAME + REBUILD + b"(" + arguments + b"tRs."


def pushed(value: object) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_table_of_every_protocol_is_read(protocol: int) -> None:
    assert state_pickle.read_state(pickle.dumps({}, protocol)) == {}


def test_a_tensor_is_a_record_of_plain_values() -> None:
    found = state_pickle.read_state(table(ARGUMENTS + b"}"))
    storage = state_pickle.Storage("Float", "0", 4)
    assert found == {"w": state_pickle.Tensor(storage, 0, (4,), (1,))}


def described(dtype: np.dtype) -> tuple[int, ...]:
    return dtype.itemsize, dtype.alignment, dtype.flags


DTYPE = described(np.dtype(ml_dtypes.bfloat16))
STATE = (3, "<", None, None, None, 16, 16, 0x3F)  # what numpy's dtypes take as __setstate__
NOTHING_SHARED = {
    "attributes of a storage's type": (
        table(ARGUMENTS, b"ctorch\nBFloat16Storage\n" + pushed(STATE) + b"b"),
        "sets attributes of something else than a dict",
    ),
    "attributes of a function": (
        table(ARGUMENTS, REBUILD + pushed({"__wrapped__": 1}) + b"b"),
        "sets attributes of something else than a dict",
    ),
    "attributes of a tensor": (
        b"\x80\x02}" + NAME + REBUILD + b"(" + ARGUMENTS + b"tR}bs.",
        "sets attributes of something else than a dict",
    ),
    "a call of a storage's type": (
        table(ARGUMENTS, b"ctorch\nFloatStorage\n)R"),
        "calls something that a table does not need",
    ),
    "a call of text": (table(ARGUMENTS, NAME + b")R"), "calls something"),
    "items of an ordered dict's arguments": (
        table(ARGUMENTS, b"ccollections\nOrderedDict\n]\x85R"),
        "positional argument",
    ),
    "a class with arguments": (b"\x80\x02cos\nsystem\n)\x81.", r"it asks for os\.system"),
    "an instance": (b"\x80\x02(ios\nsystem\n.", "needs no INST"),
    "an extension": (b"\x80\x02\x82\x01.", "needs no EXT1"),
    "an out-of-band buffer": (b"\x80\x05\x97.", "needs no NEXT_BUFFER"),
    "a storage by text": (table(STORAGE.replace(b"ctorch\nFloat", b"ctorch\nQ")), "it asks for"),
    "a storage that is no reference": (table(b"NQ"), "unknown reference"),
    "a storage of text": (
        table(STORAGE.replace(b"ctorch\nFloatStorage\n", b"X\x01\x00\x00\x00w")),
        "not one of numbers",
    ),
    "a name that is a tensor": (
        b"\x80\x02}" + REBUILD + b"(" + ARGUMENTS + b"tRNs.",
        "a name in its state dict is a Tensor",
    ),
    "a name that is a deep tuple": (b"\x80\x02})" + b"\x85" * 5_000 + b"Ns.", "is a tuple"),
    "a table of numbers": (pickle.dumps({"w": 1, 2: ()}, 2), "'w': int, 2: tuple"),
    "a list": (pickle.dumps([1], 2), "holds a list"),
    "a shape of 65 axes": (
        table(STORAGE + b"K\x00(" + b"K\x01" * 65 + b"t(" + b"K\x01" * 65 + b"t\x89"),
        "are not numbers",
    ),
    "a number of 2^63": (
        b"\x80\x02\x8a\x09" + (2**63).to_bytes(9, "little") + b".",
        r"above 2\^62",
    ),
    "an unknown entry of the memo": (b"\x80\x02h\x07.", "damaged"),
    "an empty stack": (b"\x80\x02.", "damaged"),
    "no end": (b"\x80\x02}", "damaged"),
    "a string longer than the pickle": (b"\x80\x02X\xff\xff\xff\xffw.", "damaged"),
}


@pytest.mark.parametrize(("pickled", "message"), NOTHING_SHARED.values(), ids=NOTHING_SHARED)
def test_refuses_everything_but_tables_and_changes_nothing(pickled: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        state_pickle.read_state(pickled)
    assert described(np.dtype(ml_dtypes.bfloat16)) == DTYPE


def test_attributes_of_a_state_dict_are_dropped() -> None:
    pickled = b"\x80\x02ccollections\nOrderedDict\n)R" + pushed({"_metadata": {}}) + b"b."
    assert state_pickle.read_state(pickled) == {}


@pytest.mark.parametrize("flag", ["neg", "conj", "unheard_of"])
def test_refuses_flags_that_change_numbers(flag: str) -> None:
    kept = table(ARGUMENTS + b"}" + pushed({flag: False}))
    assert list(state_pickle.read_state(kept)) == ["w"]
    with pytest.raises(UserError, match=f"stored with the flag '{flag}'.*resolve_neg"):
        state_pickle.read_state(table(ARGUMENTS + b"}" + pushed({flag: True})))


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_a_large_index_of_the_memo_costs_nothing() -> None:
    before = peak_bytes()
    assert state_pickle.read_state(b"\x80\x02}r\xff\xff\xff\x7f.") == {}
    assert peak_bytes() - before < 2**24


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"\x80\x02)" + b"q\x00h\x00\x86" * 1000 + b"Q.", "unknown reference"),
        (b"\x80\x02)" + b"q\x00h\x00\x86" * 1000 + b".", "holds a tuple"),
        (b"\x80\x02)" + b"\x85" * 5_000 + b".", "holds a tuple"),
        (b"\x80\x02" + b"(" * 5_000, "damaged"),
    ],
    ids=["doubled reference", "doubled", "deep", "marks"],
)
def test_nested_pickles_cost_no_more_than_flat_ones(pickled: bytes, message: str) -> None:
    before = peak_bytes()
    with pytest.raises(UserError, match=message):
        state_pickle.read_state(pickled)
    assert peak_bytes() - before < 2**24


def test_refuses_a_pickle_of_too_many_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_pickle, "_MOST_STEPS", 100)
    assert state_pickle.read_state(b"\x80\x02}" + b"q\x00" * 97 + b".") == {}
    with pytest.raises(UserError, match="more than 100 operations"):
        state_pickle.read_state(b"\x80\x02}" + b"q\x00" * 98 + b".")
