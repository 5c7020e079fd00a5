"""Each shipped method equals its formula, computed by hooks on transformers.

Records keep their prompts, kinds and stages; layers and blocks are those of a model of four blocks.
"""

from __future__ import annotations

import dataclasses
import json

import method_oracles
import numpy as np
import oracle
import pytest

from prompteol_jax import Embedder
from prompteol_jax.methods import post
from prompteol_jax.methods.edits import placeholder_state
from prompteol_jax.methods.library import FILE, find_method, shipped, write_method
from prompteol_jax.methods.record import PLACEHOLDER

pytestmark = pytest.mark.usefixtures("coarse")

TEXTS = [
    "A dog runs.",
    "Two women are playing guitar together on a stage.",
    "x",
    "The man eats (bread)",
]
DEPTH = 4
MODELS = {  # name of a checkpoint of `oracle`, and what is changed of it
    "opt": ("opt-tiny", {"num_hidden_layers": DEPTH}),
    "llama": ("llama-gqa-tiny", {"num_hidden_layers": DEPTH}),
    "qwen3": ("qwen3-odd-tiny", {}),  # windows of 12 tokens in the upper two blocks
    # Windows of 10 in every second block, capped scores, norms on what attention adds.
    "gemma2": ("gemma2-tiny", {"num_hidden_layers": DEPTH}),
}


@pytest.fixture(scope="module")
def models(data, tmp_path_factory):
    """A folder, an embedder of it and its oracle by the name of a family, made when asked for."""
    made = {}

    def model(family):
        if family not in made:
            name, changes = MODELS[family]
            tokenizer = data / "weights" / oracle.tokenizer_of(name)
            folder = tmp_path_factory.mktemp(family) / "model"
            oracle.write(oracle.build(name, **changes), folder, tokenizer)
            embedder = Embedder.from_pretrained(str(folder), dtype="float32")
            made[family] = folder, embedder, method_oracles.Oracle(folder)
        return made[family]

    return model


def record(name, **changes):
    """A shipped record with other numbers; `copy` and the like change fields of that part."""
    method = find_method(name)
    for part in ("copy", "subtract", "collect", "slot"):
        if part in changes:
            changes[part] = dataclasses.replace(getattr(method, part), **changes[part])
    return dataclasses.replace(method, **changes)


