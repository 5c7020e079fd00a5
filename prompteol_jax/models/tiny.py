"""The model `tiny`: a random OPT and a byte-level BPE over everyday English, built in code.

Every word of WORDS is one token where a space precedes it, every word of OPENINGS is one without a
space. Any other text falls back to the longest known beginning and then to single bytes, so that
nothing is unknown. The merges are chains, ` ` + `m`, ` m` + `a`, ` ma` + `n`: they grow from the
left, hence no merge of one word can break another.
"""

from __future__ import annotations

from typing import Final

import tokenizers

from prompteol_jax.models.opt import OptConfig
from prompteol_jax.text.tokenizer import Tokenizer

_OPENINGS = """
This A An The Some Two Three One There It He She They We You His Her Their Our My Many Several Every
Each No Nobody Someone People In On At Near Outside Inside While After
"""

_WORDS = """
this sentence means in one word a an the some two three four many several every each no another
these those and or but while because so that which who when where if then than as not never nobody
nothing someone there it he she they we you his her their our my its is are was were be been being
has have had do does did will would can could may must on at near by with without from to of for
into onto over under behind beside between through across along around above below outside inside
during after before about up down off out

man woman boy girl child kid lad person people adult teenager baby toddler infant gentleman lady guy
friend neighbor mother father parent brother sister family couple crowd group team doctor physician
nurse teacher instructor student pupil chef cook musician singer dancer artist painter writer author
farmer driver pilot soldier officer worker player athlete swimmer runner scientist lawyer attorney
clerk men women boys girls children kids

animal pet dog puppy hound cat kitten horse pony bird parrot duck fish cow sheep goat pig rabbit
monkey elephant tiger lion bear mouse fox wolf dogs cats birds horses

place kitchen park garden yard street road avenue beach shore seaside house home cottage building
school college classroom office shop store market restaurant cafe hospital clinic church station
airport farm field meadow forest woods mountain hill river stream lake pond sea ocean city town
village bridge room bedroom library museum theater stage stadium gym pool porch roof garage

thing object tool instrument guitar piano violin flute drum trumpet music song tune melody book
novel newspaper magazine letter story picture photo photograph painting movie film game ball
football toy doll kite car automobile truck lorry bus van train boat ship bike bicycle motorcycle
plane airplane vehicle chair table desk sofa couch bed door window box bag basket cup mug glass
bottle plate bowl knife spoon hat cap coat jacket shirt dress shoes phone telephone computer laptop
camera lamp clock rope ladder hammer stone rock tree flower rose leaf grass sand snow rain sun moon
sky fire food meal dinner lunch breakfast snack fruit apple orange banana vegetable carrot potato
onion tomato bread cake pie cheese meat egg rice soup water milk juice tea coffee drink

run runs running jog jogs jogging walk walks walking stroll strolls strolling eat eats eating devour
devours devouring sleep sleeps sleeping nap naps napping rest rests resting play plays playing read
reads reading study studies studying cooks cooking bake bakes baking sing sings singing hum hums
humming swim swims swimming float floats floating drive drives driving ride rides riding jump jumps
jumping leap leaps leaping hop hops hopping sit sits sitting stand stands standing lie lies lying
dance dances dancing drinks drinking sip sips sipping write writes writing draw draws drawing sketch
sketches sketching paint paints cut cuts cutting slice slices slicing chop chops chopping peel peels
peeling carry carries carrying hold holds holding throw throws throwing toss tosses tossing catch
catches catching kick kicks kicking push pushes pushing pull pulls pulling drag drags dragging open
opens opening close closes closing shut shuts shutting wash washes washing clean cleans cleaning
scrub scrubs scrubbing buy buys buying purchase purchases purchasing sell sells selling make makes
making build builds construct constructs constructing fix fixes fixing repair repairs repairing
watch watches watching look looks looking see sees seeing observe observes observing talk talks
talking speak speaks speaking chat chats chatting listen listens listening laugh laughs laughing
smile smiles smiling cry cries crying weep weeps weeping shout shouts shouting yell yells yelling
climb climbs climbing fall falls falling chase chases chasing follow follows following feed feeds
feeding hug hugs hugging work works working wait waits waiting travel travels traveling fly flies
flying teach teaches teaching learn learns learning help helps helping assist assists assisting
start starts starting begin begins beginning stop stops stopping finish finishes finishing lose
loses losing win wins winning take takes taking give gives giving use uses using

big large huge small little tiny tall short long young old elderly new ancient modern happy glad
cheerful sad unhappy angry mad calm quiet silent loud noisy fast quick rapid slow hot warm cold
chilly wet dry dirty messy empty full heavy light dark bright red blue green yellow black white
brown grey pink purple pretty beautiful ugly clever smart foolish rich wealthy poor strong weak
hungry tired sleepy awake alone busy famous brave wooden round sweet hard soft easy difficult good
great bad nice fresh

quickly swiftly slowly quietly silently loudly happily sadly gladly carefully outdoors indoors
together today yesterday tomorrow now soon again always often rarely very too well here
"""

OPENINGS: Final = tuple(_OPENINGS.split())
WORDS: Final = tuple(_WORDS.split())
# Rows of the tiny model's embedding: 2424 symbols, padded to 19 x 128.
VOCABULARY_SIZE: Final = 2432
BOS: Final = "</s>"  # id 2, as in OPT
NAME: Final = "tiny"
SEED: Final = 0
CONFIG: Final = OptConfig(L=2, D=128, N=4, F=256, V=VOCABULARY_SIZE, P=512, E=128, dropout=0.0)
_SPECIAL: Final = ("<s>", "<pad>", BOS, "<unk>")
_SPACE: Final = "\u0120"  # byte 0x20 in the byte-level alphabet


def tiny_tokenizer() -> Tokenizer:
    """Build the tokenizer; the same ids on every machine and in every process."""
    return Tokenizer(_byte_level_bpe(), bos_id=_SPECIAL.index(BOS))


def _byte_level_bpe() -> tokenizers.Tokenizer:
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = _merges()
    symbols = [*_SPECIAL, *alphabet, *("".join(pair) for pair in merges)]
    vocabulary = {symbol: position for position, symbol in enumerate(symbols)}
    built = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
    built.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = tokenizers.decoders.ByteLevel()
    # The four special symbols stay plain entries: no text, not even "</s>", can spell one of them.
    built.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return built


def _merges() -> list[tuple[str, str]]:
    """The chains of all words, each merge once: a word's own beginnings come before it."""
    whole = [_SPACE + word for word in WORDS] + [_SPACE + mark for mark in ':"'] + list(OPENINGS)
    chains = ((word[:end], word[end]) for word in whole for end in range(1, len(word)))
    return list(dict.fromkeys(chains))
