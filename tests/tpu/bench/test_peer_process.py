"""A peer answers line by line, and its end is an error with a cause."""

import stat

import pytest

from prompteol_jax.errors import UserError
from tpu.bench.peer_process import Peer

ANSWERS = 'echo \'{"device": "cpu"}\'; while read -r line; do echo "{\\"seconds\\": 2.0}"; done'
ENDS = 'echo \'{"device": "cpu"}\'; exit 3'


@pytest.fixture
def python(tmp_path):
    """Write a stand-in for the Python of a peer."""

    def write(lines):
        path = tmp_path / "python"
        path.write_text(f"#!/usr/bin/env bash\n{lines}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return write


def test_seconds_are_compared_in_pairs(python, tmp_path):
    with Peer("peft", python(ANSWERS), tmp_path) as peer:
        theirs = [peer.ask(["a"])["seconds"] for _ in range(3)]
        compared = peer.compared([1.0, 2.0, 4.0], theirs)
    assert compared == {"seconds": [2, 2, 2], "ratio": 1.0, "device": "cpu"}


@pytest.mark.parametrize("lines", ["exit 3", ENDS])
def test_a_peer_that_ends_is_an_error_that_names_its_status(python, tmp_path, lines):
    with (
        pytest.raises(UserError, match="the peer peft ended with status 3"),
        Peer("peft", python(lines), tmp_path) as peer,
    ):
        peer.ask(["a" * 1_000_000])
