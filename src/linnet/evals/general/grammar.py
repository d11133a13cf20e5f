# SPDX-License-Identifier: Apache-2.0
"""Grammar: two sentences that differ in one place; the one that is English must be the likelier (as in BLiMP)."""

from random import Random

from linnet.evals.general.item import Item, Maker, a, table, words
from linnet.evals.general.words import ADJECTIVES, ANIMALS, BOYS, GIRLS, NAMES, PEOPLE, PLACES, THINGS, VERBS

PAST = table(
    """went home = goed home; ate the bread = eated the bread; saw the sea = seed the sea
    came late = comed late; bought a hat = buyed a hat; caught the ball = catched the ball
    took the bus = taked the bus; broke the cup = breaked the cup; wrote a letter = writed a letter
    found a coin = finded a coin; knew the answer = knowed the answer; sang a song = singed a song
    swam across = swimmed across; drank the milk = drinked the milk; told a story = telled a story
    left early = leaved early; thought about it = thinked about it; fell down = falled down
    ran away = runned away; slept well = sleeped well"""
)
PARTICIPLES = table(
    """written a letter = wrote a letter; eaten the cake = ate the cake; seen the film = saw the film
    taken the train = took the train; broken the window = broke the window; spoken to us = spoke to us
    drunk the water = drank the water; begun the work = began the work; chosen a name = chose a name
    forgotten the keys = forgot the keys; gone to town = went to town; driven home = drove home
    given it away = gave it away; known her = knew her; sung the song = sang the song
    swum here = swam here; worn the coat = wore the coat; stolen the car = stole the car
    flown to Rome = flew to Rome; done it = did it"""
)
WOMEN = words("girl woman queen mother sister aunt daughter grandmother princess")
MEN = words("boy man king father brother uncle son grandfather prince")
MASS = words("water milk money rice bread sand sugar coffee music snow")
COMPARED = table(
    "taller = tall; older = old; bigger = big; faster = fast; cheaper = cheap; smaller = small; longer = long"
)
VOWELS = words("apple orange egg umbrella onion island elephant engine actor envelope uncle axe")
DOINGS = table(
    """visit = visited; help = helped; call = called; paint the door = painted the door
    cook dinner = cooked dinner; clean the room = cleaned the room; open the shop = opened the shop
    wash the car = washed the car"""
)


def _pair(right: str, wrong: str, level: int) -> Item:
    return Item("", right, (wrong,), level)


def _subject(random: Random) -> tuple[str, str, str, bool]:
    """(noun as it stands, right verb, wrong verb, plural)."""
    noun = random.choice(PEOPLE + ANIMALS)
    plural, singular = random.choice(VERBS)
    many = random.random() < 0.5
    return (noun + "s", plural, singular, True) if many else (noun, singular, plural, False)


def _number(noun: str, many: bool) -> str:
    return noun + "s" if many else noun


def agreement(random: Random) -> Item:
    """The dog sleeps in the garden."""
    noun, right, wrong, _ = _subject(random)
    rest = f"in the {random.choice(PLACES)}"
    return _pair(f"The {noun} {right} {rest}.", f"The {noun} {wrong} {rest}.", 1)


def agreement_across_one(random: Random) -> Item:
    """The dog near the trees sleeps: a noun of the other number stands between."""
    noun, right, wrong, many = _subject(random)
    between = f"{random.choice(('near', 'behind', 'with', 'next to'))} the {_number(random.choice(THINGS), not many)}"
    rest = random.choice(("every day", "all the time", "quietly", "a lot", "in the evening"))
    return _pair(f"The {noun} {between} {right} {rest}.", f"The {noun} {between} {wrong} {rest}.", 2)


def agreement_across_two(random: Random) -> Item:
    """The dog that the boys near the houses like sleeps: two such nouns and a clause of its own."""
    noun, right, wrong, many = _subject(random)
    person = random.choice([person for person in PEOPLE if person != noun.removesuffix("s")])
    verb = random.choice(("know", "like", "follow", "watch"))
    inner = f"that the {_number(person, not many)} near the {_number(random.choice(THINGS), not many)}"
    inner += f" {verb}" if not many else f" {verb}es" if verb == "watch" else f" {verb}s"
    return _pair(f"The {noun} {inner} {right}.", f"The {noun} {inner} {wrong}.", 3)


