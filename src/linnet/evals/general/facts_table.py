# SPDX-License-Identifier: Apache-2.0
"""Relations of the facts: a sentence with a gap, how hard it is, and rows of ``subject = object``.

Every object is right for its own subjects only, within its relation.
"""

from linnet.evals.general.item import table

RELATIONS: tuple[tuple[str, int, tuple[tuple[str, ...], ...]], ...] = (
    (
        "The capital of {} is",
        1,
        table(
            """France = Paris; Italy = Rome; Spain = Madrid; Germany = Berlin; England = London
            Russia = Moscow; Japan = Tokyo; China = Beijing; Egypt = Cairo; Greece = Athens
            Portugal = Lisbon; Austria = Vienna; Ireland = Dublin; Cuba = Havana; Iraq = Baghdad
            Iran = Tehran; Norway = Oslo; Sweden = Stockholm; Poland = Warsaw; Canada = Ottawa
            Belgium = Brussels; Denmark = Copenhagen"""
        ),
    ),
    (
        "The capital of {} is",
        2,
        table(
            """Finland = Helsinki; Hungary = Budapest; Kenya = Nairobi; Peru = Lima; Thailand = Bangkok
            Argentina = Buenos Aires; Chile = Santiago; Colombia = Bogotá; Turkey = Ankara
            Vietnam = Hanoi; Australia = Canberra; Brazil = Brasília; Scotland = Edinburgh
            Wales = Cardiff; Romania = Bucharest; Bulgaria = Sofia; Croatia = Zagreb; Serbia = Belgrade
            Ukraine = Kyiv; Lebanon = Beirut; Syria = Damascus; Jordan = Amman; Nepal = Kathmandu
            Jamaica = Kingston; Iceland = Reykjavik; Indonesia = Jakarta"""
        ),
    ),
    (
        "The capital of {} is",
        3,
        table(
            """Mongolia = Ulaanbaatar; Slovenia = Ljubljana; Slovakia = Bratislava; Estonia = Tallinn
            Latvia = Riga; Lithuania = Vilnius; Albania = Tirana; Armenia = Yerevan; Georgia = Tbilisi
            Azerbaijan = Baku; Ghana = Accra; Senegal = Dakar; Ethiopia = Addis Ababa; Uganda = Kampala
            Zambia = Lusaka; Angola = Luanda; Tunisia = Tunis; Morocco = Rabat; Libya = Tripoli
            Uruguay = Montevideo; Paraguay = Asunción; Laos = Vientiane; Ecuador = Quito
            Venezuela = Caracas; Madagascar = Antananarivo; Namibia = Windhoek; Bangladesh = Dhaka"""
        ),
    ),
    (
        "{} is a country in",
        2,
        table(
            """France = Europe; Poland = Europe; Norway = Europe; Greece = Europe; Japan = Asia
            India = Asia; Thailand = Asia; Vietnam = Asia; Nigeria = Africa; Kenya = Africa
            Ghana = Africa; Uganda = Africa; Brazil = South America; Peru = South America
            Chile = South America; Argentina = South America; Canada = North America
            Mexico = North America"""
        ),
    ),
    (
        "The people of {} speak",
        1,
        table(
            """France = French; Spain = Spanish; Germany = German; Italy = Italian; Japan = Japanese
            Russia = Russian; Portugal = Portuguese; China = Chinese; Greece = Greek; Poland = Polish
            Turkey = Turkish; Sweden = Swedish; Korea = Korean; Hungary = Hungarian; Finland = Finnish
            Denmark = Danish; Thailand = Thai; Egypt = Arabic"""
        ),
    ),
    (
        "The traditional currency of {} is the",
        3,
        table(
            """Japan = yen; Germany = mark; France = franc; Britain = pound; Russia = ruble; India = rupee
            Spain = peseta; Italy = lira; China = yuan; Poland = zloty; Sweden = krona; Brazil = real
            Mexico = peso; South Korea = won; Thailand = baht; Israel = shekel; Greece = drachma
            South Africa = rand"""
        ),
    ),
    (
        "A young {} is called a",
        2,
        table(
            """dog = puppy; cat = kitten; horse = foal; cow = calf; sheep = lamb; bear = cub
            duck = duckling; goat = kid; pig = piglet; frog = tadpole; hen = chick; deer = fawn
            kangaroo = joey; goose = gosling; swan = cygnet"""
        ),
    ),
    (
        "In the story, the {} said:",
        2,
        table(
            """dog = "Woof!"; cat = "Meow!"; cow = "Moo!"; duck = "Quack!"; pig = "Oink!"; sheep = "Baa!"
            lion = "Roar!"; owl = "Hoot!"; bee = "Buzz!"; rooster = "Cock-a-doodle-doo!"
            horse = "Neigh!"; snake = "Hiss!\""""
        ),
    ),
    (
        "{A} is a kind of",
        1,
        table(
            """rose = flower; tulip = flower; daisy = flower; oak = tree; pine = tree; maple = tree
            eagle = bird; sparrow = bird; robin = bird; salmon = fish; shark = fish; trout = fish
            hammer = tool; saw = tool; screwdriver = tool; violin = instrument; trumpet = instrument
            flute = instrument; carrot = vegetable; cabbage = vegetable; banana = fruit; pear = fruit
            peach = fruit; beetle = insect; mosquito = insect; diamond = gem; ruby = gem
            shirt = garment; skirt = garment; sofa = piece of furniture"""
        ),
    ),
    (
        "The colour of {} is",
        1,
        table(
            """grass = green; snow = white; blood = red; a banana = yellow; the clear sky = blue
            coal = black; milk = white; a ripe lemon = yellow; spinach = green; a fire engine = red
            chocolate = brown; a carrot = orange; a flamingo = pink; an elephant = grey
            a polar bear = white; a raven = black; a pumpkin = orange"""
        ),
    ),
    (
        "{A} has this many legs:",
        2,
        table(
            """dog = 4; spider = 8; bird = 2; ant = 6; horse = 4; human = 2; snake = 0; bee = 6
            scorpion = 8; hen = 2"""
        ),
    ),
    (
        "The number of sides of {a} is",
        2,
        table(
            """triangle = 3; square = 4; pentagon = 5; hexagon = 6; octagon = 8; rectangle = 4
            heptagon = 7"""
        ),
    ),
    (
        "To {}, people use a",
        1,
        table(
            """cut paper = pair of scissors; open a locked door = key; write a letter = pen
            drive in a nail = hammer; sweep the floor = broom; see stars far away = telescope
            measure temperature = thermometer; eat soup = spoon; tell the time = clock
            take pictures = camera; dig a hole = shovel; comb their hair = comb; row a boat = paddle
            light a dark room = lamp; find the north = compass; brush their teeth = toothbrush
            sew a button = needle; see very small things = microscope; catch fish = net
            carry water = bucket; climb onto a roof = ladder"""
        ),
    ),
    (
        "A person who {} is called a",
        1,
        table(
            """bakes bread = baker; flies a plane = pilot; teaches children = teacher
            treats the sick = doctor; writes books = writer; sings songs = singer; grows crops = farmer
            catches fish = fisherman; paints = painter; puts out fires = firefighter
            works with wood = carpenter; sells meat = butcher; looks after teeth = dentist
            repairs pipes = plumber; cuts hair = barber; makes clothes = tailor; rules a kingdom = king
            dances = dancer; looks after sick animals = vet; judges in a court = judge
            plays the piano = pianist; steals = thief"""
        ),
    ),
    (
        "The part of the body that people use to {} is the",
        1,
        table(
            """see = eye; hear = ear; smell = nose; taste = tongue; think = brain; breathe = lungs
            chew = teeth; kick = foot; pump blood = heart; digest food = stomach; hold things = hand"""
        ),
    ),
    (
        "The chemical symbol for {} is",
        2,
        table(
            """hydrogen = H; oxygen = O; carbon = C; nitrogen = N; gold = Au; silver = Ag; iron = Fe
            sodium = Na; helium = He; calcium = Ca; copper = Cu; lead = Pb; potassium = K; sulfur = S
            zinc = Zn; tin = Sn; mercury = Hg; neon = Ne; chlorine = Cl; iodine = I; silicon = Si
            magnesium = Mg; phosphorus = P; uranium = U"""
        ),
    ),
    (
        "{} was written by",
        3,
        table(
            """Hamlet = William Shakespeare; Don Quixote = Miguel de Cervantes; War and Peace = Leo Tolstoy
            The Odyssey = Homer; Pride and Prejudice = Jane Austen; Oliver Twist = Charles Dickens
            Faust = Goethe; Moby-Dick = Herman Melville; Frankenstein = Mary Shelley
            Dracula = Bram Stoker; 1984 = George Orwell; The Hobbit = J. R. R. Tolkien
            Crime and Punishment = Fyodor Dostoevsky; The Divine Comedy = Dante
            Les Misérables = Victor Hugo; The Trial = Franz Kafka; Ulysses = James Joyce
            Jane Eyre = Charlotte Brontë; Wuthering Heights = Emily Brontë; Tom Sawyer = Mark Twain
            The Great Gatsby = F. Scott Fitzgerald"""
        ),
    ),
    (
        "The scientist or inventor known for {} is",
        3,
        table(
            """the theory of relativity = Albert Einstein; the theory of evolution = Charles Darwin
            radium = Marie Curie; the telephone = Alexander Graham Bell; penicillin = Alexander Fleming
            the periodic table = Dmitri Mendeleev; the light bulb = Thomas Edison
            dynamite = Alfred Nobel; the printing press = Johannes Gutenberg
            the laws of motion and gravity = Isaac Newton; the laws of heredity in peas = Gregor Mendel
            the first vaccine against smallpox = Edward Jenner; the steam engine = James Watt
            radio = Guglielmo Marconi; the laws of planetary motion = Johannes Kepler"""
        ),
    ),
    (
        "The planet {} is the",
        3,
        table(
            """Mercury = closest to the sun; Jupiter = largest of all; Saturn = famous for its rings
            Mars = red one; Venus = second from the sun; Earth = one we live on
            Neptune = farthest from the sun"""
        ),
    ),
    (
        "When it is {}, water is",
        3,
        table("""below freezing = a solid; at room temperature = a liquid; above 150 degrees Celsius = a gas"""),
    ),
    (
        "{} is made from",
        2,
        table(
            """Bread = flour; Cheese = milk; Wine = grapes; Paper = wood; Glass = sand; Leather = skin
            An omelette = eggs; Chocolate = cocoa; Steel = iron; Cider = apples; Popcorn = corn
            Raisins = grapes; Tofu = soybeans; Ketchup = tomatoes; Olive oil = olives; Candles = wax
            Tyres = rubber"""
        ),
    ),
    (
        "The holiday or day on which {} is",
        2,
        table(
            """people celebrate the birth of Jesus = Christmas; people hide coloured eggs = Easter
            a year begins = New Year; children dress as ghosts and ask for sweets = Halloween
            lovers send each other hearts = Valentine's Day
            Americans eat turkey with their family in November = Thanksgiving
            somebody turns a year older = a birthday"""
        ),
    ),
    (
        "{} is famous for",
        2,
        table(
            """Paris = the Eiffel Tower; London = Big Ben; Rome = the Colosseum; Athens = the Acropolis
            Agra = the Taj Mahal; Pisa = the Leaning Tower; San Francisco = the Golden Gate Bridge
            Sydney = its Opera House; Berlin = the Brandenburg Gate; Venice = its canals
            Moscow = the Kremlin; Giza = the Great Pyramid; New York = the Statue of Liberty
            Barcelona = the Sagrada Família; Hollywood = its films"""
        ),
    ),
    (
        "The {} lives in",
        2,
        table(
            """camel = the desert; shark = the sea; bee = a hive; spider = a web; rabbit = a burrow
            king = a palace; monk = a monastery; prisoner = a prison; trout = a river"""
        ),
    ),
    (
        "There are this many {}:",
        2,
        table(
            """days in a week = 7; months in a year = 12; hours in a day = 24; minutes in an hour = 60
            days in a year = 365; letters in the English alphabet = 26; years in a century = 100
            years in a decade = 10; cents in a dollar = 100; fingers on one hand = 5
            degrees in a right angle = 90; degrees in a circle = 360; weeks in a year = 52
            centimetres in a metre = 100; metres in a kilometre = 1000; seconds in a minute = 60
            eggs in a dozen = 12; wheels on a bicycle = 2; wheels on a car = 4
            players in a football team on the field = 11; arms of an octopus = 8
            planets in the solar system = 8; strings on a violin = 4; sides of a cube = 6
            continents = 7"""
        ),
    ),
    (
        "{} was the first to",
        3,
        table(
            """Neil Armstrong = walk on the moon; Yuri Gagarin = fly into space
            Ferdinand Magellan = sail for a voyage around the world
            Edmund Hillary = climb Mount Everest; Roald Amundsen = reach the South Pole
            George Washington = be president of the United States"""
        ),
    ),
)
