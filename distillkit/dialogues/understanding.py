"""Words to acts and back, for both sides of the desk.

Visitors' words are understood in context: an elliptical "four" answers what the desk just asked.
Everything here reads the visible text alone.
"""

import re
from functools import lru_cache
from itertools import accumulate
from random import Random

from distillkit.dialogues import desk_phrases, visitor_phrases
from distillkit.dialogues.grammar import Act, Phrase, rank_weights, weighted_index

WISHES = ("want", "want_next")  # one act to the desk; visitors word the later ones differently
_NAME = r"(?:[A-Z][a-z]+(?: [A-Z][a-z]+)?|R\d\d)"
_DESK_VALUES = {
    "cost": r"\d\d\d?",
    "rating": r"\d",
    "leaves": r"\d\d? [ap]m",
    "hours": r"\d\d? am",
    "time": r"\d pm",
    "instead": r"(?:\d pm|[a-z]+day)",
    "day": r"[a-z]+day",
    "reference": r"[A-Z]\d[A-Z]\d",
    "phone": r"\d{4}",
    "street": r"\d\d? [A-Z][a-z]+ [A-Z][a-z]+",
    "platform": r"\d",
    "duration": r"\d+ minutes",
    "domain": r"(?:restaurant|hotel|museum|train)",
}
_MEANING = {
    slot: {surface: value for value, surfaces in table.items() for surface in surfaces}
    for slot, table in visitor_phrases.SURFACES.items()
}


def _visitor_value(slot: str) -> str:
    if slot == "name":
        return _NAME
    if slot == "rating":
        return r"\d"
    if slot == "city":
        return "[A-Z][a-z]+"
    surfaces = sorted(_MEANING[slot], key=len, reverse=True)
    return "|".join(re.escape(surface) for surface in surfaces)


def _desk_value(slot: str) -> str:
    kind = slot.rstrip("12")
    return _NAME if kind == "name" else _DESK_VALUES[kind]


_VISITOR = [
    (kind, domain, Phrase(pattern, _visitor_value))
    for kind, domain, pattern in visitor_phrases.PATTERNS
]
_DESK = {key: Phrase(pattern, _desk_value) for key, pattern in desk_phrases.PATTERNS.items()}


@lru_cache(maxsize=4096)
def _wordings(kind: str, domain: str, slots: frozenset[str]) -> list[Phrase]:
    given = dict.fromkeys(slots, "")
    found = [
        phrase
        for act, counter, phrase in _VISITOR
        if act == kind and counter == domain and phrase.fits(given)
    ]
    if not found:
        raise ValueError(f"visitors have no words for {kind} {domain} with {sorted(slots)}")
    return found


def visitor_says(act: Act, rng: Random) -> str:
    """Word a visitor's act."""
    slots = dict(act.slots)
    domain = slots.pop("domain", "") if act.kind in WISHES else ""
    spoken = {slot: _surface(slot, value, rng) for slot, value in slots.items()}
    options = _wordings(act.kind, domain, frozenset(spoken))
    return options[weighted_index(rank_weights(len(options)), rng)].sample(spoken, rng)


def _surface(slot: str, value: str, rng: Random) -> str:
    table = visitor_phrases.SURFACES.get(slot)
    if table is None:
        return value
    surfaces = table[value]
    return surfaces[weighted_index(rank_weights(len(surfaces)), rng)]


def understand_visitor(text: str, pending: str | None = None) -> Act | None:
    """The act behind a visitor's words; ``pending`` is the slot that the desk asked for."""
    matches = [act for act in _visitor_acts(text)]
    if not matches:
        return None
    for act in matches:
        if act.kind == "inform" and pending in act.slots:
            return act
    others = [act for act in matches if act.kind != "inform"]
    return (others or matches)[0]


@lru_cache(maxsize=65536)
def _visitor_acts(text: str) -> tuple[Act, ...]:
    found = []
    for kind, domain, phrase in _VISITOR:
        groups = phrase.match(text)
        if groups is not None:
            slots = {slot: _MEANING.get(slot, {}).get(said, said) for slot, said in groups.items()}
            if domain:
                slots = {"domain": domain, **slots}
            found.append(Act("want" if kind in WISHES else kind, slots))
    return tuple(found)


@lru_cache(maxsize=4096)
def _desk_wordings(key: str, slots: frozenset[str]) -> tuple[list[str], list[float], list[float]]:
    rows = _DESK[key].realisations(slots)
    weights = [weight for weight, _ in rows]
    return [text for _, text in rows], weights, list(accumulate(weights))


def desk_wordings(act: Act) -> list[tuple[float, str]]:
    """Every wording of a desk's act with its probability; they sum to one."""
    texts, weights, _ = _desk_wordings(act.kind, frozenset(act.slots))
    return [
        (weight, text.format_map(act.slots)) for weight, text in zip(weights, texts, strict=True)
    ]


def desk_says(act: Act, rng: Random) -> str:
    """Word a desk's act."""
    texts, weights, _ = _desk_wordings(act.kind, frozenset(act.slots))
    return texts[weighted_index(weights, rng)].format_map(act.slots)


@lru_cache(maxsize=65536)
def understand_desk(text: str) -> Act | None:
    """The act behind the desk's (or a model's) words, or None where a visitor would be lost."""
    for key, phrase in _DESK.items():
        slots = phrase.match(text)
        if slots is not None:
            return Act(key, slots)
    return None
