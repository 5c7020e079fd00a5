"""One JSON object a file: what is written is read again, anything else is one error."""

from __future__ import annotations

import pytest

from prompteol_jax.errors import UserError
from prompteol_jax.storage import json_files

pytestmark = pytest.mark.unit


def test_what_is_written_is_read_again(tmp_path):
    content = {"name": "é\u2028", "numbers": [1, 2.5, None], "inner": {"is": True}}
    json_files.write_object(tmp_path / "a.json", content)
    assert json_files.read_object(tmp_path / "a.json") == content
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_byte_order_mark_is_no_content(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert json_files.read_object(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is not JSON"),
        (b'{"a": 1', "is not JSON"),
        (b"[1]", "is not a JSON object but a list"),
        (b"3", "is not a JSON object but a number"),
        (b"null", "is not a JSON object but null"),
        (b"\xff{}", "is not UTF-8 (byte 0 is 0xff); save it as UTF-8"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "is not JSON: 'c' occurs twice"),
        (b'{"a": ' + b"[" * 200_000, "is not usable JSON: it is nested too deeply"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_refuses_what_is_no_object(tmp_path, content, told):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as refused:
        json_files.read_object(path)
    assert str(refused.value).startswith(f"{path} {told}")


def test_a_file_beyond_the_limit_is_not_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"a": 1}')
    assert json_files.read_object(tmp_path / "a.json", limit=8) == {"a": 1}
    with pytest.raises(UserError, match="is longer than 7 bytes, the most that is read"):
        json_files.read_object(tmp_path / "a.json", limit=7)
