"""What the project says: standard words, plain sentences, no trace of where it was made."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping

import pytest
from source import ROOT, SOURCES, docstrings

pytestmark = pytest.mark.unit

SENTENCE_WORDS = 40
# A word of the first version, and the field's word.
PRIVATE_WORDS = {
    r"\bslabs?\b": "batch",
    r"\brungs?\b": "bucket",
    r"\bladders?\b": "buckets",
    r"\bbeside\b": "with, next to",
    r"\baside\b": "saved",
    r"\bapart\b": "separately",
    r"\bwhatever\b": "any",
    r"\banew\b": "again",
    r"\bset aside\b": "saved for the backward pass",
    r"\bof (?:its|their) own\b": "own",
    r"\bpeculiar\b": "specific",
    r"\blies\b|\blie\b": "is",
    r"\bstands\b": "is",
    r"\bat once\b": "together, immediately",
    r"\btold\b": "given",
}
BRITISH = re.compile(
    r"\w*(?:quantis|normalis|optimis|initialis|recognis|materialis|behaviour|colour)\w*"
)
# Written so that this file does not hold what it looks for.
FORBIDDEN_TEXTS = {
    "a folder of one machine": r"(?<![\w.:/~])/(?:work|root|home|Users|mnt)/\w",
    "the host of a package registry": r"py" + r"pi\.org|python" + r"hosted|index[-_]" + r"url",
    "a task left open": r"\bTO" + r"DO\b|\bFIX" + r"ME\b|\bX" + r"XX\b",
}


def prose(sources: Mapping[str, str]) -> list[tuple[str, int, str]]:
    """Return the docstrings and comments of modules: path, line, text."""
    found = []
    for path, source in sources.items():
        found += [(path, line, text) for line, text in docstrings(source)]
        for number, line in enumerate(source.splitlines(), 1):
            if comment := re.search(r"(?:^|\s)#\s(.*)", line):
                found.append((path, number, comment[1]))
    return found


def private_words(sources: Mapping[str, str]) -> list[str]:
    """Find words for which the field has a standard one."""
    return [
        f"{path}:{line} says {match[0]!r}: say {better}"
        for path, line, text in prose(sources)
        for pattern, better in PRIVATE_WORDS.items()
        for match in re.finditer(pattern, text)
    ]


def british(sources: Mapping[str, str]) -> list[str]:
    """Find British spellings."""
    return [
        f"{path}:{number} spells {match[0]}"
        for path, source in sources.items()
        for number, line in enumerate(source.splitlines(), 1)
        for match in BRITISH.finditer(line)
    ]


def long_sentences(sources: Mapping[str, str]) -> list[str]:
    """Find sentences of docstrings that are too long to follow."""
    problems = []
    for path, source in sources.items():
        for line, text in docstrings(source):
            for paragraph in re.split(r"\n\s*\n|\n\s*(?=[\w*`, ]+:)|\n    |\n(?=prompteol )", text):
                for sentence in re.split(r"(?<=[.;:!?])\s", paragraph):
                    words = len(sentence.split())
                    if words > SENTENCE_WORDS:
                        problems.append(f"{path}:{line} {words} words: {sentence[:60]!r}")
    return problems


def forbidden_texts(texts: Mapping[str, str]) -> list[str]:
    return [
        f"{path}:{number} holds {what}: {line.strip()[:80]}"
        for path, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        for what, pattern in FORBIDDEN_TEXTS.items()
        if re.search(pattern, line)
    ]


def tracked_texts() -> dict[str, str]:
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode:
        pytest.skip("not a git checkout: there is no list of the project's files")
    texts = {}
    for name in filter(None, listing.stdout.split("\0")):
        try:
            texts[name] = (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            continue  # binary, or deleted and not yet committed
    return texts


LAWS = {
    "standard words are used": private_words,
    "spelling is American": british,
    "sentences are short": long_sentences,
}
BREACHES = [
    (private_words, {"a.py": '"""A slab of rows."""'}, "says 'slab': say batch"),
    (private_words, {"a.py": "x = 1  # it lies there"}, "says 'lies': say is"),
    (british, {"a.py": "def quantise(): 1"}, "spells quantise"),
    (long_sentences, {"a.py": f'"""{"word " * 41}."""'}, " words: 'word"),
    (forbidden_texts, {"README.md": "see /ho" + "me/me/data"}, "a folder of one machine"),
    (forbidden_texts, {"Makefile": "pip --index-" + "url x"}, "the host of a package registry"),
    (forbidden_texts, {"a.py": "# TO" + "DO: later"}, "a task left open"),
]


@pytest.mark.parametrize("law", LAWS)
def test_the_source_keeps_the_law(law):
    assert LAWS[law](SOURCES) == []


@pytest.mark.parametrize(("law", "sources", "problem"), BREACHES)
def test_a_breach_is_found(law, sources, problem):
    assert problem in "; ".join(law(sources))


def test_tracked_files_name_no_machine_and_leave_no_task():
    assert forbidden_texts(tracked_texts()) == []
    assert forbidden_texts({"a.md": "https://example.org/home/x, ~/work/x, ./root/x"}) == []
