"""A model's name -> a local folder: one that exists, or one fetched from the Hugging Face hub."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, get_args

from prompteol_jax.errors import NotFound, Unreachable, UserError, listed
from prompteol_jax.storage import paths

Kind = Literal["model", "adapter"]

CONFIG: Final = {"model": "config.json", "adapter": "adapter_config.json"}
WEIGHTS: Final = {"model": ("model", "pytorch_model"), "adapter": ("adapter_model",) * 2}
_NAME: Final = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*")
# What sentence-transformers stores of a pooling or a dense module.
_MODULE_FILE: Final = re.compile(r"[1-9]_[A-Za-z]+/(config\.json|model\.safetensors)")
_SIDE_FILES: Final = (".json", ".txt", ".model")  # configuration and tokenizers


def local_folder(name: str | Path, *, kind: Kind = "model", revision: str | None = None) -> Path:
    """The folder of a model or adapter, downloaded into the hub's cache if `name` is a hub name.

    A download takes configuration, tokenizer and one format of weights, safetensors before `.bin`;
    never code. HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE act as everywhere.

    Args:
        name: a folder, here or in a bucket, `owner/name`, or `owner/name@revision`.
        revision: a branch, tag or commit, for hub names only.
    Raises: NotFound where there is no such folder, repository, revision or readable
        file; PermissionError where access is denied; Unreachable where the hub does not answer;
        UserError where `name` and `revision` contradict each other.
    """
    name = str(name)
    folder = _expanded(paths.local_copy(name, depth=1))
    if name and folder.is_dir():
        if revision is not None:
            raise UserError(f"revision {revision!r} was given, but {name} is a local folder.")
        return _checked(folder, kind)
    repo, _, inline = name.partition("@")
    if name and folder.exists():
        raise UserError(f"{name} is a file; give the folder that holds {CONFIG[kind]}.")
    if not _NAME.fullmatch(repo) or (inline == "" and "@" in name):
        raise NotFound(
            f"{name!r} is neither an existing folder nor a hub name. Give a folder that holds "
            f"{CONFIG[kind]}, or owner/name such as facebook/opt-2.7b, or owner/name@revision."
        )
    if inline and revision not in (None, inline):
        raise UserError(f"{name!r} names revision {inline!r}, but {revision!r} was given too.")
    return _downloaded(repo, inline or revision, kind)


def dataset_file(repo: str, file: str) -> Path:
    """One file of a dataset on the hub, downloaded into the hub's cache.

    Raises: NotFound where there is no such dataset or file; PermissionError where access
        is denied; Unreachable where the hub does not answer.
    """
    from huggingface_hub import constants, errors, hf_hub_download

    try:
        return Path(hf_hub_download(repo, file, repo_type="dataset"))
    except errors.EntryNotFoundError as error:
        raise NotFound(f"{constants.ENDPOINT} has no file {file} in dataset {repo}") from error
    except (errors.HTTPError, OSError, RuntimeError) as error:
        raise _explained(error, f"datasets/{repo}", None, constants.ENDPOINT) from error


def config_folder(name: str | Path) -> Path:
    """The folder of a model, of which a download takes `config.json` alone.

    Raises: as `local_folder`.
    """
    name = str(name)
    if _expanded(Path(name)).is_dir() or not _NAME.fullmatch(name.partition("@")[0]):
        return local_folder(name)
    from huggingface_hub import constants, snapshot_download

    repo, _, revision = name.partition("@")
    if constants.HF_HUB_OFFLINE:
        return _downloaded(repo, revision or None, "model")
    try:
        found = snapshot_download(repo, revision=revision or None, allow_patterns=["config.json"])
    except (OSError, RuntimeError) as error:
        raise _explained(error, repo, revision or None, constants.ENDPOINT) from error
    return _checked(Path(found), "model")


def weights_revision(folder: Path) -> str | None:
    """The commit of a folder in the hub's cache; None for any other folder."""
    snapshot = folder.parent.name == "snapshots" and folder.parent.parent.name.startswith(
        "models--"
    )
    return folder.name if snapshot and re.fullmatch("[0-9a-f]{40}", folder.name) else None


