# SPDX-License-Identifier: Apache-2.0
"""Opposites: hot and cold. One wrong answer means nearly the same as the word, two are opposites of other words."""

from random import Random

from linnet.evals.general.item import Item, Maker, pick, spaced, table

# word = its opposite = a word of like meaning.
EASY = table(
    """hot = cold = warm; big = small = large; up = down = above; good = bad = nice; happy = sad = glad
    day = night = noon; fast = slow = quick; open = closed = wide; old = young = aged
    black = white = dark; left = right = aside; yes = no = sure; high = low = tall
    rich = poor = wealthy; strong = weak = mighty; full = empty = filled; light = heavy = bright
    hard = soft = tough; long = short = lengthy; wet = dry = damp; clean = dirty = tidy
    early = late = soon; true = false = correct; near = far = close; love = hate = like
    win = lose = gain; buy = sell = pay; begin = end = start; give = take = offer; push = pull = press
    laugh = cry = smile; inside = outside = within; first = last = initial; alive = dead = living
    thick = thin = fat; easy = difficult = simple; before = after = earlier; always = never = forever
    north = south = east; top = bottom = peak; man = woman = boy; brother = sister = cousin
    king = queen = ruler; husband = wife = groom"""
)
HARD = table(
    """ancient = modern = antique; cheap = expensive = inexpensive; brave = cowardly = bold
    arrive = depart = come; accept = reject = receive; increase = decrease = grow
    success = failure = victory; friend = enemy = companion; guilty = innocent = blamed
    generous = stingy = giving; polite = rude = courteous; private = public = secret
    maximum = minimum = most; import = export = bring; attack = defend = assault
    permanent = temporary = lasting; shallow = deep = low; wide = narrow = broad; smooth = rough = even
    sharp = blunt = keen; tight = loose = firm; transparent = opaque = clear
    vertical = horizontal = upright; optimist = pessimist = dreamer; borrow = lend = loan
    remember = forget = recall; praise = criticise = applaud; create = destroy = make
    allow = forbid = permit; combine = separate = join; blame = forgive = accuse
    hide = reveal = conceal; freeze = melt = ice; stale = fresh = old; humble = arrogant = modest
    calm = agitated = still; knowledge = ignorance = wisdom; wealth = poverty = riches
    peace = war = calm; heaven = hell = sky; hope = despair = wish; ascend = descend = climb
    absent = present = away; artificial = natural = fake; awake = asleep = alert; bitter = sweet = sour
    captive = free = prisoner; cruel = kind = harsh; entrance = exit = doorway; female = male = woman
    frequent = rare = common; gentle = rough = mild; lazy = hardworking = idle; major = minor = chief
    odd = even = strange; passive = active = inert; senior = junior = elder; simple = complex = plain
    single = married = alone; tame = wild = gentle; urban = rural = city; vacant = occupied = empty
    wise = foolish = clever; youth = age = boyhood; zenith = nadir = peak; scarce = plentiful = rare
    verbose = concise = wordy; lenient = strict = mild; hostile = friendly = unfriendly
    inferior = superior = worse; explicit = implicit = stated; fertile = barren = fruitful
    obscure = famous = dim"""
)
FORMS = ("The opposite of {} is", "hot is to cold as {} is to", "Word: {}\nOpposite:")


def _maker(rows: tuple[tuple[str, ...], ...], level: int, form: str) -> Maker:
    pool = [row[1] for row in rows]

    def maker(random: Random) -> Item:
        word, right, synonym = random.choice(rows)
        if form.startswith(word):
            return _maker(rows, level, FORMS[0])(random)
        wrong = (synonym, *pick(random, right, [other for other in pool if other not in (synonym, word)], 2))
        return Item(form.format(word), f" {right}", spaced(*wrong), level)

    return maker


MAKERS: tuple[Maker, ...] = (
    _maker(EASY, 1, FORMS[0]),
    _maker(HARD, 2, FORMS[0]),
    _maker(HARD, 3, FORMS[1]),
    _maker(HARD, 2, FORMS[2]),
)
