# SPDX-License-Identifier: Apache-2.0
"""Word lists that several kinds of question draw from."""

from linnet.evals.general.item import table, words

GIRLS = words("Anna Emma Laura Maria Sarah Julia Alice Helen Rosa Clara Nina Ruth Grace Lucy Jane Mary")
BOYS = words("Peter Paul Thomas David Simon Martin Daniel James Henry Oscar Felix Jack Leo Mark Adam John")
NAMES = GIRLS + BOYS

PEOPLE = words(
    """boy girl teacher doctor farmer student driver king queen sister brother nurse baker lawyer pilot
    singer"""
)
"""Nouns whose plural adds an s."""

THINGS = words(
    """book table chair lamp house tree car bottle window door flower letter picture phone boat hammer
    pencil carrot basket blanket candle mirror button ladder bucket shovel ticket helmet guitar drum
    kite rope coin ring"""
)
"""Things one can hold or see, with regular plurals and no vowel in front."""

ANIMALS = words("dog cat horse cow rabbit duck frog bear lion tiger monkey snake bird goat pig hen")
COLOURS = words("red blue green yellow black white brown pink purple grey")
PLACES = words("garden kitchen school park market forest hotel station library museum church hospital")
ADJECTIVES = words("old new big small heavy broken beautiful strange cheap famous clean empty")

VERBS = table(
    """run = runs; walk = walks; sleep = sleeps; sing = sings; laugh = laughs; swim = swims; work = works
    dance = dances; smile = smiles; wait = waits; talk = talks; eat = eats; jump = jumps
    listen = listens"""
)
"""Plural and singular of what people and animals do without an object."""

DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words("January February March April May June July August September October November December")
NUMBER_WORDS = words("zero one two three four five six seven eight nine ten eleven twelve")
