"""Leases: one writer a folder, refused by name, taken over where its holder is gone."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from prompteol_jax.errors import UserError
from prompteol_jax.storage import lease, lease_record, paths

pytestmark = pytest.mark.unit

HOLD = """
import sys, time
from pathlib import Path
from prompteol_jax.storage import lease
with lease.held(Path(sys.argv[1]), "a long job"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.2)
    monkeypatch.setattr(lease, "STALE", 1.0)


def foreign(folder, **fields):
    """Write the lease of a process on another machine."""
    holder = {**lease._this_process(), "host": "elsewhere", "space": "another boot", "token": "t"}
    (folder / lease_record.NAME).write_text(json.dumps({**holder, "what": "a run", **fields}))


def test_a_second_writer_is_refused_by_name_until_the_first_is_done(tmp_path):
    with lease.held(tmp_path, "a training run"):
        message = rf"another run is writing to {tmp_path}: a training run, process {os.getpid()}"
        with pytest.raises(UserError, match=message), lease.held(tmp_path, "x"):
            pass
    with lease.held(tmp_path, "x") as held:
        held.check()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_holder_of_this_machine_is_followed_at_once(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"a long job, process {other.pid}"):
            lease.Lease(tmp_path, "x")
        other.kill()
    assert (tmp_path / lease_record.NAME).exists()
    lease.Lease(tmp_path, "x").release()
    assert list(tmp_path.iterdir()) == []


def test_a_silent_holder_of_another_machine_is_followed_after_a_while(tmp_path, quick, capsys):
    foreign(tmp_path)
    lease.Lease(tmp_path, "x").release()
    assert "waiting for a run, process" in capsys.readouterr().err
    foreign(tmp_path)
    os.utime(tmp_path / lease_record.NAME, (1, 1))
    lease.Lease(tmp_path, "x").release()
    assert capsys.readouterr().err == ""


def test_a_living_holder_of_another_machine_is_not_followed(tmp_path, quick):
    foreign(tmp_path)
    done = threading.Event()

    def renew():
        while not done.wait(0.1):
            os.utime(tmp_path / lease_record.NAME)

    beats = threading.Thread(target=renew)
    beats.start()
    try:
        with pytest.raises(UserError, match="process .* on elsewhere; wait for it or end it"):
            lease.Lease(tmp_path, "x")
    finally:
        done.set()
        beats.join()


def test_a_process_of_the_same_number_that_started_later_is_another(tmp_path):
    foreign(tmp_path, space=lease._space(), pid=os.getpid(), started="1")
    lease.Lease(tmp_path, "x").release()


def test_a_half_written_lease_is_waited_for(tmp_path, quick):
    (tmp_path / lease_record.NAME).write_text('{"host": "else')
    lease.Lease(tmp_path, "x").release()


def test_a_holder_that_was_followed_notices_it(tmp_path, quick):
    held = lease.Lease(tmp_path, "x")
    foreign(tmp_path)
    held._beats.join(5)
    with pytest.raises(UserError, match="was taken over by a run, process .* on elsewhere"):
        held.check()
    held.release()
    assert (tmp_path / lease_record.NAME).exists()


ELSEWHERE = """
from prompteol_jax.storage import lease, lease_record
lease._space, lease.BEAT = (lambda: "another host"), 0.2
lease_record.fcntl.flock = lambda *_: None  # seen on one host only
"""


def test_of_two_processes_that_share_only_the_files_one_works_and_one_is_refused(tmp_path, quick):
    command = [sys.executable, "-c", ELSEWHERE + HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"a long job, process {other.pid}"):
            lease.Lease(tmp_path, "x")
        other.kill()
    lease.Lease(tmp_path, "x").release()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def folder(bucket):
    """A folder of a bucket."""
    return paths.as_path("gs://bucket/run")


def test_a_bucket_has_one_writer_too(folder, bucket):
    with lease.held(folder, "a training run"):
        message = rf"another run is writing to {folder}: a training run, process {os.getpid()}"
        with pytest.raises(UserError, match=message), lease.held(folder, "x"):
            pass
    with lease.held(folder, "x") as held:
        held.check()
    assert bucket.objects == {}


def elsewhere(bucket, **fields):
    """Store the lease of a process on another machine."""
    holder = {**lease._this_process(), "host": "elsewhere", "space": "another boot", "token": "t"}
    content = json.dumps({**holder, "what": "a run", **fields}).encode()
    bucket.put(f"run/{lease_record.NAME}", content)


def test_a_silent_holder_of_a_bucket_is_followed_after_a_while(folder, bucket, quick, capsys):
    elsewhere(bucket)
    lease.Lease(folder, "x").release()
    assert "waiting for a run, process" in capsys.readouterr().err
    assert bucket.objects == {}


def test_a_living_holder_of_a_bucket_is_not_followed(folder, bucket, quick):
    elsewhere(bucket)
    done = threading.Event()

    def renew():
        while not done.wait(0.1):
            bucket.metageneration[f"run/{lease_record.NAME}"] += 1

    beats = threading.Thread(target=renew)
    beats.start()
    try:
        with pytest.raises(UserError, match="process .* on elsewhere; wait for it or end it"):
            lease.Lease(folder, "x")
    finally:
        done.set()
        beats.join()
    assert len(bucket.objects) == 1


def test_a_holder_of_a_bucket_renews_its_lease_and_notices_another(folder, bucket, quick):
    held = lease.Lease(folder, "x")
    name = f"run/{lease_record.NAME}"
    until(lambda: bucket.metageneration[name] > 2)
    elsewhere(bucket)
    held._beats.join(5)
    with pytest.raises(UserError, match="was taken over by a run, process .* on elsewhere"):
        held.check()
    held.release()
    assert name in bucket.objects


def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
