# SPDX-License-Identifier: Apache-2.0
"""Copying and recall: what stood in the prompt, a few words or hundreds of words ago."""

from random import Random

from linnet.evals.general.item import Item, Maker, spaced
from linnet.evals.general.words import ANIMALS, COLOURS, NAMES, PLACES, THINGS

LENGTHS = ((4, 1), (8, 2), (16, 2), (30, 3))
"""(facts in the prompt, level)."""


def copy_words(random: Random) -> Item:
    """A list, and the same list again up to one word."""
    count = random.choice((4, 8, 16))
    words = random.sample(THINGS + ANIMALS + COLOURS, count)
    stop = random.randint(2, count - 1)
    wrong = random.sample([word for word in words if word != words[stop]], 3)
    prompt = f"List: {', '.join(words)}\nThe same list: {', '.join(words[:stop])},"
    return Item(prompt, f" {words[stop]}", spaced(*wrong), 1)


def copy_digits(random: Random) -> Item:
    """A number of many digits, and the same again up to three digits."""
    count = random.choice((6, 9, 12))
    digits = "".join(random.choice("0123456789") for _ in range(count))
    stop = count - 3
    wrong = {
        digits[stop:][::-1],
        digits[:3],
        digits[1:4],
        digits[stop - 1 : -1],
        f"{(int(digits[stop:]) + 7) % 1000:03d}",
    }
    wrong.discard(digits[stop:])
    prompt = f"Number: {digits}\nThe same number: {digits[:stop]}"
    return Item(prompt, digits[stop:], tuple(random.sample(sorted(wrong), 3)), 2)


def who_has(random: Random) -> Item:
    """Anna has a drum. Ben has a lamp. …: who has what, or what who has, among few or many."""
    count, level = random.choice(LENGTHS)
    names, things = random.sample(NAMES, count), random.sample(THINGS, count)
    asked = random.randrange(count)
    text = " ".join(f"{name} has the {thing}." for name, thing in zip(names, things, strict=True))
    others = random.sample([number for number in range(count) if number != asked], 3)
    if random.random() < 0.5:
        wrong = spaced(*(things[number] for number in others))
        return Item(f"{text}\nQuestion: What does {names[asked]} have?\nAnswer: the", f" {things[asked]}", wrong, level)
    wrong = spaced(*(names[number] for number in others))
    return Item(f"{text}\nQuestion: Who has the {things[asked]}?\nAnswer:", f" {names[asked]}", wrong, level)


def where_is(random: Random) -> Item:
    """Somebody goes to one place and then to another: where somebody is now."""
    moves = random.choice((1, 2, 3))
    names = random.sample(NAMES, 3)
    places = random.sample(PLACES, 3 + moves)
    lines = [f"{name} is in the {place}." for name, place in zip(names, places, strict=False)]
    asked = random.choice(names)
    lines += [f"{asked} goes to the {place}." for place in places[3:]]
    wrong = random.sample(places[:-1], 3)
    prompt = f"{' '.join(lines)}\nQuestion: Where is {asked} now?\nAnswer: in the"
    return Item(prompt, f" {places[-1]}", spaced(*wrong), 2 if moves < 3 else 3)


def look_up(random: Random) -> Item:
    """Codes of three digits by animal and colour; every number is there to be mistaken."""
    count, level = random.choice(LENGTHS)
    keys = random.sample([f"{colour} {animal}" for colour in COLOURS for animal in ANIMALS], count)
    codes = random.sample(range(100, 1000), count)
    asked = random.randrange(count)
    lines = "\n".join(f"{key}: {code}" for key, code in zip(keys, codes, strict=True))
    wrong = random.sample([code for code in codes if code != codes[asked]], 3)
    prompt = f"{lines}\nThe number of the {keys[asked]} is"
    return Item(prompt, f" {codes[asked]}", spaced(*map(str, wrong)), min(level + 1, 3))


def two_steps(random: Random) -> Item:
    """Anna has the drum, the drum is red: the colour of what Anna has."""
    count = random.choice((3, 5))
    names, things = random.sample(NAMES, count), random.sample(THINGS, count)
    colours = random.sample(COLOURS, max(count, 4))
    lines = [f"{name} has the {thing}." for name, thing in zip(names, things, strict=True)]
    shades = [f"The {thing} is {colour}." for thing, colour in zip(things, colours, strict=False)]
    random.shuffle(shades)
    asked = random.randrange(count)
    wrong = [colour for colour in colours if colour != colours[asked]][:3]
    prompt = f"{' '.join(lines + shades)}\nQuestion: What colour is the thing that {names[asked]} has?\nAnswer:"
    return Item(prompt, f" {colours[asked]}", spaced(*wrong), 3)


MAKERS: tuple[Maker, ...] = (copy_words, who_has, look_up, where_is, two_steps, copy_digits, who_has)
