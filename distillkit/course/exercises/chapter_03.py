"""Exercises of chapter 03, the teacher: what is asked for in fine-tuning."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from distillkit.course.exercises.definition import Case, Exercise, Mutant
from distillkit.course.exercises.drawing import IGNORED, Draw

# 3.1 · the labels of fine-tuning ------------------------------------------------------------------

PADDING = 0
WORDS = 40
"""Ids from here on are words; special tokens are below, and others in each case."""

Speakers = tuple[int, int, int, int]  # <|user|>, <|assistant|>, <|tool|>, <|end|>
Answer = Callable[[Tensor, int, int, int, int], Tensor]


def _conversation(draw: Draw, turns: str, speakers: Speakers) -> list[int]:
    """Token ids of a conversation: one letter a message, u, a or t."""
    user, assistant, tool, end = speakers
    ids = []
    for who in turns:
        count = int(draw.integers(1, below=5, least=2))
        words = draw.integers(count, below=2 * WORDS, least=WORDS).tolist()
        ids += [{"u": user, "a": assistant, "t": tool}[who], *words, end]
    return ids


def _labels_cases(draw: Draw) -> list[Case]:
    cases = []
    for name, talks in (
        ("two visitors and a tool", ("uaua", "uata")),
        ("three conversations", ("uatauaua", "ua", "uaatau")),
        ("a conversation that is cut", ("uatauatau", "uaua")),
        ("an answer that is cut", ("uaua", "uatatau", "uau")),
    ):
        a, b, c, d = (draw.logits(WORDS - 1).argsort()[:4] + 1).tolist()
        rows = [_conversation(draw, turns, (a, b, c, d)) for turns in talks]
        length = len(rows[0]) - 2 if "cut" in name else max(map(len, rows))
        filled = [(row + [PADDING] * length)[:length] for row in rows]
        cases.append(Case(name, (torch.tensor(filled), a, b, c, d)))
    return cases


def _labels_oracle(
    ids: list[list[int]], user: int, assistant: int, tool: int, end: int
) -> list[list[int]]:
    labels = []
    for row in ids:
        speaks, line = False, []
        for token in row:
            line.append(token if speaks else IGNORED)
            if token == assistant:
                speaks = True
            elif token == end:
                speaks = False
        labels.append(line)
    return labels


def _spoken(ids: Tensor, opening: int, closing: int, *, carried: bool = False) -> Tensor:
    """True after an opening token, up to the next closing one, which is included.

    carried: a row that is cut leaves its last speaker to the next row.
    """
    spoken = torch.zeros_like(ids, dtype=torch.bool)
    speaks = False
    for b, row in enumerate(ids.tolist()):
        speaks = speaks and carried
        for s, token in enumerate(row):
            spoken[b, s] = speaks
            speaks = token == opening or (speaks and token != closing)
    return spoken & (ids != PADDING)


def _labels_with(
    change: Callable[[Tensor, Tensor, Speakers], Tensor], other: int = IGNORED
) -> Answer:
    """The labels, after a change to the right mask; other: what stands where it is false."""

    def labels(ids: Tensor, user: int, assistant: int, tool: int, end: int) -> Tensor:
        mask = change(_spoken(ids, assistant, end), ids, (user, assistant, tool, end))
        return ids.masked_fill(~mask, other)

    return labels


def _last_turn(mask: Tensor, ids: Tensor, speakers: Speakers) -> Tensor:
    later = (ids == speakers[1]).flip(1).cumsum(1).flip(1)
    return mask & (later == 0)


def _first_turn(mask: Tensor, ids: Tensor, speakers: Speakers) -> Tensor:
    return mask & ((ids == speakers[1]).cumsum(1) == 1)


def _closed_turns(mask: Tensor, ids: Tensor, speakers: Speakers) -> Tensor:
    return mask & ((ids == speakers[3]).flip(1).cumsum(1).flip(1) > 0)


def _without_first(mask: Tensor, ids: Tensor, speakers: Speakers) -> Tensor:
    opened = (ids == speakers[1]).roll(1, 1)
    return mask & ~opened


def _from_first_answer(mask: Tensor, ids: Tensor, speakers: Speakers) -> Tensor:
    return (mask.cumsum(1) > 0) & (ids != PADDING)


def _to_next_speaker(*, marker: bool) -> Answer:
    """Turns that only the next speaker closes; marker: whether its marker has a label."""

    def labels(ids: Tensor, user: int, assistant: int, tool: int, end: int) -> Tensor:
        found = torch.full_like(ids, IGNORED)
        for b, row in enumerate(ids.tolist()):
            speaks = False
            for s, token in enumerate(row):
                special = token in (user, assistant, tool)
                if speaks and (marker or not special):
                    found[b, s] = token
                speaks = token == assistant if special else speaks
        return found

    return labels


def _shifted(ids: Tensor, user: int, assistant: int, tool: int, end: int) -> Tensor:
    labels = ids.masked_fill(~_spoken(ids, assistant, end), IGNORED).roll(-1, 1)
    labels[:, -1] = IGNORED
    return labels


LABELS = Exercise(
    number="3.1",
    title="The labels of fine-tuning",
    kind="write",
    minutes=12,
    difficulty=2,
    hints=(
        "Go through a row token by token, and remember whether the desk is speaking. It begins to "
        "speak *after* `<|assistant|>`, and stops *after* `<|end|>`.",
        "Decide about a token first, and change what you remember afterwards: so `<|assistant|>` "
        "gets -100, and the `<|end|>` of the desk's turn gets its label.",
        "`labels = torch.full_like(ids_BS, -100)`, two loops, and `labels[b, s] = ids_BS[b, s]` "
        "where the desk speaks. Begin each row with `speaks = False`.",
    ),
    cases=_labels_cases,
    oracle=_labels_oracle,
    mutants=(
        Mutant(
            "last turn only",
            _labels_with(_last_turn),
            "Only the desk's last turn has labels. Every turn is a lesson, also those in the "
            "middle of the conversation.",
            "trl#2732",
        ),
        Mutant(
            "end left out",
            _labels_with(lambda mask, ids, who: mask & (ids != who[3])),
            "The `<|end|>` of the desk's turns has no label. A model that never learns to say it "
            "never stops talking.",
            "trl PR#5988, where a chat template did it: the loss went down, and replies had no end",
        ),
        Mutant(
            "tool results counted",
            _labels_with(lambda mask, ids, who: mask | _spoken(ids, who[2], who[3])),
            "The tool's answers have labels, too. The model would learn to make up results, where "
            "it should wait for them.",
            "ARPO#9, whose model wrote the results of its calls itself",
        ),
        Mutant(
            "everything from the first answer on",
            _labels_with(_from_first_answer),
            "Your mask opens at the desk's first turn and never closes: what visitors and tools "
            "say later has labels. Close it after each `<|end|>`.",
            "mlx-vlm PR#970 and trl#542",
        ),
        Mutant(
            "prompt counted",
            _labels_with(lambda mask, ids, who: ids != PADDING),
            "All tokens but the padding have labels: that is pre-training. In fine-tuning, what "
            "visitors and tools say has -100.",
            "Transformers-Tutorials#456",
        ),
        Mutant(
            "closed at the next marker",
            _to_next_speaker(marker=True),
            "Your turn closes at the next speaker's marker. So that marker has a label, and where "
            "nobody speaks after the desk, the padding has. Close it after `<|end|>`.",
            "a reader",
        ),
        Mutant(
            "padding after the last turn",
            _to_next_speaker(marker=False),
            "The padding after a conversation has labels: only the next speaker closes your turn, "
            "and there none comes. Close it after `<|end|>`.",
            "a reader",
        ),
        Mutant(
            "first token left out",
            _labels_with(_without_first),
            "The first token of each turn has no label. The mask opens with the token right after "
            "`<|assistant|>`.",
            "minimind PR#621",
        ),
        Mutant(
            "the marker counted",
            _labels_with(lambda mask, ids, who: mask | (ids == who[1])),
            "`<|assistant|>` itself has a label. Our program writes it to give the desk the word; "
            "the model never has to say it.",
            "Video-LLaMA#44, where the marker of a turn was learned as well",
        ),
        Mutant(
            "shifted",
            _shifted,
            "You have moved the labels one place to the left. The loss does that itself; done "
            "twice, the model learns to predict the token after the next.",
            "tiny-llm-zh#10 and transformers PR#562",
        ),
        Mutant(
            "cut turn dropped",
            _labels_with(_closed_turns),
            "A turn of the desk that is cut has no labels: you look for pairs of `<|assistant|>` "
            "and `<|end|>`. Its words are lessons as well; it is only without its end.",
            "a reader",
        ),
        Mutant(
            "carried into the next row",
            _labels_with(lambda mask, ids, who: _spoken(ids, who[1], who[3], carried=True)),
            "Where a row is cut in the middle of the desk's turn, the next row begins with labels: "
            "it is another conversation. Begin each row with `speaks = False`.",
            "a reader",
        ),
        Mutant(
            "first turn only",
            _labels_with(_first_turn),
            "Only the desk's first turn has labels. Every turn is a lesson: look for the next "
            "`<|assistant|>` after the first `<|end|>`.",
            "a reader",
        ),
        Mutant(
            "0 for -100",
            _labels_with(lambda mask, ids, who: mask, other=0),
            "The right tokens have labels; the others have 0, which is a token like any other, so "
            "the loss asks for it. What is to be left out has -100.",
            "a reader",
        ),
    ),
)

EXERCISES = (LABELS,)
