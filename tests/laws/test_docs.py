"""What the pages say is true: links, paths, names, commands, flags, templates, Python."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import re
import runpy
import shlex
import textwrap
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest

from eval.demos import command as demos
from eval.layers import command as layers
from eval.loco import command as loco
from eval.mteb import command as mteb
from eval.reproduce import command as reproduce
from eval.retrieval import command as retrieval
from eval.search import command as search
from eval.sts import command as sts
from eval.sts.command import StsOptions
from eval.transfer import command as transfer
from prompteol_jax.cli import main as cli
from prompteol_jax.text import prompt
from prompteol_jax.text.template import TEMPLATES, read_template
from prompteol_jax.text.tokenizer import load_tokenizer
from tpu import fits, lengths, random_checkpoint
from tpu.bench import command as bench
from tpu.launch import command as launch
from tpu.plan import command as plan
from train import contrastive, prepare
from train.align import command as align
from train.align.config import AlignConfig
from train.config import TrainConfig
from train.mine import command as mine

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")))
}
OPTIONS = (
    TrainConfig,
    AlignConfig,
    mine.MineOptions,
    StsOptions,
    layers.LayersOptions,
    search.SweepOptions,
    transfer.TransferOptions,
    mteb.MtebOptions,
    retrieval.RetrievalOptions,
    loco.LocoOptions,
    reproduce.ReproduceOptions,
    launch.LaunchOptions,
)
OPTIONS += (plan.PlanOptions, fits.FitsOptions, lengths.LengthsOptions)
MANY = (cli, prepare, bench, demos)  # of several commands each
OPTIONS += tuple(kind for module in MANY for kind, _ in module.COMMANDS.values())


# Commands without --layer, and why.
WITHOUT_LAYER = {
    TrainConfig: "the loss is over the last layer, whose adapter peft loads",
    AlignConfig: "the LM head reads the last layer",
    reproduce.ReproduceOptions: "the paper's tables are of the last layer",
    launch.LaunchOptions: "it passes a command on, with its flags",
    plan.PlanOptions: "it plans the whole model",
    fits.FitsOptions: "it plans the whole model",
    lengths.LengthsOptions: "it reads no weights",
    cli.COMMANDS["show"][0]: "it reads no weights",
    cli.COMMANDS["export"][0]: "a run is exported whole",
    cli.COMMANDS["compare"][0]: "it reads no weights",
    cli.COMMANDS["methods"][0]: "it reads no weights",
    **{kind: "it reads no weights" for kind, _ in prepare.COMMANDS.values()},
    bench.TrainBench: "as training",
}


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def fenced(page: str, text: str) -> list[Block]:
    """The fenced blocks of a page, in lists too, with the number of their first line."""
    found = re.finditer(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL)
    return [
        Block(page, 1 + text[: m.start(3)].count("\n"), m[2], textwrap.dedent(m[3])) for m in found
    ]


BLOCKS = [block for page, text in PAGES.items() for block in fenced(page, text)]
COMMANDS = [
    (f"{block.page}:{block.line + number}", line)
    for block in BLOCKS
    if block.language == "bash"
    for number, line in enumerate(block.text.splitlines())
    if line.strip()
]
SNIPPET = "--8<--"  # a file that the site shows in the place of this line
PYTHON = [block for block in BLOCKS if block.language == "python"]
PACKAGES = ("prompteol_jax", "train", "eval", "tpu")
GENERATED = "docs/hooks.py"


def without_code(text: str) -> str:
    return re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.MULTILINE | re.DOTALL)


def missing_paths(text: str) -> list[str]:
    """The files and folders of this repository that a page names in code font and that are not."""
    top = "|".join((*PACKAGES, "tests", "docs", "examples"))
    named = re.findall(rf"`((?:{top})/[\w./-]*)`", without_code(text))
    named += re.findall(rf'^{SNIPPET} "(.*)"$', text, re.MULTILINE)
    return [name for name in named if not (ROOT / name).exists()]


def unknown_names(text: str) -> list[str]:
    """The dotted names of our packages in code font that cannot be imported."""
    named = re.findall(rf"`((?:{'|'.join(PACKAGES)})(?:\.\w+)+)`", without_code(text))
    return [name for name in named if not name.endswith((".X", ".json", ".py")) and not found(name)]


def found(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:]:
            if not hasattr(thing, part):
                return False
            thing = getattr(thing, part)
        return True
    return False


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: str, text: str) -> list[str]:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        if not path.exists() or (
            anchor and anchor not in anchors(path.read_text(encoding="utf-8"))
        ):
            broken.append(target)
    return broken


def flags(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))


def parsed(line: str, monkeypatch: pytest.MonkeyPatch) -> object:
    """The options that a command line gives, by the command's own parser; nothing is run."""
    called: list[object] = []

    def noted(*arguments: object, **_: object) -> None:
        called.append(arguments)

    for module in MANY:
        stand_in = {name: (kind, called.append) for name, (kind, _) in module.COMMANDS.items()}
        monkeypatch.setattr(module, "COMMANDS", stand_in)
    for command in (contrastive, align, mine):
        monkeypatch.setattr(command, "run", called.append)
    monkeypatch.setattr(sts, "run", called.append)
    monkeypatch.setattr(random_checkpoint, "write_random_checkpoint", noted)
    monkeypatch.setattr(mteb, "run", called.append)
    monkeypatch.setattr(retrieval, "run", called.append)
    monkeypatch.setattr(loco, "run", called.append)
    monkeypatch.setattr(transfer, "run", called.append)
    monkeypatch.setattr(reproduce, "run", called.append)
    monkeypatch.setattr(plan, "run", called.append)
    monkeypatch.setattr(fits, "run", called.append)
    monkeypatch.setattr(lengths, "run", called.append)
    monkeypatch.setattr(layers, "run", called.append)
    monkeypatch.setattr(search, "run", called.append)
    monkeypatch.setattr(launch, "run", lambda options, _: called.append(options) or 0)
    words = shlex.split(line, comments=True)
    if "|" in words:
        words = words[words.index("|") + 1 :]
    mains = {
        ("prompteol",): cli.main,
        ("python", "-m", "eval.sts"): sts.main,
        ("python", "-m", "eval.mteb"): mteb.main,
        ("python", "-m", "eval.retrieval"): retrieval.main,
        ("python", "-m", "eval.loco"): loco.main,
        ("python", "-m", "eval.transfer"): transfer.main,
        ("python", "-m", "eval.reproduce"): reproduce.main,
        ("python", "-m", "eval.demos"): demos.main,
        ("python", "-m", "eval.layers"): layers.main,
        ("python", "-m", "eval.search"): search.main,
        ("python", "-m", "train.contrastive"): contrastive.main,
        ("python", "-m", "train.align"): align.main,
        ("python", "-m", "train.mine"): mine.main,
        ("python", "-m", "train.prepare"): prepare.main,
        ("python", "-m", "tpu.launch"): launch.main,
        ("python", "-m", "tpu.lengths"): lengths.main,
        ("python", "-m", "tpu.plan"): plan.main,
        ("python", "-m", "tpu.fits"): fits.main,
        ("python", "-m", "tpu.bench"): bench.main,
        ("python", "-m", "tpu.random_checkpoint"): random_checkpoint.main,
    }
    for start, main in mains.items():
        if tuple(words[: len(start)]) == start:
            with (
                contextlib.suppress(SystemExit) if main is launch.main else contextlib.nullcontext()
            ):
                main(words[len(start) :])
    return called[0] if called else None


