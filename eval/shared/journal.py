"""The journal of a search: a line per score, appended as it comes, so that a kill costs one batch.

The first line holds the work: everything that decides scores. A journal of other work is refused.
Each further line holds the cosines of one candidate over one part of the pairs, bit for bit.
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
from prompteol_jax.storage import json_files, same_work


class Journal:
    """Cosines by candidate and part of the pairs, in a file that is only ever added to.

    A torn last line is taken off.

    Args:
        work: Settings, and digests of weights and data; see `same_work`.
    Raises: UserError for a file that is no journal, for one of other work, naming all that differs,
        and for a damaged line.
    """

    def __init__(self, path: Path, work: Mapping[str, Any]):
        self.path = path
        self._known: dict[tuple[str, int, int], Float64[np.ndarray, " n"]] = {}
        lines = self._whole_lines()
        if lines:
            advice = "Choose another --output, or remove the journal"
            same_work.check_same(path, self._first(lines[0]), work, advice=advice)
            for number, line in enumerate(lines[1:], start=2):
                self._read(number, line)
        else:
            self._append([{"work": same_work.recorded(work)}])
        self.resumed = len(self._known)

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
            found = json_files.parse_object(line, self.path)
        except UserError:
            found = {}
        if not isinstance(found.get("work"), dict):
            raise UserError(f"{self.path} is no journal of a search; choose another --output")
        return found["work"]

    def _read(self, number: int, line: bytes) -> None:
        try:
            entry = json_files.parse_object(line, f"line {number}")
            start, stop = entry["pairs"]
            values = np.frombuffer(base64.b64decode(entry["cosines"], validate=True), "<f8")
            missing = stop - start - len(values)
            self._known[entry["candidate"], start, stop] = values
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.path}:{number}: a damaged line ({error!s:.200}); remove it"
            ) from None
        if missing:
            raise UserError(f"{self.path}:{number}: {len(values)} cosines for {stop - start} pairs")


def _packed(cosines: Float64[np.ndarray, " n"]) -> str:
    return base64.b64encode(cosines.astype("<f8").tobytes()).decode()
