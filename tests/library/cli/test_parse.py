"""A mistake in a command line ends every command with one line that names it."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from prompteol_jax.cli.encode import EncodeOptions
from prompteol_jax.cli.parse import parse
from prompteol_jax.errors import UserError

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
MAINS = {
    "prompteol": "prompteol_jax.cli.main",
    "train.contrastive": "train.contrastive",
    "train.prepare": "train.prepare",
    "train.align": "train.align.command",
    "train.mine": "train.mine.command",
    **{
        f"eval.{name}": f"eval.{name}.command"
        for name in "sts transfer layers demos mteb retrieval loco search".split()
    },
    "eval.reproduce": "eval.reproduce.command",
    **{f"tpu.{name}": f"tpu.{name}.command" for name in ("plan", "launch", "bench")},
    **{name: name for name in ("tpu.fits", "tpu.lengths", "tpu.random_checkpoint")},
}
BASE = "encode --model m --input i --output o".split()


def refused(capsys, program, argv):
    """Run a command that must fail, and return its error without the program's name."""
    main = importlib.import_module(MAINS[program]).main
    with pytest.raises(SystemExit) as stopped:
        main(list(argv))
    out, line = capsys.readouterr()
    name = program if program == "prompteol" else f"python -m {program}"
    assert (stopped.value.code, out) == (2, "")
    assert line.startswith(f"{name}: error: ")
    assert line.endswith("\n") and line.count("\n") == 1 and "╭" not in line
    return line.removeprefix(f"{name}: error: ").rstrip("\n")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (
            [*BASE, "--dtype", "float16"],
            "--dtype has no choice 'float16' (did you mean bfloat16?); there are ",
        ),
        ([*BASE, "--dtype=None"], "--dtype has no choice 'None'; there are float32, bfloat16"),
        ([*BASE, "--pooling", "cls"], "--pooling has no choice 'cls'; there are last, mean"),
        ([*BASE, "--poolin", "mean"], "unknown flag --poolin (did you mean --pooling?)"),
        ([*BASE, "--shard_row=3"], "unknown flag --shard_row (did you mean --shard-rows?)"),
        ([*BASE, "--zzz"], "unknown flag --zzz; prompteol encode --help lists the flags"),
        ([*BASE, "--no-clea"], "unknown flag --no-clea (did you mean --no-clean?)"),
        ([*BASE, "--layer", "last"], "--layer 'last' must be a whole number"),
        ([*BASE, "--layer", "None"], "--layer 'None' must be a whole number"),
        ([*BASE, "--wait-minutes=x"], "--wait-minutes 'x' must be a number"),
        ([*BASE, "--layer"], "--layer needs a value, a whole number"),
        ([*BASE, "--clean", "yes"], "'yes' does not fit: --clean takes no value"),
        ([*BASE, "--clean=yes"], "'yes' does not fit: --clean takes no value"),
        ([*BASE, "more"], "'more' does not fit: no flag or text was expected there"),
        (BASE[:3], "--input, --output must be given; see prompteol encode --help"),
        (
            ["encode", "--modle", "m", "--input", "i", "--output", "o"],
            "unknown flag --modle (did you mean --model?); --model must be given; see prompteol "
            "encode --help",
        ),
        (["encod", *BASE[1:]], "no command 'encod' (did you mean encode?); there are encode, "),
        (["--model", "m"], "--model is before the command, which comes first; there are encode, "),
        ([], "no command was given; there are encode, "),
        (["compare", "a.json"], "A.json B.json must be given"),
        (["words", "--model", "m"], "give one text or more"),
        (["export", "--to", "hf"], "RUN, --output must be given"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_a_mistake_is_named_with_what_is_allowed(capsys, argv, told):
    assert refused(capsys, "prompteol", argv).startswith(told)


def test_a_home_that_a_shell_left_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    given = [*BASE[:-1], "~/v", "--input=~/a/b.txt", "--model=~/m"]
    options = parse("prompteol encode", EncodeOptions, given[1:])
    assert (options.output, options.input) == (tmp_path / "v", tmp_path / "a/b.txt")
    assert options.model == "~/m"  # a name, which `hub` resolves
    with pytest.raises(UserError, match="~nobody-of-this-name/v: there is no user of this name"):
        parse("prompteol encode", EncodeOptions, [*BASE[1:-1], "~nobody-of-this-name/v"])


@pytest.mark.parametrize("program", MAINS)
def test_no_command_draws_a_box_for_a_misspelt_flag(capsys, program):
    first = {"prompteol": ["encode"], "train.prepare": ["nli"], "eval.demos": ["search"]}
    first["tpu.bench"] = ["train"]
    told = refused(capsys, program, [*first.get(program, []), "--jsn", "x"])
    assert told.startswith("unknown flag --jsn")


@pytest.mark.parametrize("program", ["prompteol", "train.prepare", "eval.demos", "tpu.bench"])
def test_a_misspelt_command_is_named(capsys, program):
    assert refused(capsys, program, ["nonsense"]).startswith("no command 'nonsense'; there are ")


def test_every_program_is_in_this_table():
    started = {
        path.relative_to(ROOT).with_suffix("").as_posix().removesuffix("/__main__")
        for package in ("train", "eval", "tpu")
        for path in (ROOT / package).rglob("*.py")
        if path.stem == "__main__" or '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    }
    assert {name.replace("/", ".") for name in started} - {"tpu.bench.peer"} == set(MAINS) - {
        "prompteol"
    }


@pytest.mark.parametrize("argv", [["--help"], ["encode", "--help"]], ids=" ".join)
def test_help_shows_choices_without_none(capsys, argv):
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(MAINS["prompteol"]).main(argv)
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    if "encode" in argv:
        assert "--dtype {float32,bfloat16}" in re.sub(r"\s+", " ", shown)
    else:
        assert "encode" in shown


def test_command_lines_are_parsed_in_one_place():
    """By tyro's function, whose hook for errors is private: its version is bounded."""
    callers = {
        path.relative_to(ROOT).as_posix()
        for package in ("prompteol_jax", "train", "eval", "tpu")
        for path in (ROOT / package).rglob("*.py")
        if re.search(r"\btyro\.(cli|extras)\b", path.read_text(encoding="utf-8"))
    }
    assert callers == {"prompteol_jax/cli/parse.py"}
    bound = re.search(r'"tyro>=([\d.]+),<([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert bound and bound[1].split(".")[:2] == ["1", "0"] and bound[2] == "1.1"