def other_command_is_known(line: str) -> bool:
    """Whether a line is a make target, or one of the few tools that the pages use."""
    words = [w for w in shlex.split(line, comments=True) if not re.match(r"[A-Z_]+=", w)]
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        return re.search(rf"^{words[1]}:", makefile, re.MULTILINE) is not None
    known = (
        ["pip", "install", "."],
        ["pip", "install", ".[gcs]"],
        ["pip", "install", ".[mteb]"],
        ["pip", "install", ".[ray]"],
        ["pip", "install", ".[retrieval]"],
        ["pip", "install", ".[serve]"],
        [".ci/run"],
    )
    return words in known or words[:2] == ["docker", "build"]


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_somewhere(page):
    assert broken_links(page, PAGES[page]) == []


def test_a_broken_link_is_found():
    text = "[a](docs/none.md) [b](README.md#license-and-citation) [c](README.md#none) [d](#none)"
    assert broken_links("README.md", text) == ["docs/none.md", "README.md#none", "#none"]


@pytest.mark.parametrize("page", PAGES)
def test_every_path_and_every_name_exists(page):
    assert missing_paths(PAGES[page]) == []
    assert unknown_names(PAGES[page]) == []


def test_a_path_or_a_name_that_is_gone_is_found():
    assert missing_paths("`train/gone.py` and `train/loop.py`, `docs/`") == ["train/gone.py"]
    assert missing_paths('```\n--8<-- "examples/gone.py"\n```') == ["examples/gone.py"]
    assert unknown_names("`train.gone`, `train.losses.infonce` and `eval.X`") == ["train.gone"]