def reflexive(random: Random) -> Item:
    """The girl saw herself in the mirror."""
    women = random.random() < 0.5
    who = random.choice(WOMEN if women else MEN)
    verb = random.choice(("saw {} in the mirror", "hurt {}", "bought {} a coat", "looked at {}", "talked about {}"))
    right, wrong = ("herself", "himself") if women else ("himself", "herself")
    return _pair(f"The {who} {verb.format(right)}.", f"The {who} {verb.format(wrong)}.", 1)


def reflexive_across(random: Random) -> Item:
    """The girl who met the boys saw herself."""
    women = random.random() < 0.5
    who = random.choice(WOMEN if women else MEN)
    met = random.choice(("met", "knew", "helped", "liked", "called"))
    verb = random.choice(("saw {}", "hurt {}", "blamed {}", "looked at {}", "talked about {}"))
    start = f"The {who} who {met} the {random.choice([p for p in PEOPLE if p not in WOMEN + MEN])}s"
    right = "herself" if women else "himself"
    return _pair(f"{start} {verb.format(right)}.", f"{start} {verb.format('themselves')}.", 3)


def determiner(random: Random) -> Item:
    """Anna bought these books. With an adjective between, harder."""
    many = random.random() < 0.5
    right, wrong = random.choice((("these", "this"), ("those", "that")))
    if not many:
        right, wrong = wrong, right
    hard = random.random() < 0.5
    noun = (f"{random.choice(ADJECTIVES)} " if hard else "") + _number(random.choice(THINGS), many)
    start = f"{random.choice(NAMES)} {random.choice(('bought', 'saw', 'wanted', 'found', 'liked'))}"
    return _pair(f"{start} {right} {noun}.", f"{start} {wrong} {noun}.", 2 if hard else 1)


def irregular_past(random: Random) -> Item:
    """Yesterday Peter went home."""
    right, wrong = random.choice(PAST)
    start = f"{random.choice(('Yesterday', 'Last week', 'Last night'))} {random.choice(NAMES)}"
    return _pair(f"{start} {right}.", f"{start} {wrong}.", 1)


def participle(random: Random) -> Item:
    """Peter has written a letter."""
    right, wrong = random.choice(PARTICIPLES)
    start = f"{random.choice(NAMES)} {random.choice(('has', 'had', 'has never', 'has already'))}"
    return _pair(f"{start} {right}.", f"{start} {wrong}.", 2)


def negative_polarity(random: Random) -> Item:
    """No student has ever been there; "some student" could not have."""
    noun, tail = random.choice(PEOPLE), random.choice(("been there", "seen the sea", "tried it", "won", "asked why"))
    other = random.choice(("Every", "Some", "This", "One"))
    return _pair(f"No {noun} has ever {tail}.", f"{other} {noun} has ever {tail}.", 2)


def negative_polarity_in_place(random: Random) -> Item:
    """The "no" must govern the "ever"; inside a relative clause it does not."""
    noun, other = random.sample(PEOPLE, 2)
    verb = random.choice(("likes", "knows", "trusts", "helped", "met"))
    tail = random.choice(("been there", "seen the sea", "tried it", "won", "asked why"))
    return _pair(
        f"No {noun} that the {other} {verb} has ever {tail}.", f"The {noun} that no {other} {verb} has ever {tail}.", 3
    )


def pronoun_case(random: Random) -> Item:
    """Anna gave the book to him; he gave it to her."""
    right, wrong = random.choice((("him", "he"), ("her", "she"), ("them", "they"), ("us", "we"), ("me", "I")))
    name, thing = random.choice(NAMES), random.choice(THINGS)
    if random.random() < 0.5:
        start = f"{name} {random.choice(('gave', 'sent', 'sold', 'showed'))} the {thing} to"
        return _pair(f"{start} {right}.", f"{start} {wrong}.", 1)
    start = f"{name} sat between the {random.choice(PEOPLE)} and"
    return _pair(f"{start} {right}.", f"{start} {wrong}.", 2)


