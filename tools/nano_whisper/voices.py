"""The espeak-ng voices: two training sets and the strangers kept for testing."""

_BASES = ("en-us", "en", "en-us", "en", "en-gb-x-rp")  # repeated names are more frequent
_VARIANTS = ("", "+m1", "+m2", "+m3", "+m4", "+m5", "+m6", "+m7", "+f1", "+f2", "+f3", "+f4")

# The first half of the training lines: few voices, so that the model converges quickly.
FEW: tuple[str, ...] = tuple(base + variant for base in _BASES for variant in _VARIANTS)

_NAMED_VARIANTS = """Alex Alicia Andrea Annie Denis Diogo Gene Gene2 Henrique Hugo Jacky Lee Marco
    Mario Michael Mike Mr Nguyen RicishayMax Storm adam anika antonio aunty belinda benjamin boris
    caleb david ed edward grandma gustave iven iven2 iven3 john kaukovalta klatt klatt2 klatt3
    marcelo max michel miguel norbert pablo paul pedro quincy rob robert robosoft robosoft3
    robosoft5 sandro shelby steph steph2 travis victor zac f1 f2 f3 f4 m1 m2 m3 m4 m5 m6
    m7"""
_MANY_BASES = ("en-us", "en", "en-us", "en-gb-x-rp")

# The second half: breadth, so that a voice never heard before is understood.
MANY: tuple[str, ...] = tuple(
    f"{base}+{name}" for name in _NAMED_VARIANTS.split() for base in _MANY_BASES
)

# In no training set.
UNSEEN: tuple[str, ...] = ("en-us+f5", "en-us+m8", "en-us+Andy", "en+linda")
