"""What a visitor wants with one utterance: labelled texts from the front desk, or real ones.

A row is ``{"text": …, "intent": …}``; the intent ``oos`` is out of scope: something that nobody at
this desk does. The front desk's rows are taken from its visits, so the label is what the visitor
meant. What is hard about them: most of the phrasings are rare, names of places in test worlds have
never been seen, and the errands that are out of scope are others in every split.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from distillkit.dialogues.desk import Desk
from distillkit.dialogues.grammar import Act, pick
from distillkit.dialogues.loading import SPLITS, hub_rows
from distillkit.dialogues.understanding import visitor_says
from distillkit.dialogues.visit import Visit
from distillkit.dialogues.visitor_phrases import SURFACES
from distillkit.errors import UserError

Row = dict[str, str]

OUT_OF_SCOPE = "oos"

_NAMES = {
    "hello": "greet",
    "chat": "small_talk",
    "any": "no_preference",
    "change": "correct",
    "other": "another_time",
    "pick": "choose",
    "pick_it": "accept_offer",
    "book": "book",
    "yes": "agree",
    "pardon": "repeat",
    "nothing": "goodbye",
    "off_topic": OUT_OF_SCOPE,
}
_BY_SLOT = {"want": "find", "want_next": "find", "inform": "tell", "ask": "ask", "recall": "recall"}
_ASKED = ("area", "food", "price", "extra", "kind", "city", "part")
_BOOKED = ("day", "time", "people", "nights")
_FACTS = ("phone", "street", "hours", "platform", "duration")
FRONT_DESK_INTENTS = (
    *(f"find_{domain}" for domain in ("restaurant", "hotel", "museum", "train")),
    *(f"tell_{slot}" for slot in (*_ASKED, *_BOOKED)),
    *(f"ask_{fact}" for fact in _FACTS),
    "recall_reference",
    "recall_name",
    *_NAMES.values(),
)


def intent_of(act: Act) -> str:
    """The intent of a visitor's act: what it is, and what it is about.

    An answer is named by what was asked (the first of its slots).
    """
    if act.kind in _NAMES:
        return _NAMES[act.kind]
    about = {"ask": "fact", "recall": "about"}.get(act.kind)
    subject = act.slots[about] if about else next(iter(act.slots))
    if subject == "domain":
        subject = act.slots["domain"]
    return f"{_BY_SLOT[act.kind]}_{subject}"


def front_desk_intents(count: int, *, seed: int = 0, split: str = "train") -> list[Row]:
    """So many different utterances of visitors with their intents, in the order of their visits.

    Args:
        count: how many; raises ValueError when negative. No text comes twice.
        seed: the same seed gives the same, and the first rows of a longer list are a shorter list.
        split: ``train``, ``development`` or ``test``; names of places, and errands that are out of
            scope, differ between them. Short phrases ("yes please") do not.
    """
    if count < 0:
        raise ValueError(f"count is {count}: expected zero or more")
    rows: dict[str, Row] = {}
    number = 0
    while len(rows) < count:
        for text, act in _utterances(f"intents/{seed}/{number}", split):
            if act.slots.get("errand") in (None, *_errands(split)):
                rows.setdefault(text, {"text": text, "intent": intent_of(act)})
        number += 1
    return list(rows.values())[:count]


def _errands(split: str) -> list[str]:
    return list(SURFACES["errand"])[SPLITS.index(split) :: len(SPLITS)]


def _utterances(key: str, split: str) -> Iterator[tuple[str, Act]]:
    """What one visitor says, served by the desk, and means by it; one errand more in the end."""
    visit = Visit(key, split)  # type: ignore[arg-type]
    rng, desk = Random(f"desk/{split}/{key}"), Desk()
    while not visit.done:
        heard = visit.messages[-1]
        if heard["role"] == "tool":
            desk.observe(heard["content"])
        else:
            yield heard["content"], visit.heard
            desk.hear(visit.heard)
        visit.reply(desk.speak(rng), desk.said)
    act = Act("off_topic", {"errand": pick(_errands(split), rng)})
    yield visitor_says(act, rng), act


def load_intents(
    source: str | os.PathLike[str] = "front-desk",
    *,
    split: str = "train",
    limit: int | None = None,
    seed: int = 0,
) -> list[Row]:
    """Labelled utterances of the front desk, of a file, or of a data set on the hub.

    Args:
        source: ``"front-desk"``; a ``.jsonl`` file of ``text`` and ``intent``, in whose name
            ``{split}`` is filled in; or a hub name, ``"clinc_oos:plus"`` for CLINC150.
        split: ``train``, ``validation`` or ``test``.
        limit: the most rows (the first ones); the front desk gives 1,000 without it.
        seed: of the front desk.

    Raises:
        UserError: no such file, a line that is no labelled text, or the hub's refusal.
    """
    name = os.fspath(source)
    if name == "front-desk":
        split = {"validation": "development"}.get(split, split)
        return front_desk_intents(limit or 1000, seed=seed, split=split)
    if name.endswith(".jsonl"):
        return list(_read(Path(name.replace("{split}", split)).expanduser()))[:limit]
    rows: Any = hub_rows(name, split)
    names = rows.features["intent"].names
    return [{"text": row["text"], "intent": names[row["intent"]]} for row in rows][:limit]


def intents_of(rows: Sequence[Row]) -> list[str]:
    """The intents that occur, sorted, and out of scope last."""
    found = {row["intent"] for row in rows}
    return sorted(found, key=lambda name: (name == OUT_OF_SCOPE, name))


def _read(path: Path) -> Iterator[Row]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected lines of text and intent (.jsonl)")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            value = json.loads(line)
            row = {key: value[key] for key in ("text", "intent")}
        except (ValueError, KeyError, TypeError):
            row = {}
        if not row or not all(isinstance(part, str) and part for part in row.values()):
            raise UserError(f"{path.name}, line {number}: expected an object of text and intent")
        yield row
