"""Visits to the front desk: played by the desk itself (data), or by any policy (task success)."""

from random import Random

from distillkit.dialogues.desk import Desk, Message
from distillkit.dialogues.goals import draw_goal
from distillkit.dialogues.grammar import Act
from distillkit.dialogues.understanding import understand_desk, understand_visitor, visitor_says
from distillkit.dialogues.visitor import Failed, Visitor
from distillkit.dialogues.world import WORLDS_PER_SPLIT, arguments_are_words, draw_world

MAX_MESSAGES = 130
MAX_CALLS_IN_A_ROW = 3


class Visit:
    """One visitor at the desk, to be served by any policy.

    ``messages`` is what everybody can see; it starts with the visitor's first words. Serve the
    visitor with ``reply(message)`` until ``done``; then ``success`` says whether every booking was
    the right one and everything told was true, and ``failure`` says why not.

    The same split and seed give the same goal, in the same world, on every platform.
    """

    def __init__(self, seed: int | str, split: str = "test"):
        self.rng = Random(f"visit/{split}/{seed}")
        self.world = draw_world(split, int(self.rng.random() * WORLDS_PER_SPLIT))
        self.visitor = Visitor(draw_goal(self.world, self.rng), self.world, self.rng)
        self.messages: list[Message] = []
        self.done = False
        self.failure: str | None = None
        self._calls = 0
        self._hear_visitor(self.visitor.last)

    @property
    def success(self) -> bool:
        return self.done and self.failure is None

    def reply(self, message: Message, act: Act | None = None) -> None:
        """Serve one assistant message; the tool's result or the visitor's answer is appended.

        ``act`` may say what the message does, where that is known; else it is read off the text.
        """
        if self.done:
            raise ValueError("the visit is over: start another one")
        self.messages.append(message)
        try:
            if message.get("tool_calls"):
                self._call(message["tool_calls"][0]["function"])
            else:
                self._answer(act or understand_desk(message["content"]))
        except Failed as failed:
            self.done, self.failure = True, str(failed)
        if not self.done and len(self.messages) >= MAX_MESSAGES:
            self.done, self.failure = True, "never came to an end"

    def _answer(self, act: Act | None) -> None:
        self._calls = 0
        if self.visitor.finished:
            self.done = True
            if act is None or act.kind != "goodbye":
                self.failure = "did not say goodbye"
            return
        self._hear_visitor(self.visitor.respond(act))

    def _hear_visitor(self, act: Act) -> None:
        self.heard = act
        self.messages.append({"role": "user", "content": visitor_says(act, self.rng)})

    def _call(self, function: dict) -> None:
        self._calls += 1
        if self._calls > MAX_CALLS_IN_A_ROW:
            raise Failed("called tools without end")
        values = dict(function["arguments"]) if arguments_are_words(function) else {}
        place = self.world.place(values.pop("name", ""))
        books = function["name"] == "book" and place is not None
        if books and not self.visitor.wants_booked(place, values):
            raise Failed("booked what was not asked for")
        result = self.world.call(function)
        if books and result.startswith("booked: "):
            self.visitor.note_booking(result.removeprefix("booked: "))
        self.messages.append({"role": "tool", "content": result})


def play_desk(visit: Visit, rng: Random) -> None:
    """Let the true desk serve a visit to its end."""
    desk = Desk()
    while not visit.done:
        heard = visit.messages[-1]
        if heard["role"] == "tool":
            desk.observe(heard["content"])
        else:
            desk.hear(visit.heard)  # a test holds that the words say just this
        visit.reply(desk.speak(rng), desk.said)


def front_desk(count: int, *, seed: int = 0, split: str = "train") -> list[dict]:
    """Conversations at the front desk, as rows of ``messages``.

    Args:
        count: how many; raises ValueError when negative.
        seed: conversations of two seeds differ; the same seed gives the same, and the first rows
            of a longer list equal a shorter list.
        split: ``train``, ``development`` or ``test``; names of two splits never meet.
    """
    if count < 0:
        raise ValueError(f"count is {count}: expected zero or more")
    return [_conversation(f"{seed}/{number}", split) for number in range(count)]


def _conversation(key: str, split: str) -> dict:
    visit = Visit(key, split)
    play_desk(visit, Random(f"desk/{split}/{key}"))
    if not visit.success:
        raise AssertionError(f"the desk failed visit {split}/{key}: {visit.failure}")
    return {"id": f"front-desk/{split}/{key}", "messages": visit.messages}


def true_replies(messages: list[Message]) -> list[tuple[float, Message]]:
    """The exact distribution of the desk's next message, given the visible messages.

    ``messages`` end with a visitor's or a tool's message. Raises ValueError where the conversation
    so far is not one that the desk can have had.
    """
    return read_desk(messages).distribution()


def read_desk(messages: list[Message]) -> Desk:
    """The desk after these visible messages."""
    if not messages or messages[-1]["role"] == "assistant":
        raise ValueError("expected messages that end with a user's or a tool's message")
    desk = Desk()
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            if not any(message == other for _, other in desk.distribution()):
                raise ValueError(f"message {number} is nothing that the desk would say here")
            desk.spoke()
        elif message["role"] == "tool":
            desk.observe(message["content"])
        else:
            desk.hear(understand_visitor(message["content"], desk.pending))
    return desk
