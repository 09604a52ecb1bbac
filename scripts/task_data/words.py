"""Word lists of the task generators, written for this project."""

FIRST_NAMES = (
    "Anna Ben Clara David Ella Felix Grace Henry Ida Jack Kate Liam Maria Noah Olga Paul Rosa Sam Tina Victor Wendy Yusuf "
    "Zoe Amir Bella Carlos Diana Emil Fiona George Hanna Ivan Julia Karl Lena Martin Nina Oscar Petra Quentin Rita Simon "
    "Tara Ulrich Vera Walter Xenia Yara Alice Boris Cora Dario Elsa Frank Gita Hugo Irene Jonas Kira Leon Mona Nils Ophelia "
    "Peter Ruth Stefan Thea Urs Vivian Wanda Arthur Bianca Conrad Dora Edgar Frida Gustav Helen Isaac Joan"
).split()
LAST_NAMES = (
    "Keller Smith Novak Rossi Tanaka Okafor Larsen Weber Silva Brown Moreau Petrov Haddad Kim Jensen Costa Mueller Evans "
    "Lindgren Patel Garcia Nowak Fischer Murphy Hansen Lopez Schmidt Walker Ito Dubois Becker Santos Clarke Meyer Young "
    "Romano Berg Turner Vogel Carter Nagy Olsen Parker Quinn Reyes Stone Thomsen Underwood Vargas Winter Zimmer Abbott "
    "Bishop Calder Dalton Ekström Foster Graham Hoffman Irving Jacobs Knight Lambert Mercer Norris Osborne Pearce Ramsey"
).split()
CITIES = (
    "Oslo Paris Berlin Madrid Rome Vienna Prague Lisbon Dublin London Boston Chicago Toronto Sydney Cairo Nairobi Lagos "
    "Tokyo Osaka Seoul Delhi Mumbai Lima Bogota Santiago Havana Athens Ankara Tehran Baghdad Riga Tallinn Vilnius Warsaw "
    "Budapest Zagreb Belgrade Sofia Geneva Zurich Munich Hamburg Milan Naples Seville Porto Lyon Marseille Antwerp Ghent "
    "Bergen Aarhus Malmo Turku Leeds Bristol Glasgow Cardiff Denver Dallas Seattle Portland Montreal Quebec Perth Hobart"
).split()
LANDS = (
    "France Germany Spain Italy Norway Sweden Finland Poland Austria Greece Turkey Egypt Kenya Nigeria Japan India Brazil "
    "Peru Chile Cuba Canada Mexico Ireland Scotland Wales Hungary Portugal Iceland Estonia Latvia"
).split()
COMPANY_STEMS = (
    "Brightwater Norden Silverline Oakfield Redstone Bluepeak Starling Ironbridge Greenway Hartwell Lakeside Kingsley "
    "Meridian Northgate Orchard Pinewood Quantum Riverton Sunfield Summit Vertex Westbrook Atlas Beacon Crestview Delta "
    "Evergreen Falcon Granite Harbor"
).split()
COMPANY_ENDS = ("Bank", "Motors", "Airlines", "Foods", "Energy", "Records", "Insurance", "Press", "Systems", "Steel")
OBJECTS = (
    "lamp book key cup plate clock chair ball box hat coat bag phone letter knife spoon ring camera guitar violin basket "
    "bottle candle mirror pillow blanket radio hammer ladder bucket brush pen pencil map coin stamp ticket umbrella scarf "
    "glove shoe towel kettle pan bowl vase drum flute rope lantern"
).split()
PLACES = (
    "kitchen garden garage bedroom office cellar attic hall library school shop station park market barn tower "
    "bathroom cabin studio stable harbor museum theater bakery"
).split()
COLOURS = "red blue green yellow black white brown orange purple grey pink silver".split()
FOODS = "apples bread cheese rice fish soup cake eggs grapes pasta honey nuts plums beans pears".split()

