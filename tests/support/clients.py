"""What `clients.sh` runs with each client: the bytes must be those of `Embedder.encode`."""

from __future__ import annotations

import os
import sys

import numpy as np

TEXTS = ["A cat sleeps.", "", "the dog runs after one red ball", "A cat sleeps."]


def expected(file: str) -> None:
    """Write the vectors that the server must give."""
    from prompteol_jax import Embedder

    embedder = Embedder.from_pretrained("tiny", dtype="float32", max_tokens=64)
    z_nD = embedder.encode(TEXTS)
    np.save(file, z_nD / np.linalg.norm(z_nD, axis=1, keepdims=True))


def openai() -> list[list[float]]:
    """Ask with OpenAI's client, in both formats, with dimensions and with a mistake."""
    from openai import BadRequestError, OpenAI

    client = OpenAI()
    asked = dict(input=TEXTS, model="tiny")
    packed = [one.embedding for one in client.embeddings.create(**asked).data]
    plain = client.embeddings.create(**asked, encoding_format="float").data
    np.testing.assert_array_equal(np.float32([one.embedding for one in plain]), np.float32(packed))
    assert len(client.embeddings.create(**asked, dimensions=8).data[0].embedding) == 8
    try:
        client.embeddings.create(input=[], model="tiny")
    except BadRequestError as error:
        assert "empty list" in str(error)
    else:
        raise AssertionError("an empty list was answered")
    return packed


def langchain() -> list[list[float]]:
    """Ask with LangChain, which must be kept from sending token ids."""
    from langchain_openai import OpenAIEmbeddings

    client = OpenAIEmbeddings(model="tiny", check_embedding_ctx_length=False)
    found = client.embed_documents(TEXTS)
    assert client.embed_query(TEXTS[0]) == found[0]
    return found


def llama_index() -> list[list[float]]:
    """Ask with LlamaIndex."""
    from llama_index.embeddings.openai import OpenAIEmbedding

    client = OpenAIEmbedding(model_name="tiny", api_base=os.environ["OPENAI_BASE_URL"])
    return client.get_text_embedding_batch(TEXTS)


def mteb() -> list[list[float]]:
    """Ask with mteb's model of OpenAI's API; it answers an empty text by zeros itself."""
    import tiktoken
    from mteb.models.model_implementations.openai_models import OpenAIModel

    # It counts tokens with a vocabulary that it would download; bytes will do.
    ranks = {bytes([n]): n for n in range(256)}
    by_bytes = tiktoken.Encoding("b", pat_str=".", mergeable_ranks=ranks, special_tokens={})
    tiktoken.get_encoding = lambda name: by_bytes
    model = OpenAIModel("tiny", max_tokens=64, embed_dim=128)
    ask = {"task_metadata": None, "hf_split": "test", "hf_subset": "default"}
    found = list(model.encode([{"text": TEXTS}], **ask))
    assert not found[1].any()
    return [*found[:1], np.load(sys.argv[2])[1], *found[2:]]


CLIENTS = {
    "openai": openai,
    "langchain-openai": langchain,
    "llama-index-embeddings-openai": llama_index,
    "mteb": mteb,
}


if __name__ == "__main__":
    client, file = sys.argv[1:]
    if client == "expected":
        expected(file)
    else:
        vectors = np.array(CLIENTS[client](), np.float32)
        np.testing.assert_array_equal(vectors, np.load(file))
        print(f"{client}: {len(vectors)} of {len(TEXTS)} vectors are those of Embedder.encode")