def prepending(oracle_of, forms, *, start, exit_, layer=-1, seed=0):
    """Token prepending with `<PST>` as an added token of transformers' tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(oracle_of.tokenizer.name_or_path)
    tokenizer.add_special_tokens({"additional_special_tokens": [PLACEHOLDER]})
    mark = tokenizer.convert_tokens_to_ids(PLACEHOLDER)
    state_D = placeholder_state(seed, oracle_of.model.config.hidden_size)
    vectors = []
    for form in forms:
        prompts = [tokenizer(form.format(text))["input_ids"] for text in TEXTS]
        targets = [ids.index(mark) for ids in prompts]
        ids = [[0 if i == mark else i for i in own] for own in prompts]
        vectors.append(
            oracle_of.prepending(
                ids, targets, start=start, exit=exit_, layer=layer, initial=state_D
            )
        )
    return np.mean(vectors, axis=0)


TP = 'This sentence : <PST> "{}" means in one word:"'
TP_META = tuple(form.replace('"{}"', '<PST> "{}"') for form in method_oracles.META)
CASES = {
    "eol": (record("eol"), lambda o: o.prompts(TEXTS, [method_oracles.EOL])),
    "eol-icl": (record("eol-icl-2.7b"), lambda o: o.prompts(TEXTS, [oracle.ICL])),
    "cot": (record("cot"), lambda o: o.prompts(TEXTS, [method_oracles.COT], layer=-2)),
    "ke": (record("ke"), lambda o: o.prompts(TEXTS, [method_oracles.KE], layer=-2)),
    "ck": (
        record("ck"),
        lambda o: o.prompts(TEXTS, [method_oracles.KE, method_oracles.COT], layer=-2),
    ),
    "sum": (record("sum"), lambda o: o.prompts(TEXTS, [method_oracles.PROMPT_SUM])),
    "sth": (record("sth"), lambda o: o.prompts(TEXTS, [method_oracles.PROMPT_STH])),
    "mean": (record("mean"), lambda o: o.mean(TEXTS, "{}")),
    "metaeol": (record("metaeol"), lambda o: o.prompts(TEXTS, method_oracles.META)),
    "reverse-eol": (record("reverse-eol"), lambda o: o.reverse(TEXTS)),
    "tp/eol": (
        record("tp/eol", layer=3, copy={"start": 1, "exit": 3}),
        lambda o: prepending(o, [TP], start=1, exit_=3, layer=3),
    ),
    "tp/eol-from-0": (
        record("tp/eol", layer=None, copy={"start": 0, "exit": 4}),
        lambda o: prepending(o, [TP], start=0, exit_=4),
    ),
    "tp/metaeol": (
        record("tp/metaeol", layer=3, copy={"start": 1, "exit": 2}),
        lambda o: prepending(o, TP_META, start=1, exit_=2, layer=3),
    ),
    **{
        name: (
            record(name, layer=3, subtract={"block": 1}),
            lambda o, plan=plan, scale=scale, form=form: o.contrastive(
                TEXTS, form, block=1, plan=plan, scale=scale, layer=3
            ),
        )
        for name, plan, scale, form in (
            ("cp-ns/eol", "ns", 2.0, method_oracles.EOL),
            ("cp-ns/cot", "ns", 3.0, method_oracles.COT),
            ("cp-nr/eol", "nr", 1.0, method_oracles.EOL),
            ("cp-nr/ke", "nr", 1.0, method_oracles.KE),
            ("cp-scaled-norm/eol", "scaled_norm", 2.0, method_oracles.EOL),
            ("cp-head-norm/eol", "sub_head_norm", 1.0, method_oracles.EOL),
            ("cp-self-scaled/eol", "self_scaled", 2.0, method_oracles.EOL),
        )
    },
    "cp-ns/eol-first-block": (
        record("cp-ns/eol", layer=3, subtract={"block": 0}),
        lambda o: o.contrastive(TEXTS, method_oracles.EOL, block=0, plan="ns", scale=2.0, layer=3),
    ),
    "cp-ns/eol-last-block": (
        record("cp-ns/eol", layer=None, subtract={"block": DEPTH - 1}),
        lambda o: o.contrastive(TEXTS, method_oracles.EOL, block=DEPTH - 1, plan="ns", scale=2.0),
    ),
    **{
        f"cp-{plan}/ck": (
            record(f"cp-{plan}/ck", layer=3, subtract={"block": 2}),
            lambda o, plan=plan, scale=scale: np.mean(
                [
                    o.contrastive(TEXTS, form, block=2, plan=plan, scale=scale, layer=3)
                    for form in (method_oracles.KE, method_oracles.COT)
                ],
                axis=0,
            ),
        )
        for plan, scale in (("ns", 3.0), ("nr", 1.0))
    },
    "attention-sum": (
        record("attention-sum"),
        lambda o: o.attention_sum(TEXTS, method_oracles.EOL, range(DEPTH)),
    ),
    "aligned-values": (
        record("aligned-values"),
        lambda o: o.attention_sum(TEXTS, method_oracles.EOL, range(DEPTH // 2, DEPTH), mean=True),
    ),
    "echo": (record("echo"), lambda o: echo(o, TEXTS)),
    "echo/query-meantoken": (record("echo/query-meantoken"), lambda o: trained_echo(o, last=False)),
    "echo/query-lasttoken": (record("echo/query-lasttoken"), lambda o: trained_echo(o, last=True)),
    "kv-embedding/context": (
        record("kv-embedding/context", slot={"first": 1, "end": 3}),
        lambda o: unit(o.slotted(TEXTS, [1, 2])),
    ),
    "kv-embedding/query": (
        record("kv-embedding/query", slot={"first": 0, "end": 2}),
        lambda o: unit(o.slotted(TEXTS, [0, 1], form=method_oracles.QUERY)),
    ),
    "kv-embedding/last-block": (
        record("kv-embedding/context", slot={"first": 3, "end": None}),
        lambda o: unit(o.slotted(TEXTS, [3])),
    ),
}
FAMILIES = list(MODELS)
FITTED = ("mean-removal/eol", "whitening/eol")
FILTERED = ("embed-filter/eol", "embed-filter/echo")
QUICK = {"eol", "tp/eol", "cp-ns/eol", "attention-sum"}  # of OPT, what runs in every test run


def echo(oracle_of, texts):
    """Echo without training: BOS, pieces tokenized alone, EOS, which counts in the mean."""
    bos = oracle_of.ids("")[:1]
    eos = oracle_of.tokenizer.eos_token_id
    prompts, spans = [], []
    for text in texts:
        parts = oracle_of.pieces(
            [method_oracles.ECHO[0], text, method_oracles.ECHO[1], text], begin=bos
        )
        ids = [i for part in parts for i in part] + [eos]
        prompts.append(ids)
        spans.append((len(ids) - 1 - len(parts[-1]), len(ids)))
    return oracle_of.span(prompts, spans)


def trained_echo(oracle_of, *, last):
    """Echo's trained queries: pieces tokenized alone, and what follows the second copy counts."""
    task, bos = "Retrieve semantically similar text,", oracle_of.ids("")[:1]
    prompts, spans = [], []
    for text in TEXTS:
        pieces = ["<s>Instruct:", task, "\nQuery:", text, "\nQuery again:", text, "</s>"]
        _, *parts = oracle_of.pieces(pieces)
        ids = [i for part in parts for i in part]
        ids = ids if ids[:1] == bos else bos + ids  # LLaMA's is spelled out
        prompts.append(ids)
        own = 1 if last else len(parts[-2]) + len(parts[-1])
        spans.append((len(ids) - own, len(ids)))
    return oracle_of.span(prompts, spans)


