"""An imaginary town: what can be visited, booked and asked about.

A world is drawn from a split and a number and is the same on every platform. Names of the three
splits never meet: a name belongs to the split that its checksum says, so a model that is tested on
the ``test`` worlds has to copy names that it has never seen.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from random import Random
from zlib import crc32

from distillkit.dialogues.grammar import pick

SPLITS = ("train", "development", "test")
WORLDS_PER_SPLIT = 200

AREAS = ("centre", "north", "south", "east", "west", "harbour", "riverside", "hillside")
FOODS = (
    "thai italian indian chinese french greek turkish korean mexican spanish lebanese "
    "vietnamese japanese ethiopian vegan seafood"
).split()
PRICES = ("cheap", "moderate", "expensive")
EXTRAS = ("parking", "breakfast", "pool", "pets", "gym", "wifi")
KINDS = ("art", "science", "history", "toys", "ships", "railways", "photography", "music", "nature")
PARTS = ("morning", "afternoon", "evening")
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
HOURS = tuple(f"{hour} pm" for hour in range(1, 10))
PEOPLE = tuple(str(count) for count in range(1, 9))
NIGHTS = tuple(str(count) for count in range(1, 8))


@dataclass(frozen=True)
class Domain:
    """What one counter of the desk can search for, book and tell."""

    name: str
    search: tuple[str, ...]
    book: tuple[str, ...]
    facts: tuple[str, ...]
    columns: tuple[str, str]  # what a search result tells of each row, beside its name
    flexible: str | None  # the booking slot that may turn out to be taken


DOMAINS = {
    domain.name: domain
    for domain in (
        Domain(
            "restaurant",
            ("area", "food", "price"),
            ("people", "day", "time"),
            ("phone", "street"),
            ("cost", "rating"),
            "time",
        ),
        Domain(
            "hotel",
            ("area", "price", "extra"),
            ("people", "day", "nights"),
            ("phone", "street"),
            ("cost", "rating"),
            "day",
        ),
        Domain(
            "museum",
            ("area", "kind"),
            ("people", "day"),
            ("phone", "hours"),
            ("cost", "rating"),
            "day",
        ),
        Domain(
            "train",
            ("city", "day", "part"),
            ("people",),
            ("platform", "duration"),
            ("cost", "leaves"),
            None,
        ),
    )
}

_STARTS = (
    "Bar Bel Bram Cal Cor Dal Del Dor Elm Fal Fen Gar Gil Har Hol Jar Kar Kel Lam Lin Lor Mal Mar "
    "Mel Mor Nor Nel Or Pel Per Quin Ram Ros Sal Sar Sel Sor Tal Tar Tem Tor Ul Val Var Vel Wil "
    "Yar Zan Zel Ash Brin Clar"
).split()
_ENDS = (
    "bo da dine do fia go la lo ma mo na nia no ra ri ro sa so ta te tina to va vi vo za zio dra "
    "gan lin mire nell rick sel ton vale wyn beck bra cia cova den dora fell gia hart lach lina "
    "lund mond pella ric rona sta tella tor veda wald wood"
).split()
_CITY_ENDS = "bury by field ford ham mouth port stead wick worth".split()
_SUFFIXES = {
    "restaurant": ["", "", "", "Kitchen", "Table", "Garden"],
    "hotel": ["House", "Inn", "Lodge", "Court"],
    "museum": ["Gallery", "Hall", "Collection"],
}
_STREETS = ["Street", "Lane", "Road", "Row", "Square"]


@dataclass(frozen=True, eq=False)
class Place:
    """One row of the knowledge base; ``traits`` are what it can be searched by."""

    name: str
    domain: str
    traits: dict[str, str]
    columns: tuple[str, str]
    facts: dict[str, str]


@dataclass
class World:
    """A town's knowledge base, and the tools that read it and book in it."""

    split: str
    number: int
    places: dict[str, list[Place]]
    _by_name: dict[str, Place] = field(default_factory=dict)
    _having: dict[tuple[str, str, str], list[Place]] = field(default_factory=dict)
    _found: dict[tuple, list[Place]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._by_name = {place.name: place for group in self.places.values() for place in group}
        for place in self._by_name.values():
            for slot, values in place.traits.items():
                for value in values.split():
                    self._having.setdefault((place.domain, slot, value), []).append(place)

    def place(self, name: str) -> Place | None:
        return self._by_name.get(name)

    def search(self, domain: str, wishes: dict[str, str]) -> list[Place]:
        """The first two places that have every wished trait; ``any`` asks for nothing.

        As search tools do, it lists the cheapest first, and trains in the order of the day.
        """
        wished = sorted(item for item in wishes.items() if item[1] != "any")
        key = (domain, *wished)
        if key not in self._found:
            groups = [self._having.get((domain, slot, value), []) for slot, value in wished]
            first, *others = sorted(groups, key=len) or [self.places.get(domain, [])]
            found = (p for p in first if all(p in group for group in others))
            self._found[key] = list(islice(found, 2))
        return self._found[key]

    def taken(self, name: str, values: dict[str, str]) -> bool:
        """Is this booking impossible? About one in eight is."""
        place = self._by_name[name]
        flexible = DOMAINS[place.domain].flexible
        if flexible is None:
            return False
        key = f"{self.split}/{self.number}/{name}/{values.get('day')}/{values.get(flexible)}"
        return crc32(key.encode()) % 8 == 0

    def free_instead(self, name: str, values: dict[str, str], skip: int = 0) -> str | None:
        """Another value of the flexible slot that is free (the nearest later one, in a circle)."""
        slot = DOMAINS[self._by_name[name].domain].flexible
        options = {"day": DAYS, "time": HOURS}[slot or "day"]
        at = options.index(values[slot or "day"])
        for step in range(1, len(options)):
            other = options[(at + step) % len(options)]
            if not self.taken(name, {**values, slot or "day": other}):
                if skip == 0:
                    return other
                skip -= 1
        return None

    def reference(self, name: str, values: dict[str, str]) -> str:
        """The booking reference: a letter, a digit, a letter, a digit."""
        key = f"{self.split}/{self.number}/{name}/{sorted(values.items())}"
        code = crc32(key.encode())
        letters = "ABCDEFGHJKLMNPQRSTUVWXYZ"
        return (
            f"{letters[code % 24]}{code // 24 % 10}{letters[code // 240 % 24]}{code // 5760 % 10}"
        )

    # The tools that an assistant can call ------------------------------------------------------

    def call(self, function: dict) -> str:
        """What a tool call returns; a call that makes no sense returns an error text.

        ``function`` is {"name": "search" | "details" | "book", "arguments": {…}}; a model may put
        anything there.
        """
        if not arguments_are_words(function):
            return "error: no such call"
        tools = {"search": self._search, "details": self._details, "book": self._book}
        tool = tools.get(function["name"])
        return (tool(dict(function["arguments"])) if tool else None) or "error: no such call"

    def _search(self, arguments: dict[str, str]) -> str | None:
        domain = arguments.pop("domain", None)
        if domain not in DOMAINS:
            return None
        return show_rows([(p.name, *p.columns) for p in self.search(domain, arguments)])

    def _details(self, arguments: dict[str, str]) -> str | None:
        place, fact = self.place(arguments.get("name", "")), arguments.get("about", "")
        return f"{fact} {place.facts[fact]}" if place is not None and fact in place.facts else None

    def _book(self, arguments: dict[str, str]) -> str | None:
        place = self.place(arguments.pop("name", ""))
        if place is None or arguments.keys() != set(DOMAINS[place.domain].book):
            return None
        if (
            arguments.get("day", DAYS[0]) not in DAYS
            or arguments.get("time", HOURS[0]) not in HOURS
        ):
            return None
        if self.taken(place.name, arguments):
            return f"taken, free instead: {self.free_instead(place.name, arguments)}"
        return f"booked: {self.reference(place.name, arguments)}"


def arguments_are_words(function: dict) -> bool:
    """Whether all arguments of a call are words."""
    arguments = function["arguments"]
    return isinstance(arguments, dict) and all(isinstance(v, str) for v in arguments.values())


def show_rows(rows: list[tuple[str, str, str]]) -> str:
    """What the search tool returns."""
    return "; ".join(", ".join(row) for row in rows) or "nothing found"


@lru_cache(maxsize=3 * WORLDS_PER_SPLIT)
def draw_world(split: str, number: int) -> World:
    """The world of this split and number; raises ValueError for an unknown split."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}: expected one of {', '.join(SPLITS)}")
    rng = Random(f"world/{split}/{number}")
    used: set[str] = set()
    cities = [_draw_name(split, rng, used, _CITY_ENDS, [""]) for _ in range(8)]
    places = {
        "restaurant": [_restaurant(split, rng, used) for _ in range(110)],
        "hotel": [_hotel(split, rng, used) for _ in range(48)],
        "museum": [_museum(split, rng, used) for _ in range(56)],
        "train": _trains(rng, cities),
    }
    for domain in ("restaurant", "hotel", "museum"):
        places[domain].sort(key=lambda place: int(place.columns[0]))
    return World(split, number, places)


def name_split(name: str) -> str:
    """The split that a name's first word belongs to: 8 of 10 train, 1 development, 1 test."""
    bucket = crc32(name.split()[0].encode()) % 10
    return "train" if bucket < 8 else SPLITS[bucket - 7]


def _draw_name(
    split: str, rng: Random, used: set[str], ends: list[str], suffixes: list[str]
) -> str:
    while True:
        stem = pick(_STARTS, rng) + pick(ends, rng)
        if stem not in used and name_split(stem) == split:
            used.add(stem)
            return f"{stem} {pick(suffixes, rng)}".strip()


def _facts(split: str, rng: Random) -> dict[str, str]:
    street = _draw_name(split, rng, set(), _ENDS, _STREETS)
    return {
        "phone": str(1000 + int(rng.random() * 9000)),
        "street": f"{1 + int(rng.random() * 99)} {street}",
        "hours": f"{pick(('8', '9', '10', '11'), rng)} am",
    }


def _place(
    domain: str, name: str, traits: dict[str, str], cost: int, facts: dict, rng: Random
) -> Place:
    kept = {fact: facts[fact] for fact in DOMAINS[domain].facts}
    return Place(name, domain, traits, (str(cost), str(3 + int(rng.random() * 7))), kept)


def _restaurant(split: str, rng: Random, used: set[str]) -> Place:
    name = _draw_name(split, rng, used, _ENDS, _SUFFIXES["restaurant"])
    price = pick(PRICES, rng)
    cost = 10 + 25 * PRICES.index(price) + 5 * int(rng.random() * 5)
    traits = {"area": pick(AREAS, rng), "food": pick(FOODS, rng), "price": price}
    return _place("restaurant", name, traits, cost, _facts(split, rng), rng)


def _hotel(split: str, rng: Random, used: set[str]) -> Place:
    name = _draw_name(split, rng, used, _ENDS, _SUFFIXES["hotel"])
    price = pick(PRICES, rng)
    cost = 30 + 20 * PRICES.index(price) + 5 * int(rng.random() * 4)
    extras = [extra for extra in EXTRAS if rng.random() < 0.45] or ["wifi"]
    traits = {"area": pick(AREAS, rng), "price": price, "extra": " ".join(extras)}
    return _place("hotel", name, traits, cost, _facts(split, rng), rng)


def _museum(split: str, rng: Random, used: set[str]) -> Place:
    name = _draw_name(split, rng, used, _ENDS, _SUFFIXES["museum"])
    traits = {"area": pick(AREAS, rng), "kind": pick(KINDS, rng)}
    cost = 10 + 5 * int(rng.random() * 6)
    return _place("museum", name, traits, cost, _facts(split, rng), rng)


def _trains(rng: Random, cities: list[str]) -> list[Place]:
    numbers = sorted(range(10, 100), key=lambda _: rng.random())
    trains = []
    for city in cities:
        hours = sorted(sorted(range(6, 22), key=lambda _: rng.random())[:8])
        for hour in hours:
            part = PARTS[0 if hour < 12 else 1 if hour < 17 else 2]
            leaves = f"{hour if hour <= 12 else hour - 12} {'am' if hour < 12 else 'pm'}"
            days = " ".join(day for day in DAYS if rng.random() < 0.5)
            facts = {
                "platform": str(1 + int(rng.random() * 9)),
                "duration": f"{5 * (3 + int(rng.random() * 16))} minutes",
            }
            traits = {"city": city, "day": days or "monday", "part": part}
            cost = str(10 + 5 * int(rng.random() * 17))
            trains.append(Place(f"R{numbers.pop()}", "train", traits, (cost, leaves), facts))
    return trains
