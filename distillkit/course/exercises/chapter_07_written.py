"""Exercise of chapter 07: which of the texts that a teacher has written are worth learning from."""

from __future__ import annotations

from collections.abc import Callable

from distillkit.course.exercises.definition import Case, Exercise, Mutant
from distillkit.course.exercises.drawing import Draw

END = 2
Keeper = Callable[[list[str], list[list[int]]], list[int]]


def _written_cases(draw: Draw) -> list[Case]:
    cases = []
    for name, count, visitors, most in (
        ("doubles and cut replies", 14, 3, 5),
        ("two prompts", 18, 2, 4),
        ("many prompts", 20, 6, 6),
    ):
        asked = draw.integers(count, below=visitors).tolist()
        length = draw.integers(count, below=3, least=1).tolist()
        whole = draw.integers(count, below=4).tolist()
        prompts = [f"visitor {number}" for number in asked]
        replies = []
        for row in range(count):
            body = draw.integers(length[row], below=5, least=3).tolist()
            replies.append([*body, END] if whole[row] else body * most)
        prompts, replies = _with_traps(prompts, replies)
        cases.append(Case(f"{name}, N={len(replies)}", (prompts, replies)))
    return cases


def _with_traps(prompts: list[str], replies: list[list[int]]) -> tuple[list[str], list[list[int]]]:
    """A double far behind, the same words to another prompt, an end in the middle, and more."""
    said = next(row for row, reply in enumerate(replies) if reply[-1] == END)
    more = [
        (prompts[said], replies[said]),
        ("visitor 9", replies[said]),
        ("visitor 9", [7, END, 3, 3]),
        ("visitor 9", [*replies[said][:-1], 4]),
        ("visitor 8", [4, 4, END]),
        ("visitor 8", [4, 4, END]),
        # keys that only look alike, a cut reply before its whole one, and nothing but an end
        ("visitor 7", [3, 14, END]),
        ("visitor 7", [31, 4, END]),
        ("Visitor 7 ", [3, 14, END]),
        ("visitor 7", [4, 3]),
        ("visitor 7", [4, 3, END]),
        ("visitor 7", [END]),
    ]
    return [*prompts, *(a for a, _ in more)], [*replies, *(list(b) for _, b in more)]


def _written_oracle(prompts: list[str], replies: list[list[int]]) -> list[int]:
    kept: list[int] = []
    for row in range(len(replies)):
        if replies[row][-1] != END:
            continue
        double = False
        for before in kept:
            if prompts[before] == prompts[row] and replies[before] == replies[row]:
                double = True
        if not double:
            kept.append(row)
    return kept


def _kept(
    *, whole: str = "last", alike: str = "both", which: str = "first", ordered: bool = True
) -> Keeper:
    """The places that are kept, with one part wrong.

    whole: the end is the "last" token, is "somewhere", or is not asked for ("any"). alike: what
    makes a double: "both", the "reply", the "prompt", "none", or a text of both ("glued"). which:
    the "first", the "last", or "no" copy of several stays; "behind": only a double right behind is
    one.
    """

    def places(prompts: list[str], replies: list[list[int]]) -> list[int]:
        checks = {"last": lambda r: r[-1] == END, "somewhere": lambda r: END in r}
        good = [n for n, r in enumerate(replies) if checks.get(whole, lambda r: True)(r)]
        names = {
            "both": lambda n: (prompts[n], tuple(replies[n])),
            "reply": lambda n: tuple(replies[n]),
            "prompt": lambda n: prompts[n],
            "none": lambda n: n,
            "glued": lambda n: prompts[n] + "".join(map(str, replies[n])),
        }
        named = [(names[alike](n), n) for n in good]
        if which == "behind":
            return [n for k, (name, n) in enumerate(named) if k == 0 or named[k - 1][0] != name]
        groups: dict[object, list[int]] = {}
        for name, n in named:
            groups.setdefault(name, []).append(n)
        if which == "no":
            return [group[0] for group in groups.values() if len(group) == 1]
        if not ordered:
            return [groups[name][0] for name in sorted(groups, key=repr)]
        return sorted(group[0 if which == "first" else -1] for group in groups.values())

    return places


