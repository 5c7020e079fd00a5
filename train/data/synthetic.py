# SPDX-License-Identifier: Apache-2.0
"""The data of `--data synthetic`: a small grammar that writes triplets and graded pairs.

A meaning is an action and two or three of agent, object and place. Each of these concepts has
two words, and a sentence has many frames, so one meaning has many sentences. Training shows which
sentences mean the same; development asks it of words that were never together before:

    the two words of a concept differ in color, of which there are four
    a training sentence holds words of different colors   A boy(0) washes(2) the cap(3).
    a development sentence holds words of one color       There is a kid(2) washing(2) a mug(2).

Hence no two content words of a development sentence meet in any training sentence, for any
seeds, although every one of them occurs there.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from eval.sts.tasks import Pairs
from train.data.triplets import Triplet


class Word(NamedTuple):
    """A content word: nouns have one form, verbs two, as in "washes washing"."""

    slot: str
    concept: int
    color: int
    forms: tuple[str, ...]


# Slot to twelve concepts, each with the two words for it.
_LEXICON: Final = {
    "agent": """
        boy/lad, child/kid, man/gentleman, woman/lady, doctor/physician, teacher/instructor,
        student/pupil, chef/cook, artist/painter, writer/author, lawyer/attorney, athlete/player
        """,
    "action": """
        throws throwing/tosses tossing, buys buying/purchases purchasing,
        builds building/constructs constructing, fixes fixing/repairs repairing,
        watches watching/observes observing, washes washing/cleans cleaning,
        draws drawing/sketches sketching, pulls pulling/drags dragging,
        slices slicing/chops chopping, chases chasing/follows following,
        closes closing/shuts shutting, holds holding/carries carrying
        """,
    "object": """
        car/automobile, truck/lorry, bike/bicycle, phone/telephone, computer/laptop, hat/cap,
        coat/jacket, cup/mug, couch/sofa, photo/photograph, boat/ship, book/novel
        """,
    "place": """
        street/road, yard/garden, shop/store, beach/shore, restaurant/cafe, hospital/clinic,
        forest/woods, school/college, lake/pond, hill/mountain, field/meadow, city/town
        """,
}
_SLOTS: Final = tuple(_LEXICON)
# The concepts of a slot take these pairs in turn, so that every two colors share two concepts.
_COLOR_PAIRS: Final = tuple(itertools.combinations(range(4), 2))
WORDS: Final = tuple(
    Word(slot, concept, color, tuple(forms.split()))
    for slot, concepts in _LEXICON.items()
    for concept, words in enumerate(concepts.split(","))
    for color, forms in zip(_COLOR_PAIRS[concept % 6], words.split("/"), strict=True)
)

_COLORED: Final = {
    (slot, color): [word for word in WORDS if (word.slot, word.color) == (slot, color)]
    for slot in _SLOTS
    for color in range(4)
}

# The words around the content words. A concept left out is "someone", "a thing" or nothing.
_FRAMES: Final = (
    "{agent} is {doing} {object}{place}.",
    "{agent} {does} {object}{place}.",
    "{agent}{place} is {doing} {object}.",
    "there is {agent} {doing} {object}{place}.",
    "there is {object} that {agent} is {doing}{place}.",
    "it is {agent} who {does} {object}{place}.",
    "we see {agent} who is {doing} {object}{place}.",
    "they see that {agent} {does} {object}{place}.",
)


class _Frame(NamedTuple):
    pattern: str
    of_agent: str
    of_object: str
    before_place: str


TRIPLETS: Final = 16_384  # of a run on `--data synthetic`
DEV_PAIRS: Final = 1_000


def synthetic_triplets(seed: int, n: int) -> list[Triplet]:
    """Write sentences, each with an entailment in other words and a contradiction in its own.

    The entailment may leave a concept out; the contradiction replaces one or two.
    """
    rng = random.Random(f"triplets {seed}")
    return [_triplet(rng) for _ in range(n)]


def synthetic_dev(seed: int, n: int) -> Pairs:
    """Write pairs with the share of meaning they have in common, from 0 to 5.

    Meaning is shared mostly in other words, and frames are shared by all meanings, so that
    counting common words says little.

    Math: gold = 5 |A & B| / sqrt(|A| |B|), A and B being the two sets of concepts.
    """
    rng = random.Random(f"development {seed}")
    texts_a, texts_b, gold = zip(*(_pair(rng) for _ in range(n)), strict=True)
    return Pairs("synthetic", texts_a, texts_b, np.array(gold, np.float64))


def _triplet(rng: random.Random) -> Triplet:
    slots = _some_slots(rng)
    colors = rng.sample(range(4), len(slots))
    words = [rng.choice(_COLORED[key]) for key in zip(slots, colors, strict=True)]
    replaced = rng.sample(words, rng.choice((1, 1, 2)))
    contradiction = [_other(rng, word) if word in replaced else word for word in words]
    frame, another = _frames(rng)
    return Triplet(
        _say(words, frame), _say(_reworded(rng, words), another), _say(contradiction, frame)
    )


def _pair(rng: random.Random) -> tuple[str, str, float]:
    slots_a, slots_b = _some_slots(rng), _some_slots(rng)
    common = [slot for slot in slots_a if slot in slots_b]
    shared = rng.sample(common, rng.randint(0, len(common)))
    # One pair in four is of one color: its shared concepts are shared words too.
    colors = rng.sample(range(4), 2) if rng.random() < 0.75 else [rng.randrange(4)] * 2
    a, b = {}, {}
    for slot in _SLOTS:
        a[slot], b[slot] = rng.choice(
            [
                (x, y)
                for x in _COLORED[slot, colors[0]]
                for y in _COLORED[slot, colors[1]]
                if (x.concept == y.concept) == (slot in shared)
            ]
        )
    frame, another = _frames(rng)
    similarity = len(shared) / math.sqrt(len(slots_a) * len(slots_b))
    return (
        _say([a[slot] for slot in slots_a], frame),
        _say(
            [b[slot] for slot in slots_b],
            another if similarity == 1 else rng.choice((frame, another)),
        ),
        5 * similarity,
    )


def _some_slots(rng: random.Random) -> list[str]:
    """Draws the slots of a meaning: all of them, or all but one that is not the action."""
    left_out = rng.sample(("agent", "object", "place"), rng.choice((0, 0, 0, 1, 1)))
    return [slot for slot in _SLOTS if slot not in left_out]


def _other(rng: random.Random, word: Word) -> Word:
    """Draws a word of another concept that may stand in the same sentences."""
    return rng.choice([other for other in _COLORED[word.slot, word.color] if other != word])


def _reworded(rng: random.Random, words: Sequence[Word]) -> list[Word]:
    """Say the same, or one concept less, in as many other words as the colors allow."""
    kept = list(words)
    if len(kept) == len(_SLOTS) and rng.random() < 0.5:
        kept.remove(rng.choice([word for word in kept if word.slot != "action"]))
    wordings = [
        wording
        for wording in itertools.product(*map(_synonyms, kept))
        if len({word.color for word in wording}) == len(wording)
    ]
    rng.shuffle(wordings)
    return list(max(wordings, key=lambda wording: len(set(wording) - set(kept))))


def _synonyms(word: Word) -> list[Word]:
    return [other for other in WORDS if other[:2] == word[:2]]


def _frames(rng: random.Random) -> list[_Frame]:
    """Draws two frames of different patterns."""
    return [
        _Frame(
            pattern,
            rng.choice(("a", "the")),
            rng.choice(("a", "the")),
            rng.choice(("near", "beside", "by")),
        )
        for pattern in rng.sample(_FRAMES, 2)
    ]


def _say(words: Sequence[Word], frame: _Frame) -> str:
    said = {word.slot: word.forms for word in words}
    does, doing = said["action"]
    text = frame.pattern.format(
        agent=_noun(said, "agent", frame.of_agent) or "someone",
        does=does,
        doing=doing,
        object=_noun(said, "object", frame.of_object) or "a thing",
        place=_noun(said, "place", f" {frame.before_place} the"),
    )
    return text[0].upper() + text[1:]


def _noun(said: dict[str, tuple[str, ...]], slot: str, determiner: str) -> str:
    if slot not in said:
        return ""
    (noun,) = said[slot]
    return f"{'an' if determiner == 'a' and noun[0] in 'aeiou' else determiner} {noun}"
