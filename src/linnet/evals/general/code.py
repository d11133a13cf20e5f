# SPDX-License-Identifier: Apache-2.0
"""Small traces of Python: what a few lines print. The printed value is computed here beside the lines."""

from collections.abc import Sequence
from random import Random

from linnet.evals.general.item import Item, Maker, near, spaced
from linnet.evals.general.words import ANIMALS, COLOURS, THINGS

SHOWN = "n = 5\nprint(n)\n# prints: 5\n\nprint('ab' + 'c')\n# prints: abc\n\n"
"""Shown first, so that a base model sees the form."""
STEPS = (1, 2, 3, 4)


def _trace(random: Random, lines: Sequence[str], value: int, level: int, others: Sequence[int] = ()) -> Item:
    """A program and what it prints; ``others`` are values a careless reader would give."""
    wrong = [number for number in dict.fromkeys(others) if number != value]
    wrong += [number for number in near(random, value, STEPS, 6) if number not in wrong]
    return _shown(lines, str(value), [str(number) for number in wrong[:3]], level)


def _shown(lines: Sequence[str], value: str, wrong: Sequence[str], level: int) -> Item:
    return Item(f"{SHOWN}{chr(10).join(lines)}\n# prints:", f" {value}", spaced(*wrong), level)


def named(random: Random) -> Item:
    """x = 'dog', y = 'cat', print one of them."""
    names, words = random.sample("abcdxyz", 3), random.sample(ANIMALS + COLOURS, 3)
    lines = [f"{name} = '{word}'" for name, word in zip(names, words, strict=True)]
    asked = random.randrange(3)
    return _shown([*lines, f"print({names[asked]})"], words[asked], [w for w in words if w != words[asked]], 1)


def assigned(random: Random) -> Item:
    """x = 3, y = 5, print one of them."""
    names = random.sample("abcdxyz", 3)
    values = random.sample(range(10, 100), 4)
    lines = [f"{name} = {value}" for name, value in zip(names, values, strict=False)]
    asked = random.randrange(3)
    others = [value for number, value in enumerate(values) if number != asked]
    return _trace(random, [*lines, f"print({names[asked]})"], values[asked], 2, others)


def reassigned(random: Random) -> Item:
    """The later value counts."""
    one, other = random.sample("abcdxyz", 2)
    values = random.sample(range(10, 100), 4)
    lines = [f"{one} = {values[0]}", f"{other} = {values[1]}", f"{one} = {values[2]}", f"print({one})"]
    return _trace(random, lines, values[2], 2, [values[0], values[1], values[3]])


def added(random: Random) -> Item:
    """x = 3; y = x + 4."""
    x, y = random.randint(1, 20), random.randint(1, 9)
    lines = [f"x = {x}", f"y = x + {y}", "print(y)"]
    return _trace(random, lines, x + y, 2, [x, y])


def updated(random: Random) -> Item:
    """x += 2 and x *= 3."""
    x, y, z = random.randint(2, 9), random.randint(1, 6), random.randint(2, 4)
    lines = [f"x = {x}", f"x += {y}", f"x *= {z}", "print(x)"]
    return _trace(random, lines, (x + y) * z, 3, [x + y, x * z + y, x * z])


def indexed(random: Random) -> Item:
    """An element of a list."""
    words = random.sample(ANIMALS + COLOURS, 4)
    index = random.choice((0, 1, 2, -1))
    shown = ", ".join(f"'{word}'" for word in words)
    wrong = [word for word in words if word != words[index]]
    return _shown([f"words = [{shown}]", f"print(words[{index}])"], words[index], wrong, 1 if index == 0 else 2)


def key(random: Random) -> Item:
    """A value of a dictionary."""
    names, values = random.sample(ANIMALS, 4), random.sample(range(10, 100), 4)
    asked = random.randrange(4)
    shown = ", ".join(f"'{name}': {value}" for name, value in zip(names, values, strict=True))
    others = [value for value in values if value != values[asked]]
    return _trace(random, [f"age = {{{shown}}}", f"print(age['{names[asked]}'])"], values[asked], 2, others)