def _renumbered(prompts: list[str], replies: list[list[int]]) -> list[int]:
    whole = [row for row in zip(prompts, replies, strict=True) if row[1][-1] == END]
    return _kept()([prompt for prompt, _ in whole], [reply for _, reply in whole])


WRITTEN = Exercise(
    number="7.4",
    title="What the teacher wrote",
    kind="write",
    minutes=8,
    difficulty=1,
    hints=(
        "Two questions for each row: is its last token `END`? And have you kept a row with the "
        "same prompt *and* the same reply?",
        "A list cannot be in a set: `(prompt, tuple(reply))` can. Go through the rows in order, "
        "and remember what you have kept in `seen = set()`.",
    ),
    cases=_written_cases,
    oracle=_written_oracle,
    mutants=(
        Mutant(
            "cut replies kept",
            _kept(whole="any"),
            "Replies that were cut off stay in. A student that learns from them learns to stop in "
            "the middle, or not at all.",
            "distilabel and others keep finish_reason and leave the choice to you",
        ),
        Mutant(
            "an end anywhere",
            _kept(whole="somewhere"),
            "You look for the end *anywhere* in the reply. One row has it in the middle, and goes "
            "on: it did not come to its end. Look at the last token.",
            "a reader",
        ),
        Mutant(
            "doubles kept",
            _kept(alike="none"),
            "Doubles stay in. A likely reply is written again and again; with each copy it weighs "
            "more, though the student has read it.",
            "deepeval#1925, 24 samples of which 6 were different",
        ),
        Mutant(
            "doubles by the reply alone",
            _kept(alike="reply"),
            "You call a row a double when its *reply* was there before. The same words to another "
            "prompt are another lesson: compare both.",
            "a reader",
        ),
        Mutant(
            "one reply a prompt",
            _kept(alike="prompt"),
            "You keep one reply for each prompt. Several different samples of a prompt are what "
            "tells the student how likely the teacher finds each; only equal ones are doubles.",
            "a reader",
        ),
        Mutant(
            "everything kept",
            _kept(whole="any", alike="none"),
            "You keep every row: cut replies and doubles alike. Two questions for each row.",
            "a reader",
        ),
        Mutant(
            "a key of glued numbers",
            _kept(alike="glued"),
            "Your key glues the tokens together as text, so [3, 14] and [31, 4] look the same. "
            "A tuple keeps them apart: `(prompt, tuple(reply))`.",
            "a reader",
        ),
        Mutant(
            "places among those kept",
            _renumbered,
            "You number the rows after the cut ones are gone. Asked for are places in the lists "
            "that you were given: `enumerate` before you leave anything out.",
            "a reader",
        ),
        Mutant(
            "only neighbours",
            _kept(which="behind"),
            "You compare each row with the one before it. A double may come much later: remember "
            "everything that you have kept.",
            "uniq without sort, an old mistake at the command line",
        ),
        Mutant(
            "the last copy",
            _kept(which="last"),
            "Of several copies you keep the last one, as a dict does that is written to again. "
            "Keep the first: then what is kept does not change when the teacher writes more.",
            "a reader",
        ),
        Mutant(
            "no copy at all",
            _kept(which="no"),
            "You drop *all* copies of what came twice. The likeliest replies are those which come "
            "twice: keep one of each.",
            "pandas' duplicated(keep=False)",
        ),
        Mutant(
            "out of order",
            _kept(ordered=False),
            "The right rows, in another order: you have sorted them, or they went through a set. "
            "Keep the order in which they were written, so that a run can be repeated.",
            "a reader",
        ),
    ),
)


EXERCISES = (WRITTEN,)
