"""Each method of the one-word family in torch, from its formula, by hooks on transformers.

Prompts are run one at a time, without padding, cache or shared prefix, in float32. Strings are
written down here once more, so that a wrong one in a record is noticed. Layers and blocks are
arguments: a tiny model does not have those of a published record.

`states[i]` is transformers' `hidden_states[i]`; blocks count from 0.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import oracle

EOL = 'This sentence : "{}" means in one word:"'
COT = 'After thinking step by step , this sentence : "{}" means in one word:"'
KE = (
    "The essence of a sentence is often captured by its main subjects and actions, while "
    "descriptive terms provide additional but less central details. With this in mind , this "
    'sentence : "{}" means in one word:"'
)
AUXILIARY = 'The irrelevant information of this sentence : "{}" means in one word:"'
PROMPT_STH = 'This sentence : "{}" means something'
PROMPT_SUM = 'This sentence : "{}" can be summarized as'
CONTEXT = "Context: {}\nCompress the Context in one word:"
QUERY = "Query: {}\nCompress the Query in one word:"
FILTER = 'Summarize the sentence: "{}" in one word:"'
META = (
    "In this task, you're presented with a text excerpt. Your task is to categorize the excerpt "
    "into a broad category such as 'Education', 'Technology', 'Health', 'Business', 'Environment', "
    "'Politics', or 'Culture'. These categories help in organizing content for better "
    'accessibility and targeting. For this task, this sentence : "{}" should be classified under '
    'one general category in one word:"',
    "In this task, you're given a statement and you need to determine whether it's presenting an "
    "'Opinion' or a 'Fact'. This distinction is vital for information verification, educational "
    'purposes, and content analysis. For this task, this sentence : "{}" discriminates between '
    'opinion and fact in one word:"',
    "In this task, you're given a review from an online platform. Your task is to generate a "
    "rating for the product based on the review on a scale of 1-5, where 1 means 'extremely "
    "negative' and 5 means 'extremely positive'. For this task, this sentence : \"{}\" reflects "
    'the sentiment in one word:"',
    "In this task, you're reading a personal diary entry. Your task is to identify the predominant "
    "emotion expressed, such as joy, sadness, anger, fear, or love. For this task, this sentence "
    ': "{}" conveys the emotion in one word:"',
    "In this task, you're presented with two sentences. Your task is to assess whether the "
    "sentences convey the same meaning. Use 'identical', 'similar', 'different', or 'unrelated' to "
    'describe the relationship. To enhance the performance of this task, this sentence : "{}" '
    'means in one word:"',
    "In this task, you're given a sentence and a phrase. Your task is to determine if the phrase "
    "can be a contextual synonym within the given sentence. Options include 'yes', 'no', or "
    "'partially'. To enhance the performance of this task, this sentence : \"{}\" means in one "
    'word:"',
    "In this task, you're examining a news article. Your task is to extract the most critical fact "
    'from the article. For this task, this sentence : "{}" encapsulates the key fact in one word:"',
    "In this task, you're reviewing a scientific abstract. Your task is to identify the main "
    "entities (e.g., proteins, diseases) and their relations (e.g., causes, treats). For this "
    'task, this sentence : "{}" highlights the primary entity or relation in one word:"',
)
ECHO = ("Rewrite the following paragraph: ", ". The rewritten paragraph: ")
_SLOT = "prompteol-tests-slot"  # name of the attention with an extra key


class Seen(NamedTuple):
    """What one prompt's pass leaves, float32.

    Attributes:
        states: [T, D] behind the embedding and behind every block; the last one is normed.
        attention: [T, D] of every block's attention, after its output projection.
        joined: [T, N * H] of every block's heads, before its output projection.
    """

    states: list[np.ndarray]
    attention: list[np.ndarray]
    joined: list[np.ndarray]


class Copy(NamedTuple):
    """Before blocks start to exit - 1 the state at `target` becomes that of the last token."""

    target: int
    start: int
    exit: int


class Slot(NamedTuple):
    """In these blocks every token also sees a copy of the last token's key and value."""

    blocks: frozenset[int]
    bias: float = 0.0