def length(random: Random) -> Item:
    """len of a word or a list."""
    if random.random() < 0.5:
        word = random.choice(THINGS + ANIMALS)
        return _trace(random, [f"print(len('{word}'))"], len(word), 2)
    numbers = [random.randint(0, 9) for _ in range(random.randint(2, 8))]
    return _trace(random, [f"x = {numbers}", "print(len(x))"], len(numbers), 2)


def extreme(random: Random) -> Item:
    """max, min, sum of a list."""
    numbers = random.sample(range(10, 100), 4)
    what, value = random.choice((("max", max(numbers)), ("min", min(numbers))))
    others = [number for number in numbers if number != value]
    return _trace(random, [f"x = {numbers}", f"print({what}(x))"], value, 2, others)


def string_method(random: Random) -> Item:
    """upper, reversal, repetition, concatenation."""
    word, other = random.sample([word for word in THINGS + ANIMALS if len(word) < 7], 2)
    what = random.choice(("upper", "add", "repeat", "slice", "reverse"))
    slices = [word[1:4], word[:3], word[2:5], word[-3:]]
    line, value, wrong, level = {
        "upper": (f"'{word}'.upper()", word.upper(), [word, word.title(), "True"], 1),
        "add": (f"'{word}' + '{other}'", word + other, [other + word, f"{word} {other}", f"{word}+{other}"], 1),
        "repeat": (f"'{word}' * 2", word * 2, [f"{word}2", f"{word} {word}", f"{word}*2"], 2),
        "slice": (f"'{word}'[:3]", word[:3], [part for part in dict.fromkeys(slices) if part != word[:3]][:3], 2),
        "reverse": (f"'{word}'[::-1]", word[::-1], [word, word[0] + word[:0:-1], word[-1] + word[:-1]], 3),
    }[what]
    return _shown([f"print({line})"], value, [part for part in dict.fromkeys(wrong) if part != value], level)


def truth(random: Random) -> Item:
    """A comparison is True or False."""
    x, y = random.sample(range(1, 50), 2)
    sign, value = random.choice(((">", x > y), ("<", x < y), ("==", x == y), ("!=", x != y)))
    if sign in ("==", "!=") and random.random() < 0.5:
        y, value = x, sign == "=="
    return _shown([f"x = {x}", f"y = {y}", f"print(x {sign} y)"], str(value), [str(not value)], 2)


def branch(random: Random) -> Item:
    """An if with an else."""
    x, y = random.sample(range(1, 30), 2)
    one, other = random.sample(ANIMALS, 2)
    lines = [f"x = {x}", f"print('{one}' if x > {y} else '{other}')"]
    right, wrong = (one, other) if x > y else (other, one)
    return _shown(lines, right, [wrong], 3)


def loop(random: Random) -> Item:
    """A loop that adds up."""
    count, step, start = random.randint(2, 5), random.randint(2, 6), random.randint(0, 5)
    lines = [f"x = {start}", f"for i in range({count}):", f"    x += {step}", "print(x)"]
    return _trace(random, lines, start + count * step, 3, [count * step, start + (count - 1) * step, start + step])


def called(random: Random) -> Item:
    """A function of one line."""
    x, y, z = random.randint(2, 9), random.randint(2, 5), random.randint(1, 9)
    lines = ["def f(x):", f"    return x * {y} + {z}", "", f"print(f({x}))"]
    return _trace(random, lines, x * y + z, 3, [x * y, x + y + z, x * (y + z)])


MAKERS: tuple[Maker, ...] = (
    named,
    assigned, indexed, added, key, string_method, updated, reassigned, length, extreme, branch, truth, loop, called,
)  # fmt: skip
