"""A wrong input ends a command with one line; a mistake of the program shows its traceback."""

import os
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

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
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore"),
            "demo: error: the memory is full (RESOURCE_EXHAUSTED: Out of memory allocating 9 "
            "bytes.); compute less together (--batch-tokens, --batch, --chunks), or on more "
            "devices (--mesh)\n",
        ),
        (
            MemoryError(),
            "demo: error: the memory is full (no more was given); compute less together "
            "(--batch-tokens, --batch, --chunks), or on more devices (--mesh)\n",
        ),
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


def test_what_a_terminal_cannot_show_is_escaped():
    code = (
        "import sys\nfrom prompteol_jax.cli.commands import run_command\n"
        "run_command('demo', lambda text: sys.stdout.write(text + '\\n'), '\\u20ac \\udcff')\n"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"\\u20ac \\udcff\n"), done.stderr


def test_an_interrupted_command_says_so(capsys):
    with pytest.raises(SystemExit) as stopped:
        run_command("demo", failing(KeyboardInterrupt()), "options")
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "demo: interrupted\n"


def test_each_installed_command_is_a_function():
    file = Path(__file__).resolve().parents[3] / "pyproject.toml"
    scripts = tomllib.loads(file.read_text(encoding="utf-8"))["project"]["scripts"]
    assert "prompteol" in scripts
    for name, value in scripts.items():
        assert callable(EntryPoint(name, value, "console_scripts").load()), name
