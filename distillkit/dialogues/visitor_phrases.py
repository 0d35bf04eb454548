"""What visitors say: the surfaces of values, and the patterns of each act.

Earlier alternatives are commoner (weight 1/rank), so a student with few conversations has not seen
the later ones. Visitors write as people type: in lower case, names apart.
"""

# slot → canonical value → what visitors say; every surface belongs to one value of its slot
SURFACES: dict[str, dict[str, list[str]]] = {
    "area": {
        "centre": ["in the centre", "downtown", "right in the middle of town"],
        "north": ["in the north", "up north", "on the northern side"],
        "south": ["in the south", "down south", "on the southern side"],
        "east": ["in the east", "out east", "on the eastern edge"],
        "west": ["in the west", "out west", "on the western edge"],
        "harbour": ["by the harbour", "at the docks", "where the boats are"],
        "riverside": ["on the riverside", "by the river", "along the water"],
        "hillside": ["on the hillside", "up the hill", "with a view over the valley"],
        "same:restaurant": ["near the restaurant", "in the same area as the restaurant"],
        "same:hotel": ["near the hotel", "in the same area as the hotel"],
        "same:museum": ["near the museum", "in the same area as the museum"],
    },
    "food": {
        "thai": ["thai food", "green curry", "pad thai"],
        "italian": ["italian food", "pizza", "pasta"],
        "indian": ["indian food", "tandoori", "masala"],
        "chinese": ["chinese food", "dumplings", "peking duck"],
        "french": ["french food", "onion soup", "crepes"],
        "greek": ["greek food", "moussaka", "souvlaki"],
        "turkish": ["turkish food", "kebab", "baklava"],
        "korean": ["korean food", "bibimbap", "kimchi"],
        "mexican": ["mexican food", "tacos", "burritos"],
        "spanish": ["spanish food", "tapas", "paella"],
        "lebanese": ["lebanese food", "falafel", "hummus"],
        "vietnamese": ["vietnamese food", "pho", "summer rolls"],
        "japanese": ["japanese food", "sushi", "ramen"],
        "ethiopian": ["ethiopian food", "injera", "lentil stew"],
        "vegan": ["vegan food", "nothing from animals", "plants only"],
        "seafood": ["seafood", "fresh fish", "oysters"],
    },
    "price": {
        "cheap": ["cheap", "affordable", "inexpensive", "easy on the wallet"],
        "moderate": ["moderate", "mid range", "reasonably priced", "neither cheap nor dear"],
        "expensive": ["expensive", "fancy", "upmarket", "luxurious"],
    },
    "extra": {
        "parking": ["parking", "a garage", "space for our car"],
        "breakfast": ["breakfast", "a morning meal", "eggs and coffee included"],
        "pool": ["a pool", "swimming", "somewhere to swim"],
        "pets": ["pets allowed", "room for my dog", "a warm welcome for our cat"],
        "gym": ["a gym", "a fitness room", "weights to lift"],
        "wifi": ["wifi", "internet", "a good connection for work"],
    },
    "kind": {
        "art": ["art", "paintings", "sculpture"],
        "science": ["science", "experiments", "physics"],
        "history": ["history", "the past", "old kings and wars"],
        "toys": ["toys", "dolls", "teddy bears"],
        "ships": ["ships", "sailing", "life at sea"],
        "railways": ["railways", "steam engines", "locomotives"],
        "photography": ["photography", "old cameras", "portraits"],
        "music": ["music", "instruments", "opera"],
        "nature": ["nature", "dinosaurs", "butterflies"],
    },
    "part": {
        "morning": ["in the morning", "before noon", "early"],
        "afternoon": ["in the afternoon", "after lunch", "around teatime"],
        "evening": ["in the evening", "after work", "late"],
    },
    "day": {
        **{
            day: [day]
            for day in (
                "monday",
                "tuesday",
                "wednesday",
                "thursday",
                "friday",
                "saturday",
                "sunday",
            )
        },
        "same:restaurant": ["the same day as the restaurant"],
        "same:hotel": ["the day we arrive at the hotel", "the same day as the hotel"],
        "same:museum": ["the same day as the museum"],
    },
    "time": {
        f"{hour} pm": [f"{hour} pm", f"{word} in the {part}", f"{12 + hour}:00"]
        for hour, word, part in (
            (1, "one", "afternoon"),
            (2, "two", "afternoon"),
            (3, "three", "afternoon"),
            (4, "four", "afternoon"),
            (5, "five", "afternoon"),
            (6, "six", "evening"),
            (7, "seven", "evening"),
            (8, "eight", "evening"),
            (9, "nine", "evening"),
        )
    },
    "people": {
        "1": ["1", "one person", "just me", "myself only"],
        "2": ["2", "two", "a couple", "my wife and me"],
        "3": ["3", "three", "the three of us"],
        "4": ["4", "four", "two couples", "a family of four"],
        "5": ["5", "five", "five guests"],
        "6": ["6", "six", "half a dozen"],
        "7": ["7", "seven", "seven adults"],
        "8": ["8", "eight", "a party of eight"],
        "same:restaurant": ["the same group as at the restaurant"],
        "same:hotel": ["everyone from the hotel", "the same group as at the hotel"],
        "same:museum": ["the same group as at the museum"],
        "same:train": ["everyone on the train"],
    },
    "nights": {
        "1": ["1 night", "a single night"],
        "2": ["2 nights", "two nights", "a weekend"],
        "3": ["3 nights", "three nights"],
        "4": ["4 nights", "four nights"],
        "5": ["5 nights", "five nights"],
        "6": ["6 nights", "six nights"],
        "7": ["7 nights", "seven nights", "a week"],
    },
    "fact": {
        "phone": ["the phone number", "the telephone", "the number to call"],
        "street": ["the address", "the street", "the exact location"],
        "hours": ["the opening time", "the hour of entry", "the time the doors open"],
        "platform": ["the platform", "the right track"],
        "duration": ["the travel time", "the length of the ride"],
    },
    "by": {
        "first": ["the first one", "the first", "number one on your list"],
        "second": ["the second one", "the second", "the next on your list"],
        "last": ["the last one", "the one you named last"],
        "cheaper": ["the cheaper one", "the less expensive one", "whichever costs less"],
        "dearer": ["the more expensive one", "the dearer one", "the pricier one"],
        "earlier": ["the earlier one", "whichever leaves sooner", "the first departure"],
        "later": ["the later one", "whichever leaves last", "the one after that"],
    },
    "topic": {
        "feeling": ["how are you today", "how is it going", "are you well", "busy day over there"],
        "weather": [
            "lovely weather today",
            "what awful rain",
            "is it always this windy",
            "will the sun come out",
        ],
        "name": ["what is your name", "who am i talking to", "what should i call you"],
        "robot": ["are you a robot", "is there a human behind this", "am i chatting to a machine"],
        "town": ["is this a nice town", "do you like living here", "what is this place famous for"],
        "joke": ["tell me a joke", "say something funny", "make me laugh"],
        "praise": ["you are very helpful", "wow you are quick", "i like your manners"],
        "mood": ["i am so tired", "what a long journey", "my feet hurt", "i am excited to be here"],
    },
    "errand": {
        str(number): [text]
        for number, text in enumerate(
            (
                "fix my bicycle",
                "do my taxes",
                "translate a poem",
                "write my essay",
                "water my plants",
                "repair this laptop",
                "walk the neighbour's puppy",
                "lend us some money",
                "give medical advice",
                "sell my old sofa",
                "solve a riddle in algebra",
                "find me a lawyer",
                "order flowers for grandma",
                "send a parcel abroad",
                "print forty leaflets",
                "cut my hair",
                "explain quantum theory",
                "renew a passport",
                "babysit twins tonight",
                "paint our kitchen",
                "tune a piano",
                "knit a scarf",
                "predict the lottery",
                "check my blood pressure",
                "buy shares in oil",
                "teach us judo",
                "settle a quarrel between brothers",
                "find a lost umbrella",
                "bake a wedding cake",
                "carry these boxes upstairs",
            )
        )
    },
    "about": {
        "reference": ["the booking code", "the reference"],
        "name": ["the name"],
    },
    "domain": {
        "restaurant": ["the restaurant", "the table"],
        "hotel": ["the hotel", "the room"],
        "museum": ["the museum", "the exhibition"],
        "train": ["the train", "the ride"],
    },
}
_HELLO = "(|hello, |hi there, |good morning, |hey, |good evening, |excuse me, )"
_WANT = "(i need|i am looking for|could you find me|we want|i would like|please suggest|is there)"
_OPENER = "(|great. |thank you. |and |wonderful. |also, |one more thing: |perfect, next )"
_EAT = "(a restaurant|a place to eat|somewhere to eat|a table somewhere|a spot for dinner)"
_STAY = "(a hotel|a place to stay|a room|somewhere to sleep|a guesthouse)"
_VISIT = "(a museum|something to visit|an exhibition|a collection|a rainy day idea)"
_RIDE = "(a train|a ticket|a seat on the train|the railway connection)"
_PRICE = "(, {price} please|, it should be {price}|, ideally {price}|, {price} if possible)"
_FILL = "(|ok, |right, |well, |hmm, |let me see, )"
_SORRY = "(sorry, |actually, |wait, |no, |hold on, |on second thoughts, |oh dear, )"
_PLEASE = "(| please|, thanks|, if you can)"
_BOOK = (
    "(please book it|yes, book it|reserve it|i will take it|go ahead and book|let us do that one)"
)

