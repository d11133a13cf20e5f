# SPDX-License-Identifier: Apache-2.0
"""Word forms: plural, past, participle, degrees, -ing, nouns of adjectives and verbs; the pattern is shown first."""

from collections.abc import Sequence
from random import Random

from linnet.evals.general.item import Item, Maker, spaced, table, words

# Rows: base = right form = wrong form = wrong form.
PLURALS = table(
    """mouse = mice = mouses = mices; child = children = childs = childrens; foot = feet = foots = feets
    tooth = teeth = tooths = teeths; man = men = mans = mens; woman = women = womans = womens
    goose = geese = gooses = geeses; ox = oxen = oxes = oxens; person = people = peoples = persones
    wolf = wolves = wolfs = wolfes; knife = knives = knifes = knivs; leaf = leaves = leafs = leafes
    wife = wives = wifes = wivs; life = lives = lifes = livs; shelf = shelves = shelfs = shelfes
    half = halves = halfs = halfes; thief = thieves = thiefs = thiefes; loaf = loaves = loafs = loafes
    city = cities = citys = cityes; baby = babies = babys = babyes; lady = ladies = ladys = ladyes
    party = parties = partys = partyes; story = stories = storys = storyes
    country = countries = countrys = countryes; boy = boys = boies = boyes; day = days = daies = dayes
    key = keys = keies = keyes; toy = toys = toies = toyes; box = boxes = boxs = boxen
    bus = buses = buss = busies; dish = dishes = dishs = dishies; fox = foxes = foxs = foxen
    potato = potatoes = potatos = potatois; tomato = tomatoes = tomatos = tomatois
    hero = heroes = heros = herois; sheep = sheep = sheeps = sheepes; crisis = crises = crisises = crisi
    cactus = cacti = cactis = cactae; phenomenon = phenomena = phenomenas = phenomeni
    analysis = analyses = analysises = analysi"""
)
PASTS = table(
    """go = went = goed = gone; see = saw = seed = seen; take = took = taked = taken
    come = came = comed = camed; give = gave = gived = given; know = knew = knowed = known
    think = thought = thinked = thoughted; find = found = finded = founded
    tell = told = telled = tolded; feel = felt = feeled = felted; leave = left = leaved = lefted
    bring = brought = bringed = broughted; begin = began = begined = begun
    keep = kept = keeped = kepted; hold = held = holded = helded; write = wrote = writed = written
    stand = stood = standed = stooded; hear = heard = heared = hearded; mean = meant = meaned = meanted
    meet = met = meeted = metted; run = ran = runned = ranned; pay = paid = payed = paided
    sit = sat = sitted = satted; speak = spoke = speaked = spoken; lead = led = leaded = ledded
    grow = grew = growed = grown; lose = lost = losed = losted; fall = fell = falled = fallen
    send = sent = sended = sented; build = built = builded = builted; break = broke = breaked = broken
    drive = drove = drived = driven; eat = ate = eated = eaten; draw = drew = drawed = drawn
    choose = chose = choosed = chosen; wear = wore = weared = worn; catch = caught = catched = caughted
    teach = taught = teached = taughted; fly = flew = flied = flown; throw = threw = throwed = thrown
    sing = sang = singed = sung; swim = swam = swimmed = swum; drink = drank = drinked = drunk
    ride = rode = rided = ridden; win = won = winned = wonned; fight = fought = fighted = foughted
    forget = forgot = forgetted = forgotten; freeze = froze = freezed = frozen
    hide = hid = hided = hidden; shake = shook = shaked = shaken; steal = stole = stealed = stolen
    swear = swore = sweared = sworn; tear = tore = teared = torn; stop = stopped = stoped = stopt
    plan = planned = planed = plant; carry = carried = carryed = carryd
    study = studied = studyed = studyd; cry = cried = cryed = cryd; try = tried = tryed = tryd
    play = played = plaied = playd; enjoy = enjoyed = enjoied = enjoyd"""
)
PARTICIPLES = table(
    """go = gone = went = goed; see = seen = saw = seed; take = taken = took = taked
    do = done = did = doed; give = given = gave = gived; know = known = knew = knowed
    write = written = wrote = writed; speak = spoken = spoke = speaked; grow = grown = grew = growed
    fall = fallen = fell = falled; break = broken = broke = breaked; drive = driven = drove = drived
    eat = eaten = ate = eated; draw = drawn = drew = drawed; choose = chosen = chose = choosed
    fly = flown = flew = flied; throw = thrown = threw = throwed; sing = sung = sang = singed
    swim = swum = swam = swimmed; drink = drunk = drank = drinked; ride = ridden = rode = rided
    begin = begun = began = begined; freeze = frozen = froze = freezed; hide = hidden = hid = hided
    shake = shaken = shook = shaked; steal = stolen = stole = stealed; tear = torn = tore = teared
    wake = woken = woke = waken; bite = bitten = bit = bited; forgive = forgiven = forgave = forgived"""
)
DEGREES = table(
    """big = bigger = biger = bigest; hot = hotter = hoter = hottier; thin = thinner = thiner = thinnier
    happy = happier = happyer = happer; easy = easier = easyer = easer
    heavy = heavier = heavyer = heaver; early = earlier = earlyer = earler
    funny = funnier = funnyer = funner; good = better = gooder = bester; bad = worse = badder = worser
    nice = nicer = nicier = niceer; large = larger = largier = largeer; wet = wetter = weter = wettier
    dry = drier = dryier = drer; sad = sadder = sader = saddier; old = older = oldder = oldier
    small = smaller = smaler = smallier; busy = busier = busyer = buser"""
)
GERUNDS = table(
    """run = running = runing = runeing; swim = swimming = swiming = swimeing
    sit = sitting = siting = siteing; stop = stopping = stoping = stopeing
    make = making = makeing = makking; write = writing = writeing = writting
    come = coming = comeing = comming; dance = dancing = danceing = dancceing
    lie = lying = lieing = liing; die = dying = dieing = diing; begin = beginning = begining = begineing
    plan = planning = planing = planeing; read = reading = readding = readeing
    open = opening = openning = openeing; cut = cutting = cuting = cuteing
    drive = driving = driveing = drivving; shop = shopping = shoping = shopeing
    tie = tying = tieing = tiing; get = getting = geting = geteing; use = using = useing = ussing
    visit = visiting = visitting = visiteing"""
)
NOUNS = table(
    """strong = strength = strongth = strongity; long = length = longth = longity
    wide = width = wideth = widity; deep = depth = deepth = deepity; high = height = highth = highity
    warm = warmth = warmity = warmion; true = truth = trueth = truity
    free = freedom = freeness = freeth; wise = wisdom = wiseth = wisity
    kind = kindness = kindity = kindth; dark = darkness = darkity = darkth
    sad = sadness = sadity = sadth; real = reality = realth = realdom; able = ability = ableth = abledom
    safe = safety = safeth = safedom; poor = poverty = poority = poorth
    young = youth = youngth = youngity; angry = anger = angriness = angrity
    proud = pride = proudity = proudth; hot = heat = hotth = hotity; brave = bravery = bravity = braveth
    decide = decision = decidation = decidement; arrive = arrival = arrivation = arrivement
    explain = explanation = explainment = explainance; move = movement = movation = movance
    choose = choice = choosement = choosation; describe = description = describement = describance
    invite = invitation = invitement = invital; refuse = refusal = refusation = refusement
    grow = growth = growment = growation; lose = loss = losement = losation
    solve = solution = solvement = solval; perform = performance = performation = performal
    agree = agreement = agreeance = agreeation; behave = behaviour = behavement = behavation
    punish = punishment = punishation = punishance"""
)
NONCE = words("wug blick dax tove zorp fep gorp plim snark brillig nim vash trox flish kly bazz mox dreb quon splee")


