"""What the README and docs/ say is true: links, commands, flags, templates, Python."""

import contextlib
import dataclasses
import re
import shlex
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest

from eval.demos import command as demos
from eval.layers import command as layers
from eval.mteb import command as mteb
from eval.reproduce import command as reproduce
from eval.sts import command as sts
from eval.sts.command import StsOptions
from eval.transfer import command as transfer
from prompteol_jax.cli import main as cli
from prompteol_jax.text import prompt
from prompteol_jax.text.template import TEMPLATES, read_template
from tpu import fits, lengths, random_checkpoint
from tpu.bench import command as bench
from tpu.launch import command as launch
from tpu.plan import command as plan
from train import contrastive, prepare
from train.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")))
}
OPTIONS = (
    TrainConfig,
    StsOptions,
    layers.LayersOptions,
    transfer.TransferOptions,
    mteb.MtebOptions,
    reproduce.ReproduceOptions,
    launch.LaunchOptions,
)
OPTIONS += (plan.PlanOptions, fits.FitsOptions, lengths.LengthsOptions)
MANY = (cli, prepare, bench, demos)  # of several commands each
OPTIONS += tuple(kind for module in MANY for kind, _ in module.COMMANDS.values())


# Commands without --layer, and why.
WITHOUT_LAYER = {
    TrainConfig: "the loss is over the last layer, whose adapter peft loads",
    reproduce.ReproduceOptions: "the paper's tables are of the last layer",
    launch.LaunchOptions: "it passes a command on, with its flags",
    plan.PlanOptions: "it plans the whole model",
    fits.FitsOptions: "it plans the whole model",
    lengths.LengthsOptions: "it reads no weights",
    cli.ShowOptions: "it reads no weights",
    cli.ExportOptions: "a run is exported whole",
    cli.COMMANDS["compare"][0]: "it reads no weights",
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
    """The fenced blocks of a page with the number of their first line."""
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(page, 1 + text[: m.start(2)].count("\n"), m[1], m[2]) for m in found]


BLOCKS = [block for page, text in PAGES.items() for block in fenced(page, text)]
COMMANDS = [
    (f"{block.page}:{block.line + number}", line)
    for block in BLOCKS
    if block.language == "bash"
    for number, line in enumerate(block.text.splitlines())
    if line.strip()
]
PYTHON = [block for block in BLOCKS if block.language == "python"]


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


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
    monkeypatch.setattr(contrastive, "run", called.append)
    monkeypatch.setattr(sts, "run", called.append)
    monkeypatch.setattr(random_checkpoint, "write_random_checkpoint", noted)
    monkeypatch.setattr(mteb, "run", called.append)
    monkeypatch.setattr(transfer, "run", called.append)
    monkeypatch.setattr(reproduce, "run", called.append)
    monkeypatch.setattr(plan, "run", called.append)
    monkeypatch.setattr(fits, "run", called.append)
    monkeypatch.setattr(lengths, "run", called.append)
    monkeypatch.setattr(layers, "run", called.append)
    monkeypatch.setattr(launch, "run", lambda options, _: called.append(options) or 0)
    words = shlex.split(line, comments=True)
    if "|" in words:
        words = words[words.index("|") + 1 :]
    mains = {
        ("prompteol",): cli.main,
        ("python", "-m", "eval.sts"): sts.main,
        ("python", "-m", "eval.mteb"): mteb.main,
        ("python", "-m", "eval.transfer"): transfer.main,
        ("python", "-m", "eval.reproduce"): reproduce.main,
        ("python", "-m", "eval.demos"): demos.main,
        ("python", "-m", "eval.layers"): layers.main,
        ("python", "-m", "train.contrastive"): contrastive.main,
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
        [".ci/run"],
    )
    return words in known


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_somewhere(page):
    assert broken_links(page, PAGES[page]) == []


def test_a_broken_link_is_found():
    text = "[a](docs/none.md) [b](README.md#license-and-citation) [c](README.md#none) [d](#none)"
    assert broken_links("README.md", text) == ["docs/none.md", "README.md#none", "#none"]


@pytest.mark.parametrize(("place", "line"), COMMANDS, ids=[place for place, _ in COMMANDS])
def test_every_command_is_one_that_its_parser_takes(place, line, monkeypatch):
    options = parsed(line, monkeypatch)
    if options is None:
        assert other_command_is_known(line), line
        return
    template = getattr(options, "template", None) or "eol"
    if not template.endswith(".json"):
        read_template(template)
    if isinstance(options, TrainConfig) and not options.resume:
        ours = Path(options.data).name in ("nli.csv", "prepared")
        data = "synthetic" if ours else options.data
        dataclasses.replace(options, data=data).check()


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
        "docs/guides/develop.md": {"--check"},
        "docs/guides/tpu-launch.md": {
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
    tokenizer = prompt.load_tokenizer(data / "weights" / f"{family}-tokenizer")
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


@pytest.mark.parametrize("block", PYTHON, ids=str)
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