_LEADS = {"want": _HELLO, "want_next": _OPENER}  # the first wish of a visit, and later ones
_WISHES = [
    (
        "restaurant",
        f"{_WANT} {_EAT}[ {{area}}][( that serves| with|, preferably) {{food}}][{_PRICE}]",
    ),
    (
        "restaurant",
        "(we fancy|i feel like|i am hungry for|our group craves) {food}[ {area}]" + f"[{_PRICE}]",
    ),
    (
        "hotel",
        f"{_WANT} {_STAY}[ {{area}}][( with| that has|, if possible with) {{extra}}][{_PRICE}]",
    ),
    (
        "hotel",
        "(where can we stay|where could i sleep|help us find a bed)[ {area}][ with {extra}]"
        f"[{_PRICE}]",
    ),
    ("museum", f"{_WANT} {_VISIT}[ {{area}}][( about| on|, say about) {{kind}}]"),
    (
        "museum",
        "(i love|my kids adore|we are curious about|i study) {kind}, "
        "(where should we go|what can we see)[ {area}]?",
    ),
    ("train", f"{_WANT} {_RIDE}[ to {{city}}][ on {{day}}][ {{part}}]"),
    (
        "train",
        "(i have to get|we travel|we must go|my aunt expects me) to {city}[ on {day}][ {part}]",
    ),
]

