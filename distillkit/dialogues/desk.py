"""The desk's policy: what a perfect assistant does next, as a function of the visible text alone.

``Desk`` hears what the visitor said and what the tools returned, and knows its next act: a sentence
(worded at random, with known probabilities) or a tool call. Nothing that is not in the conversation
enters, so the distribution of its next message is the true one for any reader of the conversation.
"""

from random import Random

from distillkit.dialogues.grammar import Act
from distillkit.dialogues.understanding import desk_says, desk_wordings
from distillkit.dialogues.world import DOMAINS

Message = dict


def call_message(name: str, arguments: dict[str, str]) -> Message:
    """An assistant message that calls a tool."""
    function = {"name": name, "arguments": arguments}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": function}],
    }


def text_message(content: str) -> Message:
    return {"role": "assistant", "content": content}


def hour_of(leaves: str) -> int:
    """The hour, 0–23, of a time such as ``9 am`` or ``12 pm``."""
    number, half = leaves.split()
    return int(number) % 12 + (12 if half == "pm" else 0)


def choose(rows: list[tuple[str, str, str]], by: str) -> tuple[str, str, str]:
    """The row that a reference such as ``cheaper`` or ``second`` means; ties go to the first."""
    if by in ("first", "second", "last"):
        return rows[0] if by == "first" else rows[-1]
    if by in ("cheaper", "dearer"):
        return (min if by == "cheaper" else max)(rows, key=lambda row: int(row[1]))
    return (min if by == "earlier" else max)(rows, key=lambda row: hour_of(row[2]))