def unit(z_nD):
    return z_nD / np.linalg.norm(z_nD, axis=1, keepdims=True)


def every_case():
    for name in CASES:
        for family in FAMILIES:
            if (name, family) == ("cp-ns/eol-first-block", "gemma2"):
                continue  # its window hides what differs between the prompts: 0 - 0
            is_quick = family == "opt" and name in QUICK
            marks = () if is_quick else (pytest.mark.slow,)
            yield pytest.param(name, family, id=f"{name}-{family}", marks=marks)


@pytest.mark.first("tp/eol-opt", "attention-sum-opt")
@pytest.mark.parametrize(("name", "family"), list(every_case()))
def test_a_method_is_its_formula(name, family, models):
    _, embedder, oracle_of = models(family)
    method, expected = CASES[name]
    ours = embedder.with_method(method).encode(TEXTS)
    theirs = expected(oracle_of).astype(np.float32)
    assert np.abs(ours - theirs).max() <= 1e-4 * max(1.0, np.abs(theirs).max())
    oracle.assert_close(unit(ours), unit(theirs))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_geneol_is_the_mean_over_a_text_and_its_variants(family, models, tmp_path):
    _, embedder, oracle_of = models(family)
    variants = {
        text: [f"{text} Indeed.", f"So, {text}"][: 1 + n % 2] for n, text in enumerate(TEXTS)
    }
    lines = [json.dumps({"text": text, "variants": own}) for text, own in variants.items()]
    (tmp_path / "variants.jsonl").write_text("\n".join(lines) + "\n")
    method = find_method("geneol")
    fields = method.to_json()
    fields["prompts"][1]["transform"]["file"] = "variants.jsonl"
    (tmp_path / "method.json").write_text(json.dumps(fields))
    ours = embedder.with_method(find_method(tmp_path)).encode(TEXTS)
    oracle.assert_close(ours, oracle_of.expanded(TEXTS, variants, layer=-2))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", FILTERED)
def test_a_projection_is_that_of_the_lm_head(name, family, models):
    _, embedder, oracle_of = models(family)
    bare = (
        echo(oracle_of, TEXTS)
        if name.endswith("echo")
        else oracle_of.prompts(TEXTS, [method_oracles.FILTER])
    )
    ours = embedder.with_method(find_method(name)).encode(TEXTS)
    method_oracles.equal_but_for_signs(ours, oracle_of.filtered(bare, 2))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", FITTED)
def test_a_fitted_stage_is_its_formula(name, family, models, data, tmp_path):
    _, embedder, oracle_of = models(family)
    on, forms = oracle.sentences(data, 30), [method_oracles.EOL]
    (stage,) = find_method(name).post
    dims = 4 if stage.kind == "whiten" else None  # signs of vectors are free, and only there
    stage = dataclasses.replace(stage, file="fitted.npz", dims=dims)
    post.save(tmp_path / "fitted.npz", post.fit(stage, embedder.encode(on)))
    write_method(tmp_path / FILE, record(name, post=(stage,)))
    ours = embedder.with_method(find_method(tmp_path)).encode(TEXTS)
    formula = {"center": method_oracles.without_mean, "whiten": method_oracles.whitened}[stage.kind]
    theirs = formula(oracle_of.prompts(TEXTS, forms), oracle_of.prompts(on, forms))
    method_oracles.equal_but_for_signs(ours, theirs[:, :dims])


def kind_of(method):
    """What a record does, its prompts, numbers and layers left out."""
    return (
        len(method.prompts) > 1,
        {view.transform and view.transform.kind for view in method.prompts} == {None},
        bool(method.prompts[0].template.pieces),
        method.pooling,
        method.copy is not None,
        method.subtract and method.subtract.kind,
        method.collect and method.collect.reduce,
        method.slot is not None,
        tuple(stage.kind for stage in method.post),
    )


@pytest.mark.unit
def test_every_kind_of_shipped_record_is_compared():
    compared = [method for method, _ in CASES.values()]
    compared += [find_method(name) for name in ("geneol", *FITTED, *FILTERED)]
    kinds = {kind_of(method) for method in compared}
    assert [name for name in shipped() if kind_of(find_method(name)) not in kinds] == []
