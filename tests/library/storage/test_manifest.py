"""Manifests: any change is noticed, and a reader gets what was written or an error."""

import json

import pytest

from prompteol_jax.errors import UserError
from prompteol_jax.storage import manifest

pytestmark = pytest.mark.unit


def test_a_manifest_reads_back_as_it_was_written(tmp_path):
    content = {"settings": {"text": "é", "layer": None}, "rows": 3}
    manifest.write(tmp_path / "m.json", content)
    assert manifest.read(tmp_path / "m.json") == content
    manifest.write(tmp_path / "m.json", {**content, "rows": 4})
    assert manifest.read(tmp_path / "m.json")["rows"] == 4


def test_every_flipped_byte_of_a_manifest_is_noticed(tmp_path):
    path = tmp_path / "m.json"
    manifest.write(path, {"rows": 12})
    whole = path.read_bytes()
    values = json.loads(whole)
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            found = manifest.read(path)
        except UserError:
            continue
        assert found == {"rows": 12}, (at, values)  # a flip in the white space between values


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not JSON"),
        (b"[1]", r"is not a JSON object but a list; expected \{...\}"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' * 100_000, "nested too deeply"),
        (b"\xff{}", r"is not UTF-8 \(byte 0 is 0xff\)"),
        (b'{"rows": 12}', "is not what was written"),
        (b'{"rows": 12, "sha256": ["a"]}', "is not what was written"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path, content, problem):
    (tmp_path / "m.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"m\.json.*{problem}"):
        manifest.read(tmp_path / "m.json")


def test_a_sealed_folder_notices_a_file_lost_added_cut_or_changed(tmp_path):
    folder = tmp_path / "f"
    (folder / "inner").mkdir(parents=True)
    for name in ("a", "b", "inner/c"):
        (folder / name).write_text("content")
    manifest.seal(folder, {"step": 3})
    assert manifest.damage(folder) == []
    assert manifest.read(folder / manifest.NAME)["step"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    (folder / "a").write_text("Content")
    (folder / "b").unlink()
    (folder / "inner/c").write_text("cut")
    (folder / "d").touch()
    assert manifest.damage(folder) == [
        "b is missing",
        "d does not belong to it",
        "a is not what was written",
        "inner/c has 3 bytes instead of 7",
    ]