def _expanded(path: Path) -> Path:
    """A path with `~` and `~user` replaced by the home folder.

    Raises: NotFound where there is no such user.
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise NotFound(f"{path}: no home folder is known for {path.parts[0]}") from error


def _checked(folder: Path, kind: Kind) -> Path:
    if (folder / CONFIG[kind]).is_file():
        return folder
    held = sorted(path.name for path in folder.iterdir())
    others = [other for other in get_args(Kind) if (folder / CONFIG[other]).is_file()]
    advice = f" It looks like a folder of kind {others[0]}." if others else ""
    raise NotFound(
        f"{folder} holds no {CONFIG[kind]}, so it is no {kind} folder.{advice} "
        f"Found: {listed(held)}."
    )


def _downloaded(repo: str, revision: str | None, kind: Kind) -> Path:
    from huggingface_hub import HfApi, constants, errors, snapshot_download

    if constants.HF_HUB_OFFLINE:
        try:
            # Without a pattern, files that were never wanted would count as missing.
            cached = snapshot_download(
                repo, revision=revision, allow_patterns=[CONFIG[kind]], local_files_only=True
            )
        except errors.LocalEntryNotFoundError as error:
            raise NotFound(
                f"no folder {repo} exists, and HF_HUB_OFFLINE is set while the hub's cache "
                f"({constants.HF_HUB_CACHE}) does not hold {_at(repo, revision)}. Unset it to "
                "download, or give a folder."
            ) from error
        return _checked(Path(cached), kind)
    failures = (errors.HTTPError, OSError, RuntimeError)
    try:
        info = HfApi().model_info(repo, revision=revision)
    except failures as error:
        raise _explained(error, repo, revision, constants.ENDPOINT) from error
    wanted = _wanted(repo, [sibling.rfilename for sibling in info.siblings or ()], kind)
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except failures as error:
        raise _explained(error, repo, revision, constants.ENDPOINT) from error


def _wanted(repo: str, files: Sequence[str], kind: Kind) -> list[str]:
    """The files to fetch, named without wildcards: of the root, and of sentence-transformers."""
    first, second = WEIGHTS[kind]
    weights: list[str] = []
    for stem, suffix in ((first, "safetensors"), (second, "bin")):
        index = f"{stem}.{suffix}.index.json"
        if f"{stem}.{suffix}" in files:
            weights = [f"{stem}.{suffix}"]
        elif index in files:
            shard = re.compile(rf"{stem}-\d+-of-\d+\.{suffix}")
            weights = [index, *(file for file in files if shard.fullmatch(file))]
        if weights:
            break
    missing = [] if CONFIG[kind] in files else [CONFIG[kind]]
    missing += [] if weights else [f"{first}.safetensors or {second}.bin"]
    if missing:
        raise NotFound(
            f"the hub repository {repo} lacks {' and '.join(missing)}, which this project reads. "
            f"It holds: {listed(sorted(files))}."
        )
    side = [
        file
        for file in files
        if file.endswith(_SIDE_FILES) and "/" not in file and not file.endswith(".index.json")
    ]
    return side + weights + [file for file in files if _MODULE_FILE.fullmatch(file)]


def _at(repo: str, revision: str | None) -> str:
    return repo if revision is None else f"{repo}@{revision}"


def _explained(error: Any, repo: str, revision: str | None, endpoint: str) -> OSError:
    from huggingface_hub import errors

    place = _at(repo, revision)
    status = getattr(getattr(error, "response", None), "status_code", None)
    signed = "the HF_TOKEN in use" if os.environ.get("HF_TOKEN") else "no HF_TOKEN"
    if isinstance(error, errors.GatedRepoError) or status in (401, 403):
        return PermissionError(
            f"{endpoint} refuses access to {place} with {signed}: it is gated, private, or does "
            "not exist. Accept its terms on its page, set HF_TOKEN to a token that may read it, or "
            "give a local folder."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return NotFound(f"{endpoint} has {repo}, but no revision {revision!r} of it.")
    if isinstance(error, errors.RepositoryNotFoundError):
        return NotFound(
            f"no folder {repo} exists, and {endpoint} has no repository of this name. Check the "
            "spelling; for a private one set HF_TOKEN."
        )
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return Unreachable(
        f"{place} could not be fetched from {endpoint}: {reason} Give a local folder, or set "
        "HF_HUB_OFFLINE=1 to use what the cache holds. A download that broke off continues when "
        "it is started again."
    )
