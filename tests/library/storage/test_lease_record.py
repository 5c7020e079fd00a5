"""Where a lease is kept: an exclusive create, a mark, and the removal of what was seen."""

from __future__ import annotations

import json

import pytest

from prompteol_jax.storage import paths
from prompteol_jax.storage.lease_record import NAME, BucketRecord, LocalRecord

pytestmark = pytest.mark.unit


@pytest.fixture(params=["here", "bucket"])
def records(request, tmp_path):
    """Two records of one folder, of two holders, here or in a bucket."""
    kind, folder = LocalRecord, tmp_path
    if request.param == "bucket":
        request.getfixturevalue("bucket")
        kind, folder = BucketRecord, paths.as_path("gs://bucket/run")
    both = [kind(folder, {"token": token}) for token in ("a", "b")]
    yield both
    for record in both:
        record.close()


def test_one_of_two_holders_creates_it(records):
    a, b = records
    assert a.read() is None
    assert a.create() and not b.create()
    holder, mark = b.read()
    assert (holder["token"], holder["host"]) == ("a", None)
    a.renew()
    assert b.read()[1] != mark


def test_what_was_replaced_since_it_was_seen_is_not_removed(records):
    a, b = records
    assert a.create()
    holder, mark = b.read()
    a.remove_own()
    assert b.create()
    a.remove(holder, mark)
    assert b.read()[0]["token"] == "b"
    b.remove(*b.read())
    assert b.read() is None


def test_what_is_no_lease_has_a_holder_without_a_name(tmp_path):
    (tmp_path / NAME).write_text(json.dumps(["x"]))
    record = LocalRecord(tmp_path, {})
    assert set(record.read()[0].values()) == {None}
    record.close()
