"""The journal of a search: a line per score, appended as it comes, so that a kill costs one batch.

The first line holds what decides scores: the settings, which are known before a model is loaded,
and its weights. A journal of another search is refused. Each further line holds the cosines of one
candidate over one part of the pairs, bit for bit.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from prompteol_jax.errors import UserError
from prompteol_jax.storage import same_work


class Journal:
    """Cosines by candidate and part of the pairs, in a file that is only ever added to.

    Raises: UserError for a file that is no journal, for one of other settings (naming all that
        differ), and for a damaged line. A torn last line is taken off.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        self.path = path
        self._known: dict[tuple[str, int, int], Float64[np.ndarray, " n"]] = {}
        self._settings = same_work.recorded(settings)
        self._found = None
        lines = self._whole_lines()
        if lines:
            self._found = self._first(lines[0])
            self._refuse_others(self._found["settings"], self._settings)
            for number, line in enumerate(lines[1:], start=2):
                self._read(number, line)
        self.resumed = len(self._known)

    def agree(self, weights: Mapping[str, Any]) -> None:
        """Note the weights that scores come from, or compare them with those noted before.

        Raises: UserError where the journal is of other weights.
        """
        if self._found is None:
            self._append([{"settings": self._settings, "weights": same_work.recorded(weights)}])
        else:
            self._refuse_others(self._found["weights"], same_work.recorded(weights))

    def find(self, candidate: str, start: int, stop: int) -> Float64[np.ndarray, " n"] | None:
        """Return the cosines of a candidate's pairs from start to stop, if they are known."""
        return self._known.get((candidate, start, stop))

    def add(self, start: int, stop: int, cosines: Mapping[str, Float64[np.ndarray, " n"]]) -> None:
        """Note the cosines of several candidates; they are on disk when this returns."""
        self._append(
            [
                {"candidate": name, "pairs": [start, stop], "cosines": _packed(values)}
                for name, values in cosines.items()
            ]
        )
        self._known |= {(name, start, stop): values for name, values in cosines.items()}

    def _append(self, entries: Sequence[Mapping[str, Any]]) -> None:
        lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        with self.path.open("ab") as file:
            file.write(lines.encode("utf-8", "surrogatepass"))
            file.flush()
            os.fsync(file.fileno())

    def _whole_lines(self) -> list[bytes]:
        """Return the lines of the file, and take off what is behind the last line feed."""
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with self.path.open("rb+") as file:
                file.truncate(whole)
        return content[:whole].split(b"\n")[:-1]

    def _first(self, line: bytes) -> dict[str, Any]:
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict) or set(found) != {"settings", "weights"}:
            raise UserError(f"{self.path} is no journal of a search; choose another --output")
        return found

    def _refuse_others(self, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        advice = "Choose another --output, or remove the journal"
        same_work.check_same(self.path, found, wanted, advice=advice)

    def _read(self, number: int, line: bytes) -> None:
        try:
            entry = json.loads(line)
            start, stop = entry["pairs"]
            values = np.frombuffer(base64.b64decode(entry["cosines"], validate=True), "<f8")
            name = entry["candidate"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path}:{number}: a damaged line ({error}); remove it") from None
        if len(values) != stop - start:
            raise UserError(f"{self.path}:{number}: {len(values)} cosines for {stop - start} pairs")
        self._known[name, start, stop] = values


def _packed(cosines: Float64[np.ndarray, " n"]) -> str:
    return base64.b64encode(cosines.astype("<f8").tobytes()).decode()