def _shown(
    name: str, rows: Sequence[tuple[str, ...]], examples: Sequence[tuple[str, str]], level: int, hard: int
) -> Maker:
    """Two examples, then the base; the last ``hard`` rows of the table are level 3."""

    def maker(random: Random) -> Item:
        number = random.randrange(len(rows))
        base, right, *wrong = rows[number]
        first, second = random.sample([pair for pair in examples if pair[0] != base], 2)
        prompt = "".join(f"{one} -> {other}\n" for one, other in (first, second)) + f"{base} ->"
        return Item(prompt, f" {right}", spaced(*wrong), 3 if number >= len(rows) - hard else level)

    maker.__name__ = name
    return maker


def nonce(random: Random) -> Item:
    """Two wugs: the plural of a word nobody has seen."""
    word = random.choice(NONCE)
    ending = "es" if word[-1] in "xszh" else "ies" if word.endswith("ly") else "s"
    right = (word[:-1] if ending == "ies" else word) + ending
    wrong = (word, word + ("es" if ending == "s" else "s"))
    return Item(f"This is a {word}. Now there is another one. There are two", f" {right}", spaced(*wrong), 2)


MAKERS: tuple[Maker, ...] = (
    _shown("plural", PLURALS, (("cat", "cats"), ("house", "houses"), ("tree", "trees"), ("hand", "hands")), 1, 4),
    _shown("past", PASTS, (("walk", "walked"), ("help", "helped"), ("call", "called"), ("work", "worked")), 1, 0),
    _shown("participle", PARTICIPLES, (("be", "been"), ("make", "made"), ("show", "shown"), ("rise", "risen")), 2, 0),
    _shown("degree", DEGREES, (("tall", "taller"), ("long", "longer"), ("cold", "colder"), ("fast", "faster")), 1, 0),
    _shown("gerund", GERUNDS, (("walk", "walking"), ("help", "helping"), ("eat", "eating"), ("go", "going")), 2, 0),
    _shown(
        "noun", NOUNS, (("weak", "weakness"), ("act", "action"), ("equal", "equality"), ("treat", "treatment")), 3, 0
    ),
    nonce,
)
