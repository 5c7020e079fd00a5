"""Laws of buckets: a copy is what is there, and what is written is whole, against a stand-in."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from prompteol_jax.cli import main as cli
from prompteol_jax.storage import atomic, paths
from prompteol_jax.text import template

SPELLINGS = ("gs://bucket/a/b.txt", Path("gs://bucket/a/b.txt"), "gs://bucket/a//b.txt/")


@pytest.mark.parametrize("path", SPELLINGS)
def test_a_path_into_a_bucket_is_known_however_it_is_spelled(bucket, path):
    assert paths.is_bucket(path)
    assert str(paths.as_path(path)) == "gs://bucket/a/b.txt"
    assert paths.as_path(paths.as_path(path)) == paths.as_path(path)


def test_paths_on_this_machine_stay_what_they_are(tmp_path):
    assert paths.as_path("runs/x") == Path("runs/x")
    assert paths.local_copy(tmp_path) == tmp_path
    assert not paths.is_bucket("gsx/y")


def test_a_file_comes_here_once_and_again_when_it_has_changed(bucket):
    bucket.put("a/b.txt", b"one")
    first = paths.local_copy("gs://bucket/a/b.txt")
    assert (first.name, first.read_bytes()) == ("b.txt", b"one")
    bucket.log.clear()
    assert paths.local_copy("gs://bucket/a/b.txt") == first
    assert not [path for _, path in bucket.log if path.startswith("/download")]
    bucket.put("a/b.txt", b"two")
    assert paths.local_copy("gs://bucket/a/b.txt").read_bytes() == b"two"
    assert first.read_bytes() == b"one"


def test_a_folder_comes_here_to_the_depth_that_is_asked_for(bucket):
    for name in ("run/config.json", "run/adapter/a.bin", "run/checkpoints/8/deep/x"):
        bucket.put(name, name.encode())
    for depth, count in ((1, 1), (2, 2), (None, 3)):
        found = paths.local_copy("gs://bucket/run", depth=depth)
        assert (found.name, len(paths.files(found))) == ("run", count)
    assert (found / "adapter/a.bin").read_bytes() == b"run/adapter/a.bin"
    assert paths.files(paths.as_path("gs://bucket/run")) == paths.files(found)


@pytest.mark.parametrize("depth", [None, 1, 2, 20])
@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("sts/../../../../outside.txt", "sts"),
        ("sts/a/../../../../outside.txt", "sts"),
        ("sts//outside.txt", "sts"),
        ("sts/./a.txt", "sts"),
        ("sts/..", "sts"),
        ("sts/a\\b.txt", "sts"),
        ("texts.txt/../../../../outside.txt", "texts.txt"),
    ],
)
def test_no_object_is_copied_out_of_its_folder(bucket, tmp_path, name, asked, depth):
    bucket.put("sts/STS12/a.txt", b"ordinary")
    bucket.put("texts.txt", b"ordinary")
    bucket.put(name, b"written by the bucket's owner")
    try:
        paths.local_copy(f"gs://bucket/{asked}", depth=depth)
    except ValueError as error:
        told = ("holds an object whose name is no path below it", "does not exist")
        assert any(text in str(error) for text in told)
        assert paths.files(tmp_path) == []
    else:  # not listed at this depth
        copied = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert {path.read_bytes() for path in copied} <= {b"ordinary"}


def test_what_is_not_there_is_said(bucket):
    for path in ("gs://bucket/none", "gs://others/none"):
        with pytest.raises(FileNotFoundError, match=f"^{path} does not exist"):
            paths.local_copy(path)


def test_a_bucket_that_is_not_there_is_refused_before_any_work(bucket, capsys):
    bucket.put("texts.txt", b"One.\n")
    flags = ["--model=none", "--input=gs://bucket/texts.txt", "--output=gs://others/v"]
    with pytest.raises(SystemExit):
        cli.main(["encode", *flags])
    assert "there is no bucket others, or this account may not" in capsys.readouterr().err
    paths.check_bucket("gs://bucket/new")


def test_what_the_cloud_refuses_is_one_error_that_says_what_to_do(bucket, monkeypatch):
    class Refusal:
        def exists(self, name):
            raise RuntimeError("Anonymous caller lacks storage.objects.list\nand more")

    monkeypatch.setattr(paths, "_system", Refusal)
    message = "gs://b/x could not be reached: Anonymous caller lacks storage.objects.list. Check"
    with pytest.raises(ConnectionError, match=message):
        paths.check_bucket("gs://b/x")


def test_a_copy_that_is_not_what_is_there_is_refused(bucket, monkeypatch, tmp_path):
    bucket.put("a", b"right")
    facts = bucket.described("a") | {"md5Hash": "AAAA"}
    monkeypatch.setattr(bucket, "described", lambda name: facts)
    with pytest.raises(ConnectionError, match="download of gs://bucket/a is incomplete"):
        paths.local_copy("gs://bucket/a")
    assert not paths.files(tmp_path / "cache")


def test_without_what_reads_buckets_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"gs://b/x is in a bucket.*extra `gcs`"):
        paths.local_copy("gs://b/x")


def test_what_can_be_written_here_only_refuses_a_bucket(bucket):
    with pytest.raises(ValueError, match="gs://b/x: this is written to this machine only"):
        paths.refuse_buckets(None, Path("y"), Path("gs://b/x"))


def test_an_object_is_written_whole_or_not_at_all(bucket):
    target = paths.as_path("gs://bucket/x")

    def fail(file):
        file.write(b"half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        atomic.write_whole(target, fail)
    assert not bucket.objects
    atomic.write_whole(target, lambda file: file.write(b"whole"))
    assert target.read_bytes() == b"whole"
    assert atomic.sha256(target) == atomic.sha256(paths.local_copy(target))


def test_a_folder_that_is_filled_goes_to_the_bucket_once(bucket):
    def fill():
        with paths.upload_on_exit("gs://bucket/prepared") as folder:
            (folder / "deep").mkdir(parents=True)
            (folder / "deep/x").write_bytes(b"1")

    fill()
    assert list(bucket.objects) == ["prepared/deep/x"]
    with pytest.raises(FileExistsError, match="gs://bucket/prepared/deep/x exists"):
        fill()


def test_a_template_is_read_from_a_bucket(bucket):
    bucket.put("t.txt", b'Say_"*sent_0*"_:"')
    assert template.read_template("gs://bucket/t.txt").prefix == 'Say "'


@pytest.mark.fast("v", "v.parquet")
@pytest.mark.parametrize("name", ["v.npy", "v.parquet", "v"])
def test_vectors_of_a_bucket_are_those_of_this_machine(bucket, coarse, tmp_path, name):
    texts = "".join(f"Sentence number {i}.\n" for i in range(7)).encode()
    bucket.put("texts.txt", texts)
    flags = ["encode", "--model=tiny", "--input=gs://bucket/texts.txt", "--shard-rows=3"]
    cli.main([*flags, f"--output=gs://bucket/{name}"])
    cli.main([*flags, f"--output={tmp_path / name}"])
    there = paths.local_copy(f"gs://bucket/{name}")
    assert paths.files(there) == paths.files(tmp_path / name)
    for file in paths.files(there) or [""]:
        assert (there / file).read_bytes() == (tmp_path / name / file).read_bytes()
    assert {key.split("/")[0] for key in bucket.objects} == {"texts.txt", name}


def test_a_shard_that_is_lost_in_the_bucket_is_encoded_anew(bucket, coarse, capsys):
    bucket.put("texts.txt", b"One.\nTwo.\nThree.\n")
    flags = ["encode", "--model=tiny", "--input=gs://bucket/texts.txt", "--shard-rows=1"]
    command = [*flags, "--output=gs://bucket/v"]
    cli.main(command)
    whole = dict(bucket.objects)
    del bucket.objects["v/shard-00001.npy"]
    bucket.put("v/shard-00002.npy", b"damaged")
    cli.main(command)
    assert "2 damaged shards anew" in capsys.readouterr().err
    for name, (_, content) in whole.items():
        assert bucket.objects[name][1] == content
    bucket.put("v/strange", b"")
    with pytest.raises(SystemExit):
        cli.main(command)
    assert "holds other files (strange)" in capsys.readouterr().err


def test_a_run_that_is_broken_off_leaves_a_joined_file_to_the_next(bucket, coarse, monkeypatch):
    bucket.put("texts.txt", b"One.\nTwo.\nThree.\n")
    flags = ["encode", "--model=tiny", "--input=gs://bucket/texts.txt", "--shard-rows=1"]
    command = [*flags, "--output=gs://bucket/v.npy"]
    upload = paths.upload

    def break_off(source, target):
        if target.name == "shard-00002.npy":
            raise KeyboardInterrupt
        upload(source, target)

    monkeypatch.setattr(paths, "upload", break_off)
    with pytest.raises(SystemExit):
        cli.main(command)
    assert "v.npy.parts/shard-00001.npy" in bucket.objects
    monkeypatch.setattr(paths, "upload", upload)
    cli.main(command)
    vectors = np.load(paths.local_copy("gs://bucket/v.npy"))
    assert vectors.shape == (3, 128)
    assert set(bucket.objects) == {"texts.txt", "v.npy"}
