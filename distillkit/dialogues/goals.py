"""What a visitor wants: one to three tasks, with the twists that make a dialogue out of a form."""

from dataclasses import dataclass, field
from random import Random

from distillkit.dialogues.desk import choose
from distillkit.dialogues.grammar import pick
from distillkit.dialogues.world import (
    AREAS,
    DAYS,
    DOMAINS,
    EXTRAS,
    FOODS,
    HOURS,
    KINDS,
    NIGHTS,
    PARTS,
    PEOPLE,
    PRICES,
    Place,
    World,
)

VALUES = {
    "area": AREAS,
    "food": FOODS,
    "price": PRICES,
    "extra": EXTRAS,
    "kind": KINDS,
    "part": PARTS,
    "day": DAYS,
    "time": HOURS,
    "people": PEOPLE,
    "nights": NIGHTS,
}
_NEVER_ANY = ("city", "day")


@dataclass
class Task:
    """One errand at one counter of the desk."""

    domain: str
    wishes: dict[str, str]  # what the visitor really wants
    said: dict[str, str]  # what they say first: it may be mistaken, or impossible
    upfront: frozenset[str]  # the slots that they mention unasked
    by: str  # how they choose among the places that are offered
    booking: dict[str, str] | None
    slip: str | None  # a booking slot that they first get wrong
    facts: list[str]
    facts_first: bool
    accepts: bool  # takes the alternative when something is full
    same: dict[str, str] = field(default_factory=dict)  # slot → earlier task's domain


@dataclass
class Goal:
    tasks: list[Task]
    opens_with: str | None  # a greeting or small talk before business
    strays_at: int  # before this task, the visitor asks something that the desk does not do
    asks_again: tuple[str, str] | None  # (reference or name, domain), recalled at the end
    misses: int  # the desk's n-th sentence is not heard (−1: none)


def draw_goal(world: World, rng: Random) -> Goal:
    """Draw what one visitor wants in this world."""
    count = 1 if (chance := rng.random()) < 0.66 else 2 if chance < 0.94 else 3
    domains = sorted(DOMAINS, key=lambda _: rng.random())[:count]
    tasks: list[Task] = []
    for domain in domains:
        tasks.append(_draw_task(world, domain, tasks, rng))
    booked = [task.domain for task in tasks if task.booking is not None]
    again = None
    if booked and rng.random() < 0.25:
        again = (pick(("reference", "name"), rng), pick(booked, rng))
    return Goal(
        tasks=tasks,
        opens_with=pick(("hello", "chat"), rng) if rng.random() < 0.3 else None,
        strays_at=int(rng.random() * count) if rng.random() < 0.2 else -1,
        asks_again=again,
        misses=int(rng.random() * 8) if rng.random() < 0.15 else -1,
    )


def _draw_task(world: World, domain: str, earlier: list[Task], rng: Random) -> Task:
    spec = DOMAINS[domain]
    wishes, same = _draw_wishes(world, domain, earlier, rng)
    booking, slip = None, None
    if rng.random() < 0.75:
        booking = {slot: pick(VALUES[slot], rng) for slot in spec.book}
        for slot in ("people", "day"):
            source = _earlier_with(slot, earlier)
            if slot in booking and source is not None and rng.random() < 0.4:
                booking[slot], same[slot] = _value_of(source, slot), source.domain
        if len(booking) > 1 and rng.random() < 0.15:
            slip = pick([slot for slot in ("people", "day") if slot not in same] or [None], rng)
    count = int(rng.random() * 1.8) if booking else 1 + int(rng.random() * 2)
    facts = sorted(spec.facts, key=lambda _: rng.random())[:count]
    mentioned = [slot for slot in spec.search if rng.random() < 0.6]
    return Task(
        domain=domain,
        wishes=wishes,
        said=_first_said(world, domain, wishes, same, rng),
        upfront=frozenset(slot for slot in mentioned if wishes[slot] != "any"),
        by=_draw_choice(world, domain, wishes, rng),
        booking=booking,
        slip=slip,
        facts=facts,
        facts_first=rng.random() < 0.5,
        accepts=rng.random() < 0.65,
        same=same,
    )


def _draw_wishes(
    world: World, domain: str, earlier: list[Task], rng: Random
) -> tuple[dict[str, str], dict[str, str]]:
    """Wishes that some place fulfils, and which of them refer to an earlier task."""
    spec = DOMAINS[domain]
    source = _earlier_with("area", earlier) if "area" in spec.search else None
    refers = source is not None and rng.random() < 0.4
    for _ in range(8):
        place = pick(world.places[domain], rng)
        wishes = {
            slot: "any"
            if slot not in _NEVER_ANY and rng.random() < 0.15
            else pick(place.traits[slot].split(), rng)
            for slot in spec.search
        }
        if not refers or source is None:
            return wishes, {}
        wishes["area"] = _value_of(source, "area")
        if world.search(domain, wishes):
            return wishes, {"area": source.domain}
        refers = rng.random() < 0.8
    return wishes | {"area": place.traits["area"]}, {}


def _earlier_with(slot: str, earlier: list[Task]) -> Task | None:
    """The last earlier task whose final value of this slot can be referred to."""
    for task in reversed(earlier):
        if slot == "day" and task.domain == "train":
            continue
        if slot == "day" and DOMAINS[task.domain].flexible == "day":
            continue  # it may have been moved
        value = _value_of(task, slot)
        if value not in ("", "any"):
            return task
    return None


def _value_of(task: Task, slot: str) -> str:
    return task.wishes.get(slot) or (task.booking or {}).get(slot, "")


def _first_said(world: World, domain: str, wishes: dict, same: dict, rng: Random) -> dict[str, str]:
    """What is said first: mostly the wishes; sometimes something impossible, or a slip."""
    chance = rng.random()
    slots = [
        slot
        for slot, value in wishes.items()
        if value != "any" and slot not in same and slot in VALUES and slot != "area"
    ]
    if chance >= 0.4 or not slots:
        return wishes
    for _ in range(6):
        slot = pick(slots, rng)
        said = {**wishes, slot: pick(VALUES[slot], rng)}
        empty = not world.search(domain, said)
        if said[slot] != wishes[slot] and empty == (chance < 0.22):
            return said
    return wishes


def _draw_choice(world: World, domain: str, wishes: dict, rng: Random) -> str:
    """A way of choosing that means one place only (no ties)."""
    rows = [(place.name, *place.columns) for place in world.search(domain, wishes)]
    if len(rows) == 1:
        return pick(("it", "it", "name"), rng)
    options = ["first", "second", "last", "name"]
    if domain == "train":
        options += ["earlier", "earlier", "later", "later"]
    else:
        options += ["cheaper", "cheaper", "dearer"] if rows[0][1] != rows[1][1] else []
        options += ["rating", "rating"] if rows[0][2] != rows[1][2] else []
    return pick(options, rng)


def target(world: World, task: Task) -> Place:
    """The place that this task is about."""
    places = world.search(task.domain, task.wishes)
    if task.by in ("it", "name", "rating"):
        return places[-1] if task.by == "rating" else places[0]
    name, _, _ = choose([(place.name, *place.columns) for place in places], task.by)
    return next(place for place in places if place.name == name)
