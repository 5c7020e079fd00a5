"""A wrong input ends a command with one line; a mistake of the program shows its traceback."""

import pytest

from prompteol_jax.cli.commands import run_command
from prompteol_jax.errors import NotFinite, NotFound, UserError, WrongType

pytestmark = pytest.mark.unit


def failing(error):
    def run(options):
        assert options == "options"
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("no such template"), "demo: error: no such template\n"),
        (WrongType("texts is one string"), "demo: error: texts is one string\n"),
        (NotFinite("not finite"), "demo: error: not finite\n"),
        (NotFound("no file a.txt"), "demo: error: no file a.txt\n"),
        (OSError(28, "No space left", "a"), "demo: error: [Errno 28] No space left: 'a'\n"),
        (UserError(), "demo: error: UserError\n"),
    ],
)
def test_an_error_of_the_user_is_one_line_and_status_2(capsys, monkeypatch, error, line):
    monkeypatch.delenv("PROMPTEOL_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as stopped:
        run_command("demo", failing(error), "options")
    assert stopped.value.code == 2
    assert capsys.readouterr() == ("", line)
    monkeypatch.setenv("PROMPTEOL_TRACEBACK", "1")
    with pytest.raises(type(error)):
        run_command("demo", failing(error), "options")


@pytest.mark.parametrize("kind", [AssertionError, ValueError, TypeError, KeyError, RuntimeError])
def test_a_mistake_of_the_program_is_not_hidden(kind):
    with pytest.raises(kind, match="impossible"):
        run_command("demo", failing(kind("impossible")), "options")


def test_an_interrupted_command_says_so(capsys):
    with pytest.raises(SystemExit) as stopped:
        run_command("demo", failing(KeyboardInterrupt()), "options")
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "demo: interrupted\n"
