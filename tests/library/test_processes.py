"""Processes of one run meet in time or say who is missing, and end together where one fails."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from ports import free_port

from prompteol_jax import processes
from prompteol_jax.errors import UserError

MEMBER = """
import os, sys, time
from prompteol_jax import processes
from prompteol_jax.cli.commands import run_command
from prompteol_jax.errors import UserError

me, count, port, how = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]

class Files:  # in the place of jax's store
    turn = 0
    def exchange(self, value):
        from pathlib import Path
        import json
        folder = Path(sys.argv[5])
        (folder / f"{self.turn}.{me}.new").write_text(json.dumps(value))
        (folder / f"{self.turn}.{me}.new").rename(folder / f"{self.turn}.{me}")
        paths = [folder / f"{self.turn}.{i}" for i in range(count)]
        while not all(path.exists() for path in paths):
            time.sleep(0.02)
        self.turn += 1
        return [json.loads(path.read_text()) for path in paths]

def run(_):
    processes.meet(f"localhost:{port}", count, me, 30)
    processes.watch(me, count, "localhost", Files().exchange)
    print("joined", flush=True)
    if me == count - 1:
        time.sleep(0.3)
        if how == "user":
            raise UserError("row 17 is damaged")
        if how == "bug":
            raise KeyError("lost")
        if how == "kill":
            os.kill(os.getpid(), 9)
        if how == "interrupt":
            raise KeyboardInterrupt
        return
    time.sleep(1 if how == "done" else 60)

run_command("prog", run, None)
"""


@pytest.mark.parametrize(
    ("how", "status", "told"),
    [
        ("done", 0, ""),
        ("user", 2, "process 2 of 3: prog: error: row 17 is damaged\n"),
        ("bug", 1, "process 2 of 3: prog: KeyError: 'lost'\n"),
        ("kill", 1, "process 2 of 3: ended without a message; was it killed?\n"),
        ("interrupt", 130, "process 2 of 3: prog: interrupted\n"),
    ],
)
def test_one_process_that_fails_ends_all_with_its_line_and_status(tmp_path, how, status, told):
    command = [sys.executable, "-c", MEMBER]
    port = str(free_port())
    children = [
        subprocess.Popen(
            [*command, str(i), "3", port, how, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in (2, 0, 1)
    ]
    for child in children:
        assert child.stdout.readline() == "joined\n"
    start = time.monotonic()
    last, *others = [(child.communicate(timeout=30)[1], child.returncode) for child in children]
    assert time.monotonic() - start < 10
    assert others == [(told, status)] * 2
    assert last[1] == (-signal.SIGKILL if how == "kill" else status)


def test_who_does_not_come_is_named_in_every_process_that_did():
    address, told = f"localhost:{free_port()}", {}

    def come(process):
        with pytest.raises(UserError) as error:
            processes.meet(address, 4, process, 1.5)
        told[process] = str(error.value)

    threads = [threading.Thread(target=come, args=(process,)) for process in (0, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    expected = f"processes 1, 3 of 4 did not come to {address} within 0.025 minutes"
    assert told[0].startswith(expected)
    assert told[2] == told[0]


def test_a_first_process_that_does_not_come_is_named():
    message = r"process 0 of 2 did not come to localhost:\d+ within .* wait longer with --wait-min"
    with pytest.raises(UserError, match=message):
        processes.meet(f"localhost:{free_port()}", 2, 1, 0.5)


def test_strangers_at_the_door_are_no_processes():
    port, done = free_port(), []
    first = threading.Thread(
        target=lambda: done.append(processes.meet(f"localhost:{port}", 2, 0, 20.0))
    )
    first.start()
    for said in (b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b'{"process": 5, "processes": 2}\n', b""):
        while True:
            try:
                stranger = socket.create_connection(("localhost", port), 1)
                break
            except OSError:
                time.sleep(0.05)
        with stranger:
            stranger.sendall(said)
    processes.meet(f"localhost:{port}", 2, 1, 20.0)
    first.join(20)
    assert done == [None]


def test_an_address_in_use_is_named():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--coordinator localhost:{port}: Address already"):
            processes.meet(f"localhost:{port}", 2, 0, 1.0)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((None, None, None), []),
        (("auto", None, None), []),
        (("h:1", 2, 1), []),
        (("h:1", 2, 2), ["--coordinator h:1 needs --processes N and --process I (0 to N-1)"]),
        (("h:1", None, 0), ["--coordinator h:1 needs --processes N and --process I (0 to N-1)"]),
        (("auto", 2, None), ["--processes and --process need --coordinator HOST:PORT"]),
        ((None, None, 0), ["--processes and --process need --coordinator HOST:PORT"]),
        (("h", 2, 0), ["--coordinator h is neither HOST:PORT nor `auto`"]),
        (("h:70000", 2, 0), ["--coordinator h:70000 is neither HOST:PORT nor `auto`"]),
    ],
)
def test_flags_that_do_not_fit_together_are_told(given, told):
    assert processes.problems(*given) == told


def test_a_process_alone_fails_alone():
    assert not processes.joined()
    processes.fail("nobody hears", 3)
    assert os.getpid()