def test_every_module_is_in_the_api():
    shown = [name for page in PAGES.values() for name in re.findall(r"^::: (\S+)$", page, re.M)]
    modules = {
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.stem not in ("__init__", "__main__")
    }
    assert [m for m in sorted(modules) if not any(f"{m}.".startswith(f"{s}.") for s in shown)] == []
    assert [name for name in shown if not found(name)] == []
    assert sorted(set(shown)) == sorted(shown)


def test_every_public_name_is_on_the_first_page_of_the_api():
    import prompteol_jax

    page = PAGES["docs/reference/api/index.md"]
    assert [name for name in prompteol_jax.__all__ if f"`{name}`" not in page] == []


def test_the_help_of_every_command_is_on_the_site():
    """Every folder or module that `python -m` starts, and every command of `prompteol`."""
    shown = runpy.run_path(str(ROOT / GENERATED))["COMMANDS"]
    started = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for package in PACKAGES
        for path in (ROOT / package).rglob("__main__.py")
    }
    started |= {
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    }
    named = {line.split()[2] for line in shown if line.startswith("python -m ")}
    assert started - {"prompteol_jax.cli", "tpu.bench.peer"} == named
    assert {line.split()[1] for line in shown if line.startswith("prompteol ")} == set(cli.COMMANDS)


def test_every_decision_has_five_lines_and_a_row():
    notes = {name: page for name, page in PAGES.items() if re.search(r"decisions/\d{3}-", name)}
    assert [name.split("/")[-1][:3] for name in notes] == [
        f"{n + 1:03d}" for n in range(len(notes))
    ]
    form = r"# \d{3}: .+\n\n- \*\*Question:\*\* .+\n- \*\*Decision:\*\* .+\n- \*\*Why:\*\* .+\n"
    for name, page in notes.items():
        assert re.fullmatch(form + r"- \*\*Status:\*\* .+\n", page), name
        assert f"]({name.split('/')[-1]})" in PAGES["docs/decisions/index.md"], name


def test_a_decision_that_the_code_cites_exists():
    cited = {
        number
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for number in re.findall(r"decisions/(\d{3})", path.read_text(encoding="utf-8"))
    }
    known = {name.split("/")[-1][:3] for name in PAGES if "/decisions/" in name}
    assert cited - known == set()


def test_the_glossary_has_each_term_once():
    terms = re.findall(r"^\| ([^|]+?) \|", PAGES["docs/reference/glossary.md"], re.MULTILINE)[2:]
    assert len(terms) > 40
    assert terms == sorted(set(terms), key=str.lower)


