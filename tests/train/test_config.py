"""Laws of the flags: what cannot work is refused before any work, all of it in one error."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from prompteol_jax.cli.options import ModelOptions
from train.config import FREE_ON_RESUME, TrainConfig

pytestmark = pytest.mark.unit

WRONG = [
    ({"batch": 1}, "--batch 1 must be at least 2: every anchor needs negatives"),
    ({"chunks": 0}, "--chunks 0 must be at least 1"),
    ({"cut": 0}, "--cut 0 must be at least 1"),
    ({"epochs": 0.0}, "--epochs 0.0 must be above 0"),
    ({"epochs": float("nan")}, "--epochs nan must be above 0"),
    ({"steps": 0}, "--steps 0 must be at least 1"),
    ({"lr": 0.0}, "--lr 0.0 must be above 0"),
    ({"lr": float("inf")}, "--lr inf must be above 0"),
    ({"lr": float("nan")}, "--lr nan must be above 0"),
    ({"warmup_steps": -1}, "--warmup-steps -1 must be at least 0"),
    ({"rank": 0}, "--rank 0 must be at least 1"),
    ({"alpha": 0.0}, "--alpha 0.0 must be above 0"),
    ({"dropout": 1.0}, "--dropout 1.0 must be at least 0 and below 1"),
    ({"base_dropout": -0.1}, "--base-dropout -0.1 must be at least 0 and below 1"),
    ({"eval_every": 0}, "--eval-every 0 must be at least 1"),
    ({"save_every": 0}, "--save-every 0 must be at least 1"),
    ({"keep": 0}, "--keep 0 must be at least 1"),
    ({"seed": -1}, "--seed -1 must be at least 0 and at most 4294967295"),
    ({"seed": 10**20}, "--seed 100000000000000000000 must be at least 0 and at most 4294967295"),
    ({"epochs": float("inf")}, "--epochs inf must be above 0"),
    ({"alpha": float("inf")}, "--alpha inf must be above 0"),
    (
        {"loss": "infonse"},
        "--loss infonse is unknown (did you mean infonce?): choose one of infonce, infonce-",
    ),
    ({"fsdp": True, "remat": "none"}, "--remat none would keep what --fsdp gathers"),
    ({"optimizer": "adamm"}, "--optimizer adamm is unknown (did you mean adam?): choose one of a"),
    ({"schedule": "step"}, "--schedule step is unknown: choose one of linear, cosine, constant"),
    (
        {"optimizer": "sgd", "weight_decay": 0.1},
        "--weight-decay has no effect with --optimizer sgd: leave it out",
    ),
    ({"adapter": "a", "rslora": True}, "--rslora has no effect with --adapter: leave it out"),
    ({"loss_options": ("temp=1",)}, "--loss-options temp=1: infonce has the options temperature"),
    ({"matryoshka": (0,)}, "--matryoshka 0: sizes differ, from 1 up"),
    ({"data": ("pyproject.toml",) * 2}, "--data pyproject.toml pyproject.toml: give sources, each"),
    ({"weights": (1.0,)}, "--weights has no effect with one source of --data: leave it out"),
    (
        {"weights": (1.0, 0.0), "data": ("pyproject.toml", "README.md")},
        "--weights must be numbers above 0",
    ),
    (
        {"columns": ("sent0",)},
        "--columns sent0: give NAME=FILE'S NAME, each NAME one time, of sent0,",
    ),
    ({"columns": ("x=y",)}, "--columns x=y: give NAME=FILE'S NAME"),
    (
        {"teacher": Path("t.npy"), "data": ("pyproject.toml", "README.md")},
        "--teacher has the vectors of one source of --data: give one",
    ),
    ({"patience": 0}, "--patience 0 must be at least 1"),
    ({"save_minutes": 0.0}, "--save-minutes 0.0 must be above 0"),
    ({"final_eval": True}, "--final-eval needs --dev, the folder of the STS tasks"),
    (
        {"patience": 2, "data": "pyproject.toml"},
        "--patience needs --dev, the folder of the development pairs",
    ),
    ({"mesh": "4"}, "--mesh: mesh '4' is not DATAxMODEL"),
    ({"mesh": "0x2"}, "--mesh: mesh '0x2' is not DATAxMODEL"),
    ({"mesh": "8x1", "batch": 12}, "--batch 12 must be a multiple of the 8 of --mesh 8x1"),
    ({"full": True, "adapter": "a"}, "--full trains every weight and takes no --adapter"),
    ({"full": True, "quantize": "nf4"}, "--full trains every weight, --quantize nf4 freezes them"),
    ({"full": True, "rank": 8}, "--rank has no effect with --full: leave it out"),
    ({"full": True, "dropout": 0.1}, "--dropout has no effect with --full: leave it out"),
    ({"adapter": "a", "rank": 8}, "--rank has no effect with --adapter: leave it out"),
    ({"adapter": "a", "alpha": 8.0}, "--alpha has no effect with --adapter: leave it out"),
    ({"resume": True}, "--resume needs --output, the folder of the run to continue"),
    ({"data": ".", "skip_bad": True}, "--skip-bad is for files"),
    ({"data": "no.csv"}, "--data no.csv is neither `synthetic` nor a file or folder"),
    ({"processes": 2}, "--processes and --process need --coordinator HOST:PORT"),
    (
        {"coordinator": "auto", "process": 0},
        "--processes and --process need --coordinator HOST:PORT",
    ),
    ({"coordinator": "h:1"}, "--coordinator h:1 needs --processes N and --process I (0 to N-1)"),
    (
        {"coordinator": "h:1", "processes": 2, "process": 2, "mesh": "2x1"},
        "--coordinator h:1 needs --processes N and --process I (0 to N-1)",
    ),
    (
        {"coordinator": "h:1", "processes": 2, "process": 0, "mesh": "1x1"},
        "--mesh 1x1 cannot be shared by --processes 2",
    ),
]


@pytest.mark.parametrize(("flags", "message"), WRONG, ids=[m[:30] for _, m in WRONG])
def test_refuses_a_flag_that_cannot_work(flags, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        TrainConfig(**flags).check()
    assert ";" not in str(error.value)


def test_refuses_all_wrong_flags_in_one_error():
    flags = dict(batch=3, chunks=0, lr=-1.0, mesh="2x1", resume=True, data="nothing")
    with pytest.raises(ValueError) as error:
        TrainConfig(**flags).check()
    assert str(error.value).count(";") == 4
    for flag in ("--batch", "--chunks", "--lr", "--resume", "--data"):
        assert flag in str(error.value)


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"mesh": "4x2", "chunks": 3},
        {"base_dropout": 0.0, "warmup_steps": 0, "steps": 1, "epochs": 0.1},
        {"coordinator": "auto"},
        {"coordinator": "h:1", "processes": 2, "process": 1, "mesh": "8x1"},
        {"resume": True, "output": Path("runs/x")},
    ],
    ids=str,
)
def test_accepts_what_works(flags):
    TrainConfig(**flags).check()


def test_every_flag_reaches_its_field():
    flags = (
        "--model M --adapter A --template none --data d.csv --skip-bad --dev D --output O --resume "
        "--json J --mesh 4x2 --dtype bfloat16 --full --rank 8 --alpha 32 --dropout 0 "
        "--base-dropout 0.2 --batch 16 --chunks 2 --remat dots --cut 20 --epochs 3 --steps 7 "
        "--quantize nf4 --loss other "
        "--lr 1e-4 --warmup-steps 10 --seed 1 --eval-every 5 --save-every 6 --keep 3 "
        "--patience 4 --final-eval --save-minutes 9.5 "
        "--fsdp --license mit --lora-targets q_proj --rslora --optimizer lion --schedule cosine "
        "--weight-decay 0.1 "
        "--weights 1 2 --columns sent0=a --teacher t.npy --loss-options a=1 --matryoshka 8 "
        "--coordinator h:1 --processes 2 --process 1 --wait-minutes 9"
    ).split()
    config = tyro.cli(TrainConfig, args=flags)
    default = TrainConfig()
    same = [
        field.name
        for field in dataclasses.fields(TrainConfig)
        if getattr(config, field.name) == getattr(default, field.name)
    ]
    assert same == []
    assert (config.mesh, config.base_dropout, config.dev) == ("4x2", 0.2, Path("D"))


def test_the_models_flags_are_flags():
    options = tyro.cli(ModelOptions, args="--model M --mesh 2x1 --layer -1 --pooling mean".split())
    assert options == ModelOptions(model="M", mesh="2x1", layer=-1, pooling="mean")


def test_flags_that_may_differ_on_resume_exist():
    assert {field.name for field in dataclasses.fields(TrainConfig)} >= FREE_ON_RESUME


def test_the_defaults_are_the_papers():
    config = TrainConfig()
    assert (config.batch, config.lr, config.epochs, config.seed) == (256, 5e-4, 1.0, 42)
    assert (config.rank, config.alpha, config.dropout, config.cut) == (64, 16.0, 0.05, 32)


def test_help_comes_without_jax():
    code = (
        "import sys\n"
        "from train.contrastive import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "assert 'jax' not in sys.modules, 'jax was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--warmup-steps" in done.stdout
    assert "Fine-tunes a decoder contrastively" in done.stdout


def test_a_wrong_command_ends_with_one_line():
    command = [sys.executable, "-m", "train.contrastive", "--batch", "0", "--mesh", "x"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "python -m train.contrastive: error: --batch 0 must be at least 2"
    )
    assert done.stderr.count("\n") == 1
