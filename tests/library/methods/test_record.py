"""Laws of records: JSON both ways, and one error with everything that is wrong."""

from __future__ import annotations

import pytest

from prompteol_jax.errors import UserError
from prompteol_jax.methods.record import Method
from prompteol_jax.text.template import TEMPLATES

pytestmark = pytest.mark.unit

MARKED = {"prefix": 'This sentence : <PST> "', "suffix": '" means in one word:"'}
AUXILIARY = {"prefix": 'The irrelevant information of this sentence : "', "suffix": '"'}
WHOLE = {
    "name": "all",
    "prompts": [
        MARKED,
        {
            "template": {"prefix": "<PST>", "suffix": ""},
            "transform": {"kind": "chunks", "words": 5},
        },
        {
            "template": {"prefix": "<PST>", "suffix": ""},
            "transform": {"kind": "expansion", "file": "variants.jsonl"},
        },
    ],
    "about": "Everything.",
    "paper": "2412.11556",
    "layer": -2,
    "pooling": "mean",
    "copy": {"start": 1, "exit": 7, "seed": 3},
    "subtract": {"block": 4, "kind": "ns", "scale": 0.5, "template": AUXILIARY},
    "slot": {"first": 0.4, "end": -1},
    "post": [{"kind": "whiten", "file": "white.npz", "dims": 8}, {"kind": "normalize"}],
    "published": [{"model": "a/b", "sts": 77.5, "harness": "mteb", "source": "2505.12831"}],
    "unverified": "All of it.",
}


def without(name, **changed):
    return {key: value for key, value in WHOLE.items() if key != name} | changed


def test_json_goes_in_and_out_unchanged():
    method = Method.from_json(WHOLE, "all.json")
    assert method.to_json() == {**WHOLE, "prompts": WHOLE["prompts"]}
    assert Method.from_json(method.to_json(), "again") == method
    assert method.prompts[0].template.name == "all#1"


def test_what_is_left_out_has_its_default_and_is_left_out_again():
    method = Method.from_json({"name": "eol", "prompts": ["eol"]}, "eol.json")
    assert method.prompts[0].template is TEMPLATES["eol"] and method.layer is None
    assert method.to_json() == {"name": "eol", "prompts": ["eol"]}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([], "the record must be an object, found []"),
        ({"prompts": ["eol"]}, "name is missing"),
        (without("x", prompt=["eol"]), "'prompt' is unknown (did you mean prompts?)"),
        (without("x", prompts=[]), "prompts must hold one prompt or more"),
        (without("x", prompts="eol"), "prompts must be a list, found 'eol'"),
        (
            without("x", prompts=["eo"]),
            "prompts[0] 'eo' is not one of eol, ",
        ),
        (without("x", layer="last"), "layer must be a whole number, found 'last'"),
        (without("x", layer=True), "layer must be a whole number, found True"),
        (without("x", pooling="men"), "pooling 'men' is not one of last, mean, second-mean"),
        (without("x", copy={"start": -1, "exit": 2}), "copy.start must be a whole number from 0"),
        (without("x", copy={"start": 5, "exit": 2}), "copy.exit 2 is below start 5"),
        (without("x", copy={"begin": 1, "start": 1, "exit": 2}), "copy.'begin' is unknown"),
        (without("copy"), "prompt 1 holds <PST> without `copy`"),
        (without("x", prompts=["eol"]), "prompt 1 holds no <PST>, which `copy` writes to"),
        (without("x", subtract={"block": 4, "kind": "ns"}), "subtract ns needs `template`"),
        (
            without("x", subtract={"block": 4, "kind": "self_scaled", "template": AUXILIARY}),
            "subtract self_scaled takes no `template`",
        ),
        (
            without("x", subtract={"block": 4, "kind": "nr", "scale": 2, "template": AUXILIARY}),
            "subtract nr takes no `scale`",
        ),
        (without("x", subtract={"block": 4, "kind": "nss"}), "did you mean ns?"),
        (without("x", slot={"first": 1.5}), "slot.first must be a block's number or a fraction"),
        (without("x", slot={"first": float("nan")}), "slot.first must be a block's number"),
        (without("x", post=[{"kind": "truncate"}]), "post truncate needs `dims`"),
        (without("x", post=[{"kind": "normalize", "dims": 2}]), "post normalize takes no `dims`"),
        (without("x", post=[{"kind": "embed-filter"}]), "post embed-filter needs `ratio`"),
        (
            without("x", post=[{"kind": "center", "file": "../mean.npz"}]),
            "post[0].file must be a file's name without a folder, found '../mean.npz'",
        ),
        (without("x", collect={}), "collect reads the last token: pooling last"),
        (without("pooling", collect={}), "collect and layer exclude each other"),
        (
            without("x", prompts=[{"template": MARKED, "transform": {"kind": "chunks"}}]),
            "transform chunks needs `words`",
        ),
        (
            without("x", prompts=[{"template": MARKED, "transforms": None}]),
            "prompts[0].transforms is unknown; a prompt has template and transform",
        ),
        (
            without("copy", prompts=[{"pieces": ["a", "b"]}]),
            "pieces hold no slot, '*sent 0*'",
        ),
        (
            without("copy", prompts=[{"pieces": ["*sent 0*"], "prefix": ""}]),
            "prefix does not go with pieces",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_bad_record_is_refused_by_name(fields, message):
    with pytest.raises(UserError) as error:
        Method.from_json(fields, "bad.json")
    assert str(error.value).startswith("method bad.json: ") and message in str(error.value)


def test_all_problems_come_in_one_error():
    with pytest.raises(UserError) as error:
        Method.from_json({"nam": "x", "layer": "a", "copy": 3}, "bad.json")
    found = str(error.value)
    for part in ("'nam' is unknown (did you mean name?)", "name is missing", "prompts is missing"):
        assert part in found
    assert "layer must be" in found and "copy.the record must be an object, found 3" in found