def article(random: Random) -> Item:
    """Anna saw an apple; Anna saw a table."""
    noun = random.choice(VOWELS if random.random() < 0.5 else THINGS)
    right = a(noun)
    wrong = f"{'a' if right.startswith('an ') else 'an'} {noun}"
    start = f"{random.choice(NAMES)} {random.choice(('bought', 'saw', 'wanted', 'found', 'drew'))}"
    return _pair(f"{start} {right}.", f"{start} {wrong}.", 1)


def comparative(random: Random) -> Item:
    """The dog is taller than the cat, not "more tall"."""
    right, base = random.choice(COMPARED)
    one, other = random.sample(ANIMALS, 2)
    wrong = random.choice((f"more {base}", f"more {right}"))
    return _pair(f"The {one} is {right} than the {other}.", f"The {one} is {wrong} than the {other}.", 1)


def question_order(random: Random) -> Item:
    """What did Anna buy? I know what Anna bought."""
    name, place = random.choice(NAMES), random.choice(PLACES)
    past, base = random.choice((("saw", "see"), ("bought", "buy"), ("found", "find"), ("ate", "eat"), ("drew", "draw")))
    if random.random() < 0.5:
        return _pair(f"What did {name} {base} in the {place}?", f"What {name} did {base} in the {place}?", 1)
    start = random.choice(("I know", "Tell me", "We forgot", "Nobody knows"))
    return _pair(f"{start} what {name} {past} in the {place}.", f"{start} what did {name} {base} in the {place}.", 2)


def quantifier(random: Random) -> Item:
    """How much water, how many books."""
    mass = random.random() < 0.5
    noun = random.choice(MASS) if mass else random.choice(THINGS) + "s"
    right, wrong = ("much", "many") if mass else ("many", "much")
    start = random.choice(("There is not" if mass else "There are not", f"{random.choice(NAMES)} does not have"))
    return _pair(f"{start} {right} {noun}.", f"{start} {wrong} {noun}.", 2)


def modal(random: Random) -> Item:
    """She can swim."""
    base, singular = random.choice(VERBS)
    word = random.choice(("can", "must", "will", "should"))
    tail = f"in the {random.choice(PLACES)}"
    name = random.choice(NAMES)
    return _pair(f"{name} {word} {base} {tail}.", f"{name} {word} {singular} {tail}.", 1)


def existence(random: Random) -> Item:
    """There are three lamps in the kitchen; the noun comes after the verb."""
    many = random.random() < 0.5
    place, noun = random.choice(PLACES), random.choice(THINGS)
    what = f"{random.choice(('two', 'three', 'many', 'several'))} {noun}s" if many else f"only one {noun}"
    right, wrong = ("are", "is") if many else ("is", "are")
    return _pair(f"There {right} {what} in the {place}.", f"There {wrong} {what} in the {place}.", 2)


def tense(random: Random) -> Item:
    """Tomorrow she will help; yesterday she helped."""
    base, past = random.choice(DOINGS)
    name = random.choice(GIRLS + BOYS)
    if random.random() < 0.5:
        when = random.choice(("Yesterday", "Last week", "Two days ago"))
        return _pair(f"{when} {name} {past}.", f"{when} {name} will {base}.", 2)
    when = random.choice(("Tomorrow", "Next week", "Two days from now"))
    return _pair(f"{when} {name} will {base}.", f"{when} {name} {past}.", 2)


MAKERS: tuple[Maker, ...] = (
    agreement, agreement_across_one, agreement_across_two, reflexive, reflexive_across, determiner, irregular_past,
    participle, negative_polarity, negative_polarity_in_place, pronoun_case, article, comparative, question_order,
    quantifier, modal, existence, tense, agreement_across_one, agreement_across_two, reflexive_across,
)  # fmt: skip