Change = Callable[[np.ndarray], np.ndarray]  # of [T, N * H]


def base_of(model: Any) -> Any:
    """Return the module with a model's `layers`."""
    return getattr(model.model, "decoder", model.model)


def run(
    model: Any,
    ids: Sequence[int],
    *,
    copy: Copy | None = None,
    replace: tuple[int, Change] | None = None,
    slot: Slot | None = None,
    initial: tuple[int, np.ndarray] | None = None,
) -> Seen:
    """Run one prompt.

    Args:
        replace: Block, and what becomes of its joined heads before the output projection.
        initial: Position, and the state [D] that it has before block 0, unless it is copied there.
    """
    import torch

    attention: list[np.ndarray] = []
    joined: list[np.ndarray] = []
    with contextlib.ExitStack() as stack, torch.no_grad():
        for number, block in enumerate(base_of(model).layers):
            change = replace[1] if replace and replace[0] == number else None
            stack.enter_context(_hooked(block, attention, joined, change))
            if number == 0 and initial:
                stack.enter_context(
                    _replaced(block, initial[0], lambda x: torch.tensor(initial[1]))
                )
            if copy and copy.start <= number < copy.exit:
                stack.enter_context(_replaced(block, copy.target, lambda x_BTD: x_BTD[:, -1]))
        if slot:
            stack.enter_context(_with_slot(model, slot))
        out = model(input_ids=torch.tensor([list(ids)]), output_hidden_states=True)
    return Seen([state[0].numpy() for state in out.hidden_states], attention, joined)


@contextlib.contextmanager
def _removed(*handles: Any) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooked(
    block: Any, attention: list[np.ndarray], joined: list[np.ndarray], change: Change | None
) -> Any:
    import torch

    output = getattr(block.self_attn, "o_proj", None) or block.self_attn.out_proj

    def before(_: Any, inputs: tuple) -> tuple:
        v_TI = inputs[0][0].numpy()
        if change is not None:
            v_TI = np.asarray(change(v_TI.copy()), np.float32)
        joined.append(v_TI.copy())
        return (torch.tensor(v_TI[None]), *inputs[1:])

    def after(_: Any, __: tuple, found: Any) -> None:
        attention.append((found[0] if isinstance(found, tuple) else found)[0].numpy().copy())

    return _removed(
        output.register_forward_pre_hook(before), block.self_attn.register_forward_hook(after)
    )


def _replaced(block: Any, target: int, state: Callable[[Any], Any]) -> Any:
    """Replace the state of one token before a block."""

    def before(_: Any, inputs: tuple, kwargs: dict) -> tuple:
        x_BTD = (inputs[0] if inputs else kwargs.pop("hidden_states")).clone()
        x_BTD[:, target] = state(x_BTD)
        return (x_BTD, *inputs[1:]), kwargs

    return _removed(block.register_forward_pre_hook(before, with_kwargs=True))


