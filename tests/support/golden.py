"""What this code computes, written down, so that a change of structure is held to the same numbers.

    python tests/support/golden.py write FILE.npz      # real data: PROMPTEOL_DATA
    python tests/support/golden.py compare FILE.npz FILE.npz

Only public commands and names are used, so one copy of this script serves any two versions: run it
with the version's folder first on PYTHONPATH.

vectors   of 200 sentences of STS-B, four models, in float32, bfloat16 and nf4
sts       the seven STS scores of tinystories-656k
demo      the adapter behind five steps of the demo, on 4x2
losses    ten LoRA steps of two models on real triplets, on 4x2

golden.npz was written by the first version with AVX-512. On an AVX2 processor the first version
itself differs from it by 1.25e-6 in two tensors of the adapter: AdamW divides a gradient by its
own size, so rounding of small gradients is visible. There this code differs by 2.0e-6 in three
tensors, and rounds the score of STS16 to 39.87, not 39.88. To compare two states of the code
strictly, write a file with each of them on one machine.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

SUPPORT = Path(__file__).resolve().parent
MODELS = ("opt-tiny", "opt-350m-tiny", "llama-gqa-tiny", "tinystories-656k")
KINDS = {
    "float32": dict(dtype="float32"),
    "bfloat16": dict(dtype="bfloat16"),
    "nf4": dict(dtype="float32", quantize="nf4"),
}
TOLERANCE = 1e-6
BFLOAT16 = 2.0**-7  # of bfloat16's vectors where another processor rounds otherwise


def oracle() -> Any:
    """Import the module of the same folder, or of the one above, by its file."""
    file = next(p for p in (SUPPORT / "oracle.py", SUPPORT.parent / "oracle.py") if p.is_file())
    spec = importlib.util.spec_from_file_location("oracle", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["oracle"] = module
    spec.loader.exec_module(module)
    return module


def checkpoint(name: str, data: Path, folder: Path) -> Path:
    """Return the folder of a model, written with a fixed seed unless the data holds it."""
    if name == "tinystories-656k":
        return data / "weights" / name
    torch_side = oracle()
    tokenizer = data / "weights" / f"{name.split('-', maxsplit=1)[0]}-tokenizer"
    return torch_side.write(torch_side.build(name), folder / name, tokenizer)


def vectors(folders: dict[str, Path], data: Path) -> dict[str, np.ndarray]:
    """Encode the sentences with every model in every precision."""
    from prompteol_jax import Embedder

    texts = oracle().sentences(data, 200)
    return {
        f"vectors/{name}/{kind}": Embedder.from_pretrained(str(folder), **how).encode(texts)
        for name, folder in folders.items()
        for kind, how in KINDS.items()
    }


def run(*words: str) -> None:
    """Run a command of the project in a process of its own."""
    subprocess.run([sys.executable, "-m", *words], check=True, stdout=sys.stderr)


def sts(folders: dict[str, Path], data: Path, scratch: Path) -> dict[str, np.ndarray]:
    """Score a real model on the seven tasks."""
    file = scratch / "sts.json"
    model = str(folders["tinystories-656k"])
    run("eval.sts", "--model", model, "--data", str(data / "senteval"), "--json", str(file))
    scores = json.loads(file.read_text(encoding="utf-8"))["scores"]
    return {"sts": np.array([scores[name] for name in sorted(scores)])}


def losses(run_folder: Path) -> np.ndarray:
    """Read the losses of a run, step by step."""
    lines = (run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return np.array([json.loads(line)["loss"] for line in lines])


def training(folders: dict[str, Path], data: Path, scratch: Path) -> dict[str, np.ndarray]:
    """Train the demo for five steps and two models for ten, on 4x2."""
    from safetensors.numpy import load_file

    common = ["train.contrastive", "--mesh", "4x2"]
    demo = scratch / "demo"
    run(*common, "--steps", "5", "--output", str(demo))
    found = {
        f"demo/{k}": v for k, v in load_file(demo / "adapter/adapter_model.safetensors").items()
    }
    found["demo/losses"] = losses(demo)
    triplets = str(data / "nli" / "nli_triplets.csv")
    for name in ("opt-tiny", "llama-gqa-tiny"):
        folder = scratch / f"run-{name}"
        flags = ["--model", str(folders[name]), "--data", triplets, "--batch", "64"]
        flags += ["--base-dropout", "0"] if name.startswith("opt") else []
        run(*common, *flags, "--steps", "10", "--output", str(folder))
        found[f"losses/{name}"] = losses(folder)
    return found


def write(file: Path) -> None:
    """Compute everything and write it to a file."""
    data = Path(os.environ["PROMPTEOL_DATA"])
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        folders = {name: checkpoint(name, data, scratch) for name in MODELS}
        found = {
            **vectors(folders, data),
            **sts(folders, data, scratch),
            **training(folders, data, scratch),
        }
    np.savez_compressed(file, **found)


def compare(one: Path, other: Path) -> int:
    """Print every entry that differs; return the number of those beyond the tolerance."""
    a, b = np.load(one), np.load(other)
    beyond = 0
    for name in sorted(set(a.files) | set(b.files)):
        if name not in a.files or name not in b.files or a[name].shape != b[name].shape:
            print(f"{name}: only in one file, or of another shape")
            beyond += 1
        elif a[name].tobytes() != b[name].tobytes():
            largest = float(np.abs(a[name].astype(np.float64) - b[name]).max())
            scale = float(np.abs(a[name]).max())
            tolerance = BFLOAT16 if name.endswith("bfloat16") else TOLERANCE
            fine = largest <= tolerance * max(1.0, scale)
            print(f"{name}: differs by {largest:.2e} of {scale:.2e}{'' if fine else '  BEYOND'}")
            beyond += not fine
    print(f"{len(a.files)} entries, {beyond} beyond {TOLERANCE}")
    return beyond


if __name__ == "__main__":
    command, *files = sys.argv[1:]
    if command == "write":
        write(Path(files[0]))
    else:
        sys.exit(1 if compare(*map(Path, files)) else 0)