# English noun, German noun, gender (m, f, n)
NOUNS = (
    ("dog", "Hund", "m"), ("cat", "Katze", "f"), ("house", "Haus", "n"), ("man", "Mann", "m"), ("woman", "Frau", "f"),
    ("child", "Kind", "n"), ("car", "Auto", "n"), ("book", "Buch", "n"), ("table", "Tisch", "m"), ("door", "Tür", "f"),
    ("window", "Fenster", "n"), ("tree", "Baum", "m"), ("flower", "Blume", "f"), ("bird", "Vogel", "m"),
    ("horse", "Pferd", "n"), ("friend", "Freund", "m"), ("sister", "Schwester", "f"), ("brother", "Bruder", "m"),
    ("teacher", "Lehrer", "m"), ("city", "Stadt", "f"), ("street", "Straße", "f"), ("river", "Fluss", "m"),
    ("school", "Schule", "f"), ("train", "Zug", "m"), ("ship", "Schiff", "n"), ("letter", "Brief", "m"),
    ("lamp", "Lampe", "f"), ("chair", "Stuhl", "m"), ("bed", "Bett", "n"), ("room", "Zimmer", "n"),
    ("garden", "Garten", "m"), ("apple", "Apfel", "m"), ("egg", "Ei", "n"), ("cheese", "Käse", "m"),
    ("bread", "Brot", "n"), ("soup", "Suppe", "f"), ("clock", "Uhr", "f"), ("bag", "Tasche", "f"), ("hat", "Hut", "m"),
    ("picture", "Bild", "n"), ("key", "Schlüssel", "m"), ("bridge", "Brücke", "f"), ("village", "Dorf", "n"),
    ("church", "Kirche", "f"), ("knife", "Messer", "n"), ("glass", "Glas", "n"), ("cup", "Tasse", "f"),
    ("plate", "Teller", "m"), ("boat", "Boot", "n"), ("cow", "Kuh", "f"),
)  # fmt: skip
ADJECTIVES = (
    ("big", "groß"), ("small", "klein"), ("old", "alt"), ("new", "neu"), ("beautiful", "schön"), ("good", "gut"),
    ("bad", "schlecht"), ("long", "lang"), ("short", "kurz"), ("red", "rot"), ("blue", "blau"), ("green", "grün"),
    ("black", "schwarz"), ("white", "weiß"), ("warm", "warm"), ("cold", "kalt"), ("fast", "schnell"),
    ("slow", "langsam"), ("heavy", "schwer"), ("light", "leicht"), ("clean", "sauber"), ("dirty", "schmutzig"),
    ("expensive", "teuer"), ("cheap", "billig"), ("quiet", "leise"), ("loud", "laut"), ("strong", "stark"),
    ("weak", "schwach"), ("empty", "leer"), ("full", "voll"),
)  # fmt: skip
FEELINGS = (
    ("tired", "müde"), ("happy", "glücklich"), ("sad", "traurig"), ("hungry", "hungrig"), ("thirsty", "durstig"),
    ("ill", "krank"), ("healthy", "gesund"), ("young", "jung"), ("old", "alt"), ("rich", "reich"), ("poor", "arm"),
    ("late", "spät"), ("here", "hier"), ("at home", "zu Hause"), ("ready", "fertig"), ("alone", "allein"),
)  # fmt: skip
SUBJECTS = (
    ("I am", "Ich bin"), ("you are", "du bist"), ("he is", "er ist"), ("she is", "sie ist"), ("we are", "wir sind"),
    ("they are", "sie sind"),
)  # fmt: skip
INTRANSITIVE = (
    ("sleeps", "schläft"), ("sings", "singt"), ("works", "arbeitet"), ("plays", "spielt"), ("waits", "wartet"),
    ("laughs", "lacht"), ("cries", "weint"), ("runs", "läuft"), ("comes", "kommt"), ("reads", "liest"),
    ("eats", "isst"), ("drinks", "trinkt"), ("dances", "tanzt"), ("swims", "schwimmt"), ("writes", "schreibt"),
)  # fmt: skip
TRANSITIVE = (
    ("sees", "sieht"), ("buys", "kauft"), ("finds", "findet"), ("needs", "braucht"), ("has", "hat"),
    ("paints", "malt"), ("looks for", "sucht"), ("takes", "nimmt"), ("shows", "zeigt"), ("loves", "liebt"),
)  # fmt: skip
TIMES = (
    ("today", "heute"), ("now", "jetzt"), ("often", "oft"), ("always", "immer"), ("never", "nie"), ("here", "hier"),
)  # fmt: skip
BEINGS = ("dog", "cat", "man", "woman", "child", "bird", "horse", "friend", "sister", "brother", "teacher", "cow")

KINDS = (
    ("cat", "animal"), ("dog", "pet"), ("rose", "flower"), ("oak", "tree"), ("car", "vehicle"),
    ("violin", "instrument"), ("trout", "fish"), ("eagle", "bird"), ("hammer", "tool"), ("chair", "object"), ("baker", "worker"),
    ("nurse", "helper"), ("poet", "writer"), ("king", "ruler"), ("robot", "machine"), ("whale", "swimmer"),
    ("spider", "hunter"), ("apple", "fruit"), ("carrot", "vegetable"), ("ruby", "stone"), ("blick", "dax"),
    ("wug", "fep"), ("toma", "zav"), ("gorp", "lorn"), ("plim", "quill"), ("sarn", "tove"),
)  # fmt: skip
CAUSES = (
    ("it rains", "the street is wet"), ("the sun shines", "the snow melts"), ("the alarm rings", "the dog barks"),
    ("the wind blows", "the flag moves"), ("the lamp is on", "the room is bright"),
    ("the train is late", "the people wait"), ("the oven is hot", "the bread bakes"),
    ("the door is open", "the room is cold"), ("the bell rings", "the children run"),
    ("the battery is empty", "the phone is off"), ("the river is high", "the bridge is closed"),
    ("the baby cries", "the father wakes up"), ("the shop is closed", "the street is quiet"),
    ("the fire burns", "the house is warm"),
)  # fmt: skip

PRAISE = (
    "wonderful brilliant charming clever delightful excellent funny great beautiful moving lovely superb witty warm honest "
    "fresh smart touching powerful exciting enjoyable gripping inventive joyful rich amazing perfect entertaining good fine"
).split()
BLAME = (
    "awful boring dull stupid terrible weak lazy tedious clumsy bad ugly empty shallow silly pointless predictable stale "
    "messy tired bland annoying slow poor flat lifeless horrible disappointing forgettable unpleasant tiresome"
).split()
LIKED = (
    "I loved every minute", "it made me laugh and cry", "I would watch it again", "a joy to watch", "worth every minute",
    "a treat for the whole family", "it deserves a large audience", "one of the best of the year", "I left with a smile",
    "a triumph", "a small gem", "it works from start to finish", "the cast is a joy", "a film to remember",
)  # fmt: skip
DISLIKED = (
    "I was bored after ten minutes", "a waste of time", "I left early", "nobody should see it", "it falls apart",
    "it goes nowhere", "the jokes fall flat", "it makes no sense", "one of the worst of the year", "there is no story",
    "it fails in every way", "a mess from start to finish", "the plot never works", "a film to forget",
)  # fmt: skip
FILM = "film movie comedy drama story thriller sequel picture".split()
PARTS = "plot script acting cast dialogue music ending hero camera humour direction story".split()