@contextlib.contextmanager
def _with_slot(model: Any, slot: Slot) -> Iterator[None]:
    """Let attention be computed as the formula says, with the extra key where the slot is."""
    import torch
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def attend(
        module: Any, q: Any, k: Any, v: Any, mask: Any, scaling: float, **kwargs: Any
    ) -> tuple:
        groups = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))

        def scored(k: Any) -> Any:
            scores = q @ k.transpose(2, 3) * scaling
            cap = kwargs.get("softcap")
            return scores if cap is None else torch.tanh(scores / cap) * cap

        scores = scored(k) + mask[..., : k.shape[2]]
        if module.layer_idx in slot.blocks:
            scores = torch.cat([scored(k[:, :, -1:]) + slot.bias, scores], dim=-1)
            v = torch.cat([v[:, :, -1:], v], dim=2)
        return (torch.softmax(scores, -1) @ v).transpose(1, 2).contiguous(), None

    ALL_ATTENTION_FUNCTIONS.register(_SLOT, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(_SLOT, eager_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation(_SLOT)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


class Oracle:
    """The methods of one folder's model.

    Each method returns float32 vectors [n, D], or wider or narrower ones where it says so.
    """

    def __init__(self, folder: Path):
        from transformers import AutoTokenizer

        self.model = oracle.load(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.depth = len(base_of(self.model).layers)

    def ids(self, prompt: str) -> list[int]:
        """Return the ids of a whole prompt."""
        return self.tokenizer(prompt)["input_ids"]

    def last(self, prompt: str, layer: int = -1) -> np.ndarray:
        """Return one prompt's state of the last token behind a layer."""
        return run(self.model, self.ids(prompt)).states[layer][-1]

    # -- prompts --------------------------------------------------------------------------------

    def prompts(self, texts: Sequence[str], forms: Sequence[str], layer: int = -1) -> np.ndarray:
        """Return the mean over prompts of the raw last-token states: eol, cot, ke, ck, MetaEOL."""
        return _rows(
            np.mean([self.last(form.format(text), layer) for form in forms], axis=0)
            for text in texts
        )

    def mean(self, texts: Sequence[str], form: str, layer: int = -1) -> np.ndarray:
        """Return the mean of the states of all tokens of a prompt, BOS included."""
        return _rows(
            run(self.model, self.ids(form.format(text))).states[layer].mean(0) for text in texts
        )

    def reverse(self, texts: Sequence[str], form: str = EOL) -> np.ndarray:
        """Return ReverseEOL: the mean of a text's vector and that of its words in reverse."""
        turned = [" ".join(reversed(text.split())) for text in texts]
        return (self.prompts(texts, [form]) + self.prompts(turned, [form])) / 2

    def expanded(
        self, texts: Sequence[str], variants: dict[str, Sequence[str]], form: str = KE, **how: Any
    ) -> np.ndarray:
        """Return GenEOL: the mean of the vectors of a text and of its variants."""
        return _rows(self.prompts([text, *variants[text]], [form], **how).mean(0) for text in texts)

    # -- edits ----------------------------------------------------------------------------------

    def prepending(
        self,
        ids: Sequence[Sequence[int]],
        targets: Sequence[int],
        *,
        start: int,
        exit: int,
        layer: int = -1,
        initial: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return Token Prepending: h[pst] becomes h[last] before blocks start to exit - 1.

        Args:
            ids: Prompts with a placeholder each, at the positions `targets`.
            initial: State [D] of the placeholder before block 0, unless it is copied there.
        """
        return _rows(
            run(
                self.model,
                of_one,
                copy=Copy(target, start, exit),
                initial=None if initial is None else (target, initial),
            ).states[layer][-1]
            for of_one, target in zip(ids, targets, strict=True)
        )

    def contrastive(
        self,
        texts: Sequence[str],
        form: str,
        *,
        block: int,
        plan: str,
        scale: float = 1.0,
        layer: int = -1,
    ) -> np.ndarray:
        """Return Contrastive Prompting with one of its plans, see `subtracted`."""
        heads = self.model.config.num_attention_heads
        found = []
        for text in texts:
            auxiliary = run(self.model, self.ids(AUXILIARY.format(text))).joined[block][-1]

            def change(v_TI: np.ndarray, auxiliary: np.ndarray = auxiliary) -> np.ndarray:
                if plan == "self_scaled":  # of all tokens
                    return scale * v_TI
                v_TI[-1] = subtracted(v_TI[-1], auxiliary, plan, scale, heads)
                return v_TI

            seen = run(self.model, self.ids(form.format(text)), replace=(block, change))
            found.append(seen.states[layer][-1])
        return _rows(found)

    def attention_sum(
        self, texts: Sequence[str], form: str, blocks: Sequence[int], *, mean: bool = False
    ) -> np.ndarray:
        """Return the sum, or the mean, of blocks' attention outputs after W_O at the last token."""
        found = []
        for text in texts:
            seen = run(self.model, self.ids(form.format(text)))
            outputs = np.stack([seen.attention[block][-1] for block in blocks]).astype(np.float64)
            found.append(outputs.mean(0) if mean else outputs.sum(0))
        return _rows(found)

    def slotted(
        self, texts: Sequence[str], blocks: Sequence[int], *, bias: float = 0.0, form: str = CONTEXT
    ) -> np.ndarray:
        """Return KV-Embedding before it is normalized: (mean over all tokens + last) / 2."""
        slot = Slot(frozenset(blocks), bias)
        found = []
        for text in texts:
            states = run(self.model, self.ids(form.format(text)), slot=slot).states[-1]
            found.append((states.mean(0) + states[-1]) / 2)
        return _rows(found)

    # -- spans ----------------------------------------------------------------------------------

    def pieces(self, pieces: Sequence[str], *, begin: Sequence[int] = ()) -> list[list[int]]:
        """Return the ids of each piece of a prompt, tokenized alone, without special tokens."""
        plain = self.tokenizer(list(pieces), add_special_tokens=False)["input_ids"]
        return [list(begin), *plain]

    def span(
        self, ids: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]], layer: int = -1
    ) -> np.ndarray:
        """Return the mean of the states of a span of each prompt: Echo's second copy."""
        return _rows(
            run(self.model, of_one).states[layer][first:end].mean(0)
            for of_one, (first, end) in zip(ids, spans, strict=True)
        )

    # -- after the vector -----------------------------------------------------------------------

    def filtered(self, z_nD: np.ndarray, shrink: int) -> np.ndarray:
        """Return EmbedFilter: the middle D / shrink right singular vectors of the LM head."""
        head_VD = self.model.get_output_embeddings().weight.detach().numpy().astype(np.float64)
        D = head_VD.shape[1]
        kept = D // shrink
        first = (D - kept) // 2
        rows_DD = np.linalg.svd(head_VD, full_matrices=False)[2]
        return (z_nD.astype(np.float64) @ rows_DD[first : first + kept].T).astype(np.float32)


def subtracted(
    v_I: np.ndarray, auxiliary_I: np.ndarray, plan: str, scale: float, heads: int
) -> np.ndarray:
    """Return what replaces the joined heads of the last token.

    ns: scale * delta. nr: delta * |v| / (|delta| + 1e-7), over all heads. scaled_norm: scale * nr.
    sub_head_norm: nr for each head by itself.
    """
    delta = v_I - auxiliary_I
    if plan == "ns":
        return scale * delta
    if plan in ("nr", "scaled_norm"):
        factor = np.linalg.norm(v_I) / (np.linalg.norm(delta) + 1e-7)
        return (scale if plan == "scaled_norm" else 1.0) * factor * delta
    assert plan == "sub_head_norm"
    v_NH, delta_NH = v_I.reshape(heads, -1), delta.reshape(heads, -1)
    norms = [np.linalg.norm(x, axis=1, keepdims=True) for x in (v_NH, delta_NH)]
    return (delta_NH * norms[0] / (norms[1] + 1e-7)).reshape(-1)


def without_mean(z_nD: np.ndarray, fitted_mD: np.ndarray) -> np.ndarray:
    """Return vectors less the mean of those that were fitted on."""
    return z_nD - fitted_mD.astype(np.float64).mean(0)


def whitened(z_nD: np.ndarray, fitted_mD: np.ndarray) -> np.ndarray:
    """Return (z - mean) U S^-1/2, from the covariance U S U^T of the vectors fitted on."""
    wide = fitted_mD.astype(np.float64)
    centered = wide - wide.mean(0)
    left, values, _ = np.linalg.svd(centered.T @ centered / len(wide))
    return without_mean(z_nD, fitted_mD) @ (left / np.sqrt(values))


def equal_but_for_signs(ours: np.ndarray, theirs: np.ndarray, atol: float = 1e-4) -> None:
    """Check vectors whose every feature may have the other sign."""
    assert ours.shape == theirs.shape
    signs = np.sign((ours.astype(np.float64) * theirs).sum(0))
    scale = np.abs(theirs).max()
    assert np.abs(ours - signs * theirs).max() / max(scale, 1.0) <= atol


def _rows(vectors: Any) -> np.ndarray:
    return np.stack([np.asarray(vector, np.float32) for vector in vectors])