class Desk:
    """The state of one conversation, as the desk sees it."""

    def __init__(self) -> None:
        self.domain: str | None = None
        self.wishes: dict[str, str] = {}
        self.rows: list[tuple[str, str, str]] | None = None
        self.chosen: str | None = None
        self.booking: dict[str, str] = {}
        self.instead: str | None = None
        self.memory: dict[str, dict[str, str]] = {}
        self.next: Act = Act("hello")  # kind "call.<tool>" for a tool call
        self.said: Act = Act("hello")
        self._fact = ""

    @property
    def pending(self) -> str | None:
        """The slot that the desk's last sentence asked for."""
        return self.said.kind[4:] if self.said.kind.startswith("ask.") else None

    # What the desk does -----------------------------------------------------------------------

    def distribution(self) -> list[tuple[float, Message]]:
        """Every message that may come next, with its probability."""
        if self.next.kind.startswith("call."):
            return [(1.0, call_message(self.next.kind[5:], dict(self.next.slots)))]
        return [(weight, text_message(text)) for weight, text in desk_wordings(self.next)]

    def speak(self, rng: Random) -> Message:
        """Draw the next message from ``distribution``."""
        if self.next.kind.startswith("call."):
            return call_message(self.next.kind[5:], dict(self.next.slots))
        self.said = self.next
        return text_message(desk_says(self.next, rng))

    def spoke(self) -> None:
        """Note that the next act has been performed, whatever its wording."""
        if not self.next.kind.startswith("call."):
            self.said = self.next

    # What the desk hears ----------------------------------------------------------------------

    def hear(self, act: Act | None) -> None:
        """Take in a visitor's act (None: not understood) and settle the next act."""
        act = act or Act("nonsense")
        handler = getattr(self, f"_hear_{act.kind}", None)
        self.next = (handler(act.slots) if handler else None) or Act("pardon")

    def _hear_hello(self, slots: dict) -> Act:
        return Act("hello")

    def _hear_chat(self, slots: dict) -> Act:
        return Act(f"chat.{slots['topic']}")

    def _hear_off_topic(self, slots: dict) -> Act:
        return Act("decline")

    def _hear_pardon(self, slots: dict) -> Act:
        return self.said

    def _hear_nothing(self, slots: dict) -> Act:
        return Act("goodbye")

    def _hear_want(self, slots: dict) -> Act | None:
        self.domain = slots["domain"]
        self.wishes, self.booking, self.rows, self.chosen = {}, {}, None, None
        self.instead = None
        return self._fill({slot: value for slot, value in slots.items() if slot != "domain"})

    _hear_want_next = _hear_want

    def _hear_inform(self, slots: dict) -> Act | None:
        return self._fill(slots)

    _hear_change = _hear_inform

    def _hear_any(self, slots: dict) -> Act | None:
        return self._fill({self.pending: "any"}) if self.pending else None

    def _hear_pick(self, slots: dict) -> Act | None:
        if not self.rows:
            return None
        if "by" in slots:
            name = choose(self.rows, slots["by"])[0]
        else:
            meant = [row[0] for row in self.rows if slots.items() <= self._told_of(row).items()]
            if not meant:
                return None
            name = meant[0]
        self.chosen = name
        self.memory.setdefault(self.domain or "", {})["name"] = name
        return Act("chosen", {"name": name})

    def _told_of(self, row: tuple[str, str, str]) -> dict[str, str]:
        return dict(zip(("name", *DOMAINS[self.domain or ""].columns), row, strict=True))

    def _hear_pick_it(self, slots: dict) -> Act | None:
        return self._hear_pick({"by": "first"})

    def _hear_book(self, slots: dict) -> Act | None:
        if self.chosen is None:
            return None
        return self._fill(slots)

    def _hear_yes(self, slots: dict) -> Act | None:
        if self.instead is None:
            return None
        return self._hear_other({self._flexible(): self.instead})

    def _hear_other(self, slots: dict) -> Act | None:
        self.instead = None
        return self._fill(slots)

    def _hear_ask(self, slots: dict) -> Act | None:
        if self.domain is None or slots["fact"] not in DOMAINS[self.domain].facts:
            return None
        if self.chosen is None:
            return None
        self._fact = slots["fact"]
        return Act("call.details", {"name": self.chosen, "about": self._fact})

    def _hear_recall(self, slots: dict) -> Act | None:
        value = self.memory.get(slots["domain"], {}).get(slots["about"])
        if value is None:
            return None
        return Act(f"recall.{slots['about']}", {"domain": slots["domain"], slots["about"]: value})

    # How the desk works -----------------------------------------------------------------------

    def _flexible(self) -> str:
        return DOMAINS[self.domain or "hotel"].flexible or ""

    def _fill(self, slots: dict[str, str]) -> Act | None:
        if self.domain is None:
            return None
        for slot, value in slots.items():
            if value.startswith("same:"):
                value = self.memory.get(value[5:], {}).get(slot, "")
                if not value:
                    return None
            if slot in DOMAINS[self.domain].search:
                self.wishes[slot] = value
                self.rows, self.chosen = None, None
            elif slot in DOMAINS[self.domain].book:
                self.booking[slot] = value
            else:
                return None
            self.memory.setdefault(self.domain, {})[slot] = value
        return self._proceed()

    def _proceed(self) -> Act:
        domain = DOMAINS[self.domain or ""]
        if self.chosen is None:
            for slot in domain.search:
                if slot not in self.wishes:
                    return Act(f"ask.{slot}")
            wishes = {slot: self.wishes[slot] for slot in domain.search}
            told = {slot: value for slot, value in wishes.items() if value != "any"}
            return Act("call.search", {"domain": domain.name, **told})
        for slot in domain.book:
            if slot not in self.booking:
                return Act(f"ask.{slot}")
        values = {slot: self.booking[slot] for slot in domain.book}
        return Act("call.book", {"name": self.chosen, **values})

    def observe(self, result: str) -> None:
        """Take in what the called tool returned and settle the next act."""
        tool = self.next.kind[5:]
        handler = {"search": self._found, "book": self._booked, "details": self._told}.get(tool)
        self.next = (handler(result) if handler else None) or Act("pardon")

    def _found(self, result: str) -> Act:
        self.rows = read_rows(result)
        if not self.rows:
            return Act("nothing_found")
        slots = {
            f"{column}{number}": value
            for number, row in enumerate(self.rows, 1)
            for column, value in self._told_of(row).items()
        }
        kind = "offer.train" if self.domain == "train" else "offer"
        return Act(f"{kind}.{len(self.rows)}", slots)

    def _booked(self, result: str) -> Act | None:
        status, _, value = result.partition(": ")
        if status == "booked":
            self.memory.setdefault(self.domain or "", {})["reference"] = value
            return Act("booked", {"reference": value})
        if status == "taken, free instead":
            slot = self._flexible()
            self.instead = value
            return Act(f"taken.{slot}", {slot: self.booking[slot], "instead": value})
        return None

    def _told(self, result: str) -> Act | None:
        value = result.removeprefix(f"{self._fact} ")
        slots = {self._fact: value}
        if self._fact != "duration":
            slots["name"] = self.chosen or ""
        return Act(f"tell.{self._fact}", slots)


def read_rows(result: str) -> list[tuple[str, str, str]]:
    """The rows of a search result, as the desk reads them."""
    rows = [row.split(", ") for row in result.split("; ")]
    return [(row[0], row[1], row[2]) for row in rows if len(row) == 3]
