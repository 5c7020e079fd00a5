"""The law of the padded mean: it is what the original's line of torch gives, batch by batch."""

import numpy as np
import oracle
import pytest

from eval.shared.padded_mean import encode_padded_mean
from prompteol_jax import Embedder


def by_torch(folder, prompts):
    """`(last_layer * mask).mean(1)` of one left-padded batch."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token_id = 0
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    with torch.no_grad():
        states = oracle.load(folder)(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            output_hidden_states=True,
        ).hidden_states[-1]
    return (states * batch["attention_mask"][..., None]).mean(1).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("template", ["none", "prompt"])
def test_it_depends_on_the_batch_as_in_the_original(template, data):
    folder = data / "weights" / "tinystories-656k"
    embedder = Embedder.from_pretrained(
        str(folder), template=template, dtype="float32", pooling="mean"
    )
    texts = sorted(oracle.sentences(data, 7), key=lambda text: len(text.split()))
    texts.append(texts[0])
    prompts = [embedder.template.fill(text) for text in texts]
    ours = encode_padded_mean(embedder, texts, batch=4)
    theirs = np.concatenate([by_torch(folder, prompts[:4]), by_torch(folder, prompts[4:])])
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    true = embedder.encode(texts)
    assert np.abs(ours[7] - ours[0]).max() > 1e-3  # the same text in other company
    np.testing.assert_array_equal(true[7], true[0])
    np.testing.assert_allclose(encode_padded_mean(embedder, texts, batch=1), true)


def test_it_wants_a_mean():
    with pytest.raises(ValueError, match="load the model with --pooling mean"):
        encode_padded_mean(Embedder.from_pretrained("tiny", dtype="float32"), ["a cat"])
