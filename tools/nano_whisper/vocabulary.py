"""The words the model knows and the grammar that strings them into lines."""

import random


def _split(words: str) -> tuple[str, ...]:
    """Words with white space between them."""
    return tuple(words.split())


DETERMINERS = _split("the a my your our this every no")
ADJECTIVES = _split("""
    golden silver little broken silent gentle lonely happy bright cold warm old young wild
    sweet dark blue green red quiet empty heavy hidden endless""")
NOUNS = _split("""
    river mountain window garden morning evening winter summer shadow candle fire water ocean
    sky moon stars sun rain snow wind road home heart hand eyes dreams song voice mother father
    brother sister baby child friend lover soldier sailor captain kingdom city village train ship
    bird horse flower apple honey bread table door bridge island forest tree leaf stone thunder
    angel diamond music radio guitar midnight paradise yesterday tomorrow money paper letter story
    tower bell mirror circle rainbow sugar coffee butterfly""")
PARTICIPLES = _split("""
    walking running singing falling shining burning waiting dreaming calling flying sleeping
    dancing crying laughing turning""")
VERBS = _split("""
    love need hold remember follow believe open carry find take give hear see know tell wish
    wonder whisper""")
ADVERBS = _split("again forever always never together slowly tonight away only maybe")
PREPOSITIONS = _split("""
    in on over under through across between beside behind after before with without from
    to""")
SUBJECTS = _split("I you we they she he")
OBJECTS = _split("me us it you")
AUXILIARIES = _split("will can do not is are was")
OPENERS = _split("and but when where because if so")
CALLS = _split("oh hey yeah hello goodbye")
NUMBERS = _split("one three seven hundred thousand")
IMPERATIVES = _split("let come go")
BE_FOR = {"I": "was", "you": "are", "we": "are", "they": "are", "she": "is", "he": "is"}

WORDS: tuple[str, ...] = tuple(
    sorted(
        {
            *DETERMINERS, *ADJECTIVES, *NOUNS, *PARTICIPLES, *VERBS, *ADVERBS, *PREPOSITIONS,
            *SUBJECTS, *OBJECTS, *AUXILIARIES, *OPENERS, *CALLS, *NUMBERS, *IMPERATIVES,
        }
    )
)  # fmt: skip

# Lines without grammar keep the decoder listening instead of guessing from the words before.
RANDOM_LINE_SHARE = 0.35
# Lines of one or two words, as in choruses.
SHORT_LINE_SHARE = 0.07

# A pattern is a row of slots; a slot is a tuple of words to choose from or "noun phrase".
NOUN_PHRASE = "noun phrase"
MODALS = ("will", "can")
PATTERNS: tuple[tuple[tuple[str, ...] | str, ...], ...] = (
    (NOUN_PHRASE, ("is", "was"), PARTICIPLES, PREPOSITIONS, NOUN_PHRASE),
    (SUBJECTS, MODALS, VERBS, NOUN_PHRASE, ADVERBS),
    (OPENERS, SUBJECTS, VERBS, NOUN_PHRASE),
    (CALLS, NOUN_PHRASE, ADVERBS),
    (("let",), ("me", "us", "it"), VERBS, NOUN_PHRASE, PREPOSITIONS, NOUN_PHRASE),
    (("come", "go"), PREPOSITIONS, NOUN_PHRASE, ("and",), VERBS, OBJECTS),
    (NUMBERS, ADJECTIVES, NOUNS, PARTICIPLES, ADVERBS),
    (ADJECTIVES, NOUNS, ADJECTIVES, NOUNS),
    (("do",), ("not",), VERBS, NOUN_PHRASE, PREPOSITIONS, NOUN_PHRASE),
)


def noun_phrase(rng: random.Random) -> list[str]:
    """Determiner, in half the cases an adjective, noun."""
    adjective = [rng.choice(ADJECTIVES)] if rng.random() < 0.5 else []
    return [rng.choice(DETERMINERS), *adjective, rng.choice(NOUNS)]


def fill_pattern(pattern: tuple[tuple[str, ...] | str, ...], rng: random.Random) -> list[str]:
    """One word per slot, several for a noun phrase."""
    words: list[str] = []
    for slot in pattern:
        words += noun_phrase(rng) if isinstance(slot, str) else [rng.choice(slot)]
    return words


def being_line(rng: random.Random) -> list[str]:
    """'she is falling under the bridge': the form of 'be' agrees with the subject."""
    subject = rng.choice(SUBJECTS)
    middle = [rng.choice(PARTICIPLES), rng.choice(PREPOSITIONS)]
    return [subject, BE_FOR[subject], *middle, *noun_phrase(rng)]


def promise_line(rng: random.Random) -> list[str]:
    """'we will not follow you' or, with an adverb, 'we will always follow you'."""
    manner = "not" if rng.random() < 0.3 else rng.choice(ADVERBS)
    ends = [rng.choice(VERBS), rng.choice(OBJECTS)]
    return [rng.choice(SUBJECTS), rng.choice(MODALS), manner, *ends]


def line_of_words(rng: random.Random) -> list[str]:
    """One line of 1 to about 9 words, all of them from WORDS."""
    share = rng.random()
    if share < RANDOM_LINE_SHARE:
        return [rng.choice(WORDS) for _ in range(rng.randint(3, 8))]
    if share < RANDOM_LINE_SHARE + SHORT_LINE_SHARE:
        return [rng.choice(WORDS) for _ in range(rng.randint(1, 2))]
    kind = rng.randrange(len(PATTERNS) + 2)
    if kind == len(PATTERNS):
        return being_line(rng)
    if kind > len(PATTERNS):
        return promise_line(rng)
    return fill_pattern(PATTERNS[kind], rng)
