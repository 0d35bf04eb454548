"""A visitor who pursues a goal by an agenda, whoever serves them.

The visitor reads what the desk (the true one, or a model) says, believes nothing unchecked, and
answers. A falsehood, a wrong booking, or going in circles ends the visit as a failure, with its
reason.
"""

from random import Random

from distillkit.dialogues.goals import VALUES, Goal, Task, target
from distillkit.dialogues.grammar import Act, pick
from distillkit.dialogues.visitor_phrases import SURFACES
from distillkit.dialogues.world import DOMAINS, Place, World

_TELLING = ("want", "want_next", "inform", "change", "any", "book", "other")
PATIENCE = 3  # replies in a visit that lead nowhere


class Failed(Exception):
    """The visit has failed; the message is the reason, from a short list."""


class Visitor:
    """One visitor: ``respond`` maps the desk's act to the visitor's next act."""

    def __init__(self, goal: Goal, world: World, rng: Random):
        self.goal, self.world, self.rng = goal, world, rng
        self.at = -1  # the current task
        self.task: Task | None = None
        self.told: dict[str, str] = {}  # search slots told to the desk, canonical
        self.booking: dict[str, str] = {}  # booking slots told to the desk, canonical
        self.picked = False
        self.booked = False
        self.facts: list[str] = []
        self.asked_fact: str | None = None
        self.memory: dict[tuple[str, str], str] = {}
        self.circles = 0
        self.heard = 0
        self.recall: tuple[str, str] | None = None
        self.asked = ""  # the slot that the desk last asked for
        self.finished = False
        self.last = self._opening()
        self._note(self.last)

    # Speaking ---------------------------------------------------------------------------------

    def _opening(self) -> Act:
        if self.goal.opens_with == "hello":
            return Act("hello")
        if self.goal.opens_with == "chat":
            return Act("chat", {"topic": pick(tuple(SURFACES["topic"]), self.rng)})
        return self._continue()

    def respond(self, act: Act | None) -> Act:
        """The visitor's answer to the desk's act (None: it could not be understood)."""
        self.heard += 1
        if act is None:
            self._lose_patience("spoke unintelligibly")
            return Act("pardon")
        handler = getattr(self, f"_on_{act.kind.split('.')[0]}")
        if self.heard == self.goal.misses + 1 and act.kind.split(".")[0] in ("ask", "offer"):
            return Act("pardon")
        answer = handler(act)
        self._note(answer)
        self.last = answer
        return answer

    def _note(self, act: Act) -> None:
        """Remember what has been told, once it is really said."""
        task = self.task
        if task is None or act.kind not in _TELLING:
            return
        for slot, value in act.slots.items() if act.kind != "any" else [(self.asked, "any")]:
            if value.startswith("same:"):
                value = task.wishes.get(slot) or (task.booking or {}).get(slot, "")
            if slot in DOMAINS[task.domain].search:
                self.told[slot] = value
            elif slot != "domain":
                self.booking[slot] = value

    def _continue(self) -> Act:
        """The next thing to do when the desk is free."""
        task = self.task
        if task is not None and not self.picked:
            self._lose_patience("went in circles")
            return self._want()
        if task is not None:
            steps = [self._next_fact, self._next_booking]
            for step in steps if task.facts_first else reversed(steps):
                if (act := step()) is not None:
                    return act
        if self.at + 1 < len(self.goal.tasks):
            if self.goal.strays_at == self.at + 1:
                self.goal.strays_at = -1
                return Act("off_topic", {"errand": pick(tuple(SURFACES["errand"]), self.rng)})
            self._start(self.at + 1)
            return self._want()
        return self._close()

    def _start(self, number: int) -> None:
        self.at, self.task = number, self.goal.tasks[number]
        self.told, self.booking = {}, {}
        self.picked = self.booked = False
        self.facts = list(self.task.facts)

    def _close(self) -> Act:
        self.task = None
        if self.goal.asks_again is not None:
            about, domain = self.recall = self.goal.asks_again
            self.goal.asks_again = None
            return Act("recall", {"about": about, "domain": domain})
        self.finished = True
        return Act("nothing")

    def _want(self) -> Act:
        task = self.task
        assert task is not None
        slots = {slot: self._say(slot) for slot in task.wishes if slot in task.upfront}
        kind = "want_next" if self.heard else "want"
        return Act(kind, {"domain": task.domain, **slots})

    def _say(self, slot: str) -> str:
        task = self.task
        assert task is not None
        if slot in task.same:
            return f"same:{task.same[slot]}"
        return task.said[slot] if slot in task.said else (task.booking or {})[slot]

    def _next_fact(self) -> Act | None:
        if not self.facts:
            return None
        self.asked_fact = self.facts[0]
        return Act("ask", {"fact": self.asked_fact})

    def _next_booking(self) -> Act | None:
        task = self.task
        if task is None or task.booking is None or self.booked:
            return None
        slots = [slot for slot in task.booking if slot not in self.booking]
        if set(slots) != set(task.booking):
            self._lose_patience("went in circles")
        mentioned = [slot for slot in slots if slot != task.slip and self.rng.random() < 0.4]
        return Act("book", {slot: self._say(slot) for slot in mentioned})

    def _lose_patience(self, reason: str) -> None:
        self.circles += 1
        if self.circles >= PATIENCE:
            raise Failed(reason)

    # Hearing ----------------------------------------------------------------------------------

    def _on_ask(self, act: Act) -> Act:
        slot, task = act.kind[4:], self.task
        if task is None or slot not in (*task.wishes, *(task.booking or ())):
            raise Failed("asked for what does not matter")
        self.asked = slot
        if slot in self.told or slot in self.booking:
            self._lose_patience("asked again")
        if (correction := self._correction(0.5)) is not None:
            return correction
        if slot in task.wishes:
            value = self._say(slot)
            return Act("any") if value == "any" else Act("inform", {slot: value})
        return self._inform_booking(slot)

    def _inform_booking(self, slot: str) -> Act:
        task = self.task
        assert task is not None and task.booking is not None
        left = [other for other in task.booking if other not in self.booking and other != slot]
        if slot == task.slip and left:
            wrong = [value for value in VALUES[slot] if value != task.booking[slot]]
            return Act("inform", {slot: pick(wrong, self.rng)})
        slots = {slot: self._say(slot)}
        partner = {"people": "day", "day": "time" if "time" in task.booking else "nights"}.get(slot)
        plain = not {slot, partner} & task.same.keys()
        if partner in left and partner != task.slip and plain and self.rng.random() < 0.3:
            slots[partner] = self._say(partner)
        return Act("inform", slots)

    def _correction(self, chance: float) -> Act | None:
        """Take back what was said wrongly, if anything was."""
        task = self.task
        assert task is not None
        for slot, value in self.told.items():
            if value != task.wishes[slot] and self.rng.random() < chance:
                return Act("change", {slot: task.wishes[slot]})
        for slot, value in self.booking.items():
            if task.booking and slot == task.slip and value != task.booking[slot]:
                return Act("change", {slot: task.booking[slot]})
        return None

    def _on_offer(self, act: Act) -> Act:
        task = self.task
        if task is None:
            raise Failed("offered what nobody wanted")
        names = self._check_rows(act)
        wanted = [place.name for place in self.world.search(task.domain, self.told)]
        if set(names) != set(wanted) or self.told.keys() != task.wishes.keys():
            raise Failed("offered the wrong places")
        if (correction := self._correction(1.0)) is not None:
            return correction
        if self.picked:
            self._lose_patience("went in circles")
        if task.by == "it":
            return Act("pick_it")
        if task.by in ("name", "rating"):
            place = target(self.world, task)
            return Act("pick", {task.by: place.name if task.by == "name" else place.columns[1]})
        return Act("pick", {"by": task.by})

    def _check_rows(self, act: Act) -> list[str]:
        numbers = [slot[4:] for slot in act.slots if slot.startswith("name")]
        for number in numbers:
            place = self.world.place(act.slots[f"name{number}"])
            if place is None:
                raise Failed("named a place that does not exist")
            columns = zip(DOMAINS[place.domain].columns, place.columns, strict=True)
            if any(act.slots.get(f"{column}{number}") != value for column, value in columns):
                raise Failed("told a wrong price, rating or time")
        return [act.slots[f"name{number}"] for number in numbers]

    def _on_nothing_found(self, act: Act) -> Act:
        if self.task is None or self.world.search(self.task.domain, self.told):
            raise Failed("denied a place that exists")
        correction = self._correction(1.0)
        if correction is None:
            raise Failed("denied a place that exists")
        return correction

    def _on_chosen(self, act: Act) -> Act:
        task = self.task
        if task is None or act.slots["name"] != target(self.world, task).name:
            raise Failed("took the wrong place")
        if self.picked:
            self._lose_patience("went in circles")
        self.picked = True
        self.memory["name", task.domain] = act.slots["name"]
        return self._continue()

    def _on_booked(self, act: Act) -> Act:
        task = self.task
        if not self.booked or task is None:
            raise Failed("claimed a booking that it had not made")
        if act.slots["reference"] != self.memory["reference", task.domain]:
            raise Failed("told a wrong reference")
        return self._continue()

    def _on_taken(self, act: Act) -> Act:
        task = self.task
        if task is None or task.booking is None or not self.picked:
            raise Failed("claimed that something is taken")
        slot = act.kind[6:]
        name = target(self.world, task).name
        first, second = (self.world.free_instead(name, task.booking, skip) for skip in (0, 1))
        if self.booking.keys() != task.booking.keys() or not self.world.taken(name, task.booking):
            raise Failed("claimed that something is taken")
        if (act.slots.get(slot), act.slots["instead"]) != (task.booking.get(slot), first):
            raise Failed("told a wrong alternative")
        if task.accepts or second is None:
            task.booking[slot] = self.booking[slot] = str(first)
            return Act("yes")
        task.booking[slot] = second
        return Act("other", {slot: second})

    def _on_tell(self, act: Act) -> Act:
        task, fact = self.task, act.kind[5:]
        if task is None or not self.picked:
            raise Failed("told what nobody asked")
        place = target(self.world, task)
        if act.slots.get("name", place.name) != place.name or act.slots[fact] != place.facts.get(
            fact
        ):
            raise Failed("told a wrong fact")
        if fact in self.facts:
            self.facts.remove(fact)
        else:
            self._lose_patience("told what nobody asked")
        return self._continue()

    def _on_recall(self, act: Act) -> Act:
        about = act.kind[7:]
        if self.recall is None or about != self.recall[0]:
            raise Failed("recalled what nobody asked")
        right = (self.memory[self.recall], self.recall[1])
        if (act.slots[about], act.slots.get("domain", right[1])) != right:
            raise Failed("recalled wrongly")
        self.recall = None
        return self._continue()

    def _on_goodbye(self, act: Act) -> Act:
        if not self.finished:
            raise Failed("said goodbye too early")
        return Act("nothing")

    def _idle(self, act: Act) -> Act:
        if self.recall is not None:
            raise Failed("forgot")
        return self._continue()

    _on_hello = _on_chat = _on_decline = _on_more = _idle

    def _on_pardon(self, act: Act) -> Act:
        self._lose_patience("did not understand")
        return self.last

    # Tools ------------------------------------------------------------------------------------

    def wants_booked(self, place: Place | None, values: dict[str, str]) -> bool:
        """Would this booking be just what the visitor has asked for?"""
        task = self.task
        if task is None or task.booking is None or self.booked or not self.picked:
            return False
        return place == target(self.world, task) and values == task.booking == self.booking

    def note_booking(self, reference: str) -> None:
        """The booking that was asked for has been made."""
        assert self.task is not None
        self.booked = True
        self.memory["reference", self.task.domain] = reference