# (kind of act, domain or "", pattern)
PATTERNS: list[tuple[str, str, str]] = [
    ("hello", "", "(hello|hi|good morning|hey|good evening|hello there|greetings)"),
    ("chat", "", "(|hi, |by the way, |haha, |well, ){topic}"),
    (
        "off_topic",
        "",
        "(can you {errand}?|could you {errand}?|would you {errand} for me?|i want you to {errand}|"
        "who could {errand} around here?)",
    ),
    *((kind, domain, lead + body) for domain, body in _WISHES for kind, lead in _LEADS.items()),
    ("inform", "", f"{_FILL}{{area}}{_PLEASE}"),
    ("inform", "", f"{_FILL}{{food}}{_PLEASE}"),
    ("inform", "", f"{_FILL}(|something |it can be |rather ){{price}}{_PLEASE}"),
    ("inform", "", f"{_FILL}(|with |we need |it must have ){{extra}}{_PLEASE}"),
    ("inform", "", f"{_FILL}(|about |something on |mostly ){{kind}}{_PLEASE}"),
    ("inform", "", f"{_FILL}(|to |all the way to ){{city}}{_PLEASE}"),
    ("inform", "", f"{_FILL}(|on |let us say ){{day}}{_PLEASE}"),
    ("inform", "", f"{_FILL}{{part}}{_PLEASE}"),
    ("inform", "", f"{_FILL}(|at |around |make it ){{time}}{_PLEASE}"),
    ("inform", "", f"{_FILL}(|for |we are |there will be ){{people}}{_PLEASE}"),
    ("inform", "", f"{_FILL}(|for |we stay ){{nights}}{_PLEASE}"),
    ("inform", "", f"{_FILL}(|for ){{people}}, on {{day}}{_PLEASE}"),
    ("inform", "", f"{_FILL}(|on ){{day}} at {{time}}{_PLEASE}"),
    ("inform", "", f"{_FILL}(|on ){{day}} for {{nights}}{_PLEASE}"),
    (
        "any",
        "",
        f"{_FILL}(i do not mind|anything is fine|no preference|whatever you like|it does not matter|"
        "surprise me|you choose)",
    ),
    ("change", "", f"{_SORRY}(i meant |make that |rather |it should be ){{area}}(| instead)"),
    ("change", "", f"{_SORRY}(i meant |make that |rather |we would prefer ){{food}}(| instead)"),
    (
        "change",
        "",
        f"{_SORRY}(i meant |make that |rather something |it should be ){{price}}(| instead)",
    ),
    ("change", "", f"{_SORRY}(i meant |make that |rather |we need one with ){{extra}}(| instead)"),
    ("change", "", f"{_SORRY}(i meant |make that |rather |something about ){{kind}}(| instead)"),
    ("change", "", f"{_SORRY}(i meant |make that |we travel |it should be ){{part}}(| instead)"),
    ("change", "", f"{_SORRY}(i meant |make that |it must be ){{day}}(| instead)"),
    ("change", "", f"{_SORRY}(i meant |make that |we will be ){{people}}(| instead)"),
    ("other", "", "(then {time}|no, {time} would be better|could we try {time} instead)"),
    ("other", "", "(then {day}|no, {day} would be better|could we try {day} instead)"),
    ("pick", "", f"{_FILL}(|i take |i prefer |give me ){{by}}{_PLEASE}"),
    (
        "pick",
        "",
        f"{_FILL}(|i take |i prefer )the one (rated {{rating}}|with {{rating}} points|"
        f"that guests gave a {{rating}}){_PLEASE}",
    ),
    ("pick", "", f"{_FILL}(|i take |let us go with |i like ){{name}}(| then| please)"),
    (
        "pick_it",
        "",
        "(yes, that one|sounds good|that will do|perfect, thanks|yes please, that suits us)",
    ),
    (
        "book",
        "",
        f"{_BOOK}[ for {{people}}][ on {{day}}][ at {{time}}][, staying {{nights}}](|, thanks)",
    ),
    (
        "ask",
        "",
        "(what is {fact}?|tell me {fact}|i need {fact}|and {fact}?|could you give me {fact}?|"
        "do you know {fact}?)",
    ),
    (
        "recall",
        "",
        "(what was {about} for {domain} again?|sorry, {about} for {domain}?|"
        "i forgot {about} for {domain}|remind me of {about} for {domain})",
    ),
    ("yes", "", "(yes|yes please|that works|ok, do it|sure|of course|fine by us)"),
    (
        "pardon",
        "",
        "(sorry, what was that?|pardon?|could you say that again?|i did not catch that|come again?)",
    ),
    (
        "nothing",
        "",
        "(no, that is all|that is everything, thank you|nothing else|no thanks, bye|"
        "we are done, goodbye|cheers, see you|all set, have a nice day)",
    ),
]
