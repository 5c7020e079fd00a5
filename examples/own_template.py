"""A template of your own: write it, look at it, store it, encode with it.

python examples/own_template.py
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from prompteol_jax import Embedder, Template
from prompteol_jax.text.template import Demonstration

TEXT = "The battery lasts two days."
TOPIC = Template(
    "topic",
    prefix='This review : "',
    suffix='" is in one word about:"',
    demonstrations=(Demonstration("The soup was cold.", "Food"),),
)


def main() -> Path:
    """Print the prompt and the width of a vector; return the file of the template."""
    sys.stdout.write(TOPIC.fill(TEXT) + "\n")
    embedder = Embedder.from_pretrained("tiny", template=TOPIC, dtype="float32")
    (vector,) = embedder.encode([TEXT])
    shared = len(embedder.prompt.prefix_C)
    sys.stdout.write(f"{vector.shape[0]} numbers; {shared} ids are shared by all prompts\n")
    # Every command takes the file: prompteol encode --template topic.json ...
    path = Path(tempfile.mkdtemp()) / "topic.json"
    path.write_text(json.dumps(TOPIC.to_json()), encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