@pytest.mark.parametrize(("place", "line"), COMMANDS, ids=[place for place, _ in COMMANDS])
def test_every_command_is_one_that_its_parser_takes(place, line, monkeypatch, tmp_path):
    """In a folder that holds the data that commands read; the bucket is that folder too."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nli.csv").touch()
    (tmp_path / "prepared").mkdir()
    options = parsed(line.replace("gs://BUCKET", str(tmp_path)), monkeypatch)
    if options is None:
        assert other_command_is_known(line), line
        return
    template = getattr(options, "template", None) or "eol"
    if not template.endswith(".json"):
        read_template(template)


@pytest.mark.parametrize(
    "line", ["prompteol encode --model tiny --inputs x", "python -m eval.sts --model tiny"]
)
def test_a_command_with_wrong_flags_is_found(line, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        parsed(line, monkeypatch)
    assert not other_command_is_known(line)
    capsys.readouterr()


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_is_one_of_some_command(page):
    fields = {field.name for options in OPTIONS for field in dataclasses.fields(options)}
    known = {f"--{name.replace('_', '-')}" for name in fields} | {"--help"}
    others = {
        "CHANGELOG.md": {"--flag"},
        "docs/guides/develop.md": {"--check"},
        "docs/guides/serve.md": {"--build-arg", "--tag"},
        "docs/decisions/049-replicated-over-data.md": {"--fsdp"},
        "docs/guides/tpu-launch.md": {
            "--allow",
            "--source-ranges",
            "--network",
            "--reserved",
            "--tpu-type",
            "--docker-image",
            "--command",
        },
        "docs/guides/tpu-plan.md": {"--no-packed", "--location", "--member", "--role"},
    }.get(page, set())
    assert flags(PAGES[page]) - known - others == set()


def test_every_command_that_encodes_takes_a_layer():
    """Those that read all layers, or words, take the flag and refuse what they cannot read."""
    without = {o for o in OPTIONS if "layer" not in {f.name for f in dataclasses.fields(o)}}
    assert without == WITHOUT_LAYER.keys()


def test_the_flags_of_training_are_explained():
    told = flags(PAGES["docs/guides/finetune.md"])
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    assert {f"--{name.replace('_', '-')}" for name in fields} - told == set()


def test_every_template_stands_with_its_bytes():
    page = PAGES["docs/guides/templates.md"]
    rows = [f"| `{name}` | `{t.fill('A cat.')}` |" for name, t in TEMPLATES.items()]
    assert [row for row in rows if row not in page] == []
    names = re.findall(r"^\| `(\S+)` \| `.*A cat", page, re.MULTILINE)
    assert names == list(TEMPLATES)


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_prompts_stand_token_by_token(family, data):
    tokenizer = load_tokenizer(data / "weights" / f"{family}-tokenizer")
    for name, template in TEMPLATES.items():
        text = template.fill("A cat.")
        parts = [tokenizer.backend.id_to_token(tokenizer.bos_id)]
        parts += [text[start:end] for start, end in tokenizer.spans(text)]
        C = len(prompt.stable_prefix(template, tokenizer))
        line = f"{'·'.join(parts[:C])}‖{'·'.join(parts[C:])}"
        assert f"\n{name}\n    {line}\n" in PAGES["docs/guides/templates.md"]


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
    """A folder with what the pages' Python asks for: a model, an adapter, a development set."""
    import jax

    from prompteol_jax import Embedder
    from prompteol_jax.lora import lora as adapters
    from prompteol_jax.lora import peft
    from prompteol_jax.pretrained.load import save_pretrained

    folder = tmp_path_factory.mktemp("docs")
    tiny = Embedder.from_pretrained("tiny", dtype="float32").pretrained
    save_pretrained(tiny, tiny.decoder, folder / "base", dtype="float32")
    lora = adapters.LoraConfig(rank=2)
    adapted = adapters.add_lora(tiny.decoder, tiny.config, lora, tiny.mesh, jax.random.key(0))
    peft.save_adapter(adapted, tiny.config, folder / "runs/opt-1.3b/adapter", base="base")
    dev = folder / "SentEval/data/downstream/STS/STSBenchmark/sts-dev.csv"
    dev.parent.mkdir(parents=True)
    pairs = (("5.0", "A cat."), ("2.0", "A dog runs."), ("0.0", "It rains."))
    lines = [f"g\tf\ty\t{n}\t{gold}\tA cat sleeps.\t{b}\n" for n, (gold, b) in enumerate(pairs)]
    dev.write_text("".join(lines), encoding="utf-8")
    return folder


TRAINING = "train.contrastive import"  # compiles a step
RUN = [
    pytest.param(block, id=str(block), marks=[pytest.mark.slow] if TRAINING in block.text else [])
    for block in PYTHON
]


@pytest.mark.wide
@pytest.mark.parametrize("block", RUN)
def test_the_python_runs(block, sandbox, monkeypatch, capsys):
    monkeypatch.chdir(sandbox)
    code = block.text.replace('"facebook/opt-1.3b"', '"base"')
    names: dict[str, object] = {}
    quiet = warnings.catch_warnings() if "from peft" in code else contextlib.nullcontext()
    with quiet:
        if "from peft" in code:  # its warnings are those of peft and transformers
            warnings.simplefilter("ignore")
        exec(compile(code, str(block), "exec"), names)
    printed = capsys.readouterr().out
    if block.page == "README.md":
        assert len([line for line in block.text.splitlines() if line]) <= 5
        assert names["vectors"].shape == (2, names["embedder"].width)
        assert len(re.findall(r"[\d.]+", printed)) == 2
    if "from peft" in code:
        from prompteol_jax import Embedder

        embedder = Embedder.from_pretrained("base", "runs/opt-1.3b", dtype="float32")
        ours = embedder.encode(["A cat sleeps."])[0]
        assert abs(ours - names["vector"].numpy()).max() < 1e-5
    if "z_BSD" in names:
        expected = names["embedder"].encode(["A cat sleeps."])
        assert abs(expected - names["z_BSD"][:, 0]).max() < 1e-5
