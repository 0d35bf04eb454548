"""Exercise of chapter 07, distilling generation: which of the student's own words count."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from distillkit.course.exercises.definition import Case, Exercise, Mutant, Property
from distillkit.course.exercises.drawing import Draw

Masker = Callable[[Tensor, int, int], Tensor]


def _batch(draw: Draw, end: int, prompt: int, ends: tuple[int, ...], filler: int | None) -> Tensor:
    """Prompts of several turns, and replies that end after so many tokens (0: never).

    filler: what stands behind the end; None: the model babbles on, and ends again.
    """
    longest = max(5, *ends)
    ids = draw.integers(len(ends), prompt + longest, below=90, least=10)
    ids[:, prompt // 2] = end  # the end of the visitor's turn
    ids[1::2, prompt // 3] = end
    ids[:, prompt - 1] = 1  # <|assistant|>
    for row, count in enumerate(ends):
        last = prompt + count - 1
        if count == 0:
            continue
        ids[row, last] = end
        if filler is not None:
            ids[row, last + 1 :] = filler
        elif last + 2 < ids.shape[1]:
            ids[row, -2] = end
    return ids


def _own_cases(draw: Draw) -> list[Case]:
    cases = []
    for name, prompt, end, ends, filler in (
        ("filled up with the end", 6, 5, (3, 7, 0, 1), 5),
        ("filled up with 0", 5, 8, (6, 2, 0), 0),
        ("models that babble on", 7, 3, (1, 8, 4, 0, 2), None),
        ("a model that never ends", 4, 6, (0, 0), 6),
    ):
        ids = _batch(draw, end, prompt, ends, filler)
        cases.append(Case(f"{name}, P={prompt}", (ids, prompt, end)))
    return cases


def _own_oracle(ids_BS: list[list[int]], prompt: int, end: int) -> list[list[bool]]:
    mask = []
    for row in ids_BS:
        line, speaks = [], True
        for s, token in enumerate(row):
            line.append(s >= prompt and speaks)
            if s >= prompt and token == end:
                speaks = False
        mask.append(line)
    return mask


def _after(ids: Tensor, prompt: int) -> Tensor:
    return (torch.arange(ids.shape[1]) >= prompt).expand_as(ids)


def _ended(ids: Tensor, prompt: int, end: int) -> Tensor:
    """How many ends have come in the reply, this token's own included."""
    return ((ids == end) & _after(ids, prompt)).cumsum(1)


def _own(ids: Tensor, prompt: int, end: int) -> Tensor:
    found = _ended(ids, prompt, end) - ((ids == end) & _after(ids, prompt)).long()
    return _after(ids, prompt) & (found == 0)


def _to_last_end(ids: Tensor, prompt: int, end: int) -> Tensor:
    ends = (ids == end) & _after(ids, prompt)
    left = ends.flip(1).cumsum(1).flip(1)
    return _after(ids, prompt) & ((left > 0) | ~ends.any(1, keepdim=True))


def _by_argmax(ids: Tensor, prompt: int, end: int) -> Tensor:
    reply = ids[:, prompt:]
    first = (reply == end).int().argmax(1, keepdim=True)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, prompt:] = torch.arange(reply.shape[1]) <= first
    return mask


def _early_end_missed(ids: Tensor, prompt: int, end: int) -> Tensor:
    """A first end at place 0 is taken for "no end", as argmax gives 0 for both."""
    reply = ids[:, prompt:]
    first = (reply == end).int().argmax(1, keepdim=True)
    first[first == 0] = reply.shape[1] - 1
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, prompt:] = torch.arange(reply.shape[1]) <= first
    return mask


def _is_boolean(mask: Callable[..., Tensor], draw: Draw) -> bool:
    ids = _batch(draw, 5, 4, (3, 0), 5)
    # Lists and arrays come as float64 here; they index by truth as they are, or not at all.
    return mask(ids, 4, 5).dtype in (torch.bool, torch.float64)


def _whole_row(ids: Tensor, prompt: int, end: int) -> Tensor:
    ends = ids == end
    return _after(ids, prompt) & (ends.cumsum(1) - ends.long() == 0)


def _one_more(ids: Tensor, prompt: int, end: int) -> Tensor:
    own = _own(ids, prompt, end)
    return own | (own.roll(1, 1) & _after(ids, prompt))


OWN_WORDS = Exercise(
    number="7.1",
    title="What counts of the student's own words",
    kind="write",
    minutes=12,
    difficulty=2,
    hints=(
        "Look at the reply alone, `ids_BS[:, prompt:]`. A token counts as long as no end has come "
        "*before* it, so the first end counts itself.",
        "`ends = reply == end`; then `ends.cumsum(1) - ends.long()` is the number of ends before "
        "each token.",
        "`mask = torch.zeros_like(ids_BS, dtype=torch.bool)`, and `mask[:, prompt:]` is where that "
        "number is 0.",
    ),
    cases=_own_cases,
    oracle=_own_oracle,
    properties=(
        Property(
            "booleans",
            _is_boolean,
            "The right places, as numbers. `kl[mask]` takes whole numbers for *rows* and refuses "
            "fractions, so a mask is made of booleans: end with `.bool()`, or keep what a "
            "comparison gives.",
        ),
    ),
    mutants=(
        Mutant(
            "everything after the prompt",
            lambda ids, prompt, end: _after(ids, prompt),
            "Everything after the prompt counts, also what stands behind the end of the reply: "
            "filling, or what a model says when nobody listens. Close the mask after the first "
            "end.",
            "trl PR#2058, on-policy batches whose padding was in the loss",
        ),
        Mutant(
            "the end left out",
            lambda ids, prompt, end: _after(ids, prompt) & (_ended(ids, prompt, end) == 0),
            "The end itself does not count. The student said it like any other token, and if "
            "nobody scores it, it never learns when to stop.",
            "RAGEN#59, where the mask of attention left it out",
        ),
        Mutant(
            "ends taken for padding",
            lambda ids, prompt, end: _after(ids, prompt) & (ids != end),
            "You leave out every token that equals the end, as one does with padding. The first "
            "end is the student's word and counts; what stands behind it does not, whatever its "
            "id.",
            "trl PR#6357, GKD with a padding id that is the end's",
        ),
        Mutant(
            "up to the last end",
            _to_last_end,
            "Your mask closes at the *last* end of the row. Where a row is filled up with ends, or "
            "babbles on, that counts what nobody waits for. The first one after the prompt closes "
            "it.",
            "MemGen PR#33, rows filled up with the end, whose lengths all came out alike",
        ),
        Mutant(
            "an end in the prompt",
            _whole_row,
            "Your first end is one of the *prompt*: each turn of the history has its own. So "
            "nothing of the reply is left. Look for it from the prompt's length on.",
            "a reader",
        ),
        Mutant(
            "argmax without an end",
            _by_argmax,
            "Right, except for replies without an end: there `argmax` of nothing but zeros is 0, "
            "and one token counts. A reply that was cut counts to its last token.",
            "a reader",
        ),
        Mutant(
            "an early end missed",
            _early_end_missed,
            "`argmax` gives 0 where there is no end, *and* where the very first token is one. You "
            "take both for a reply that was cut. Ask `(reply == end).any(1)` which it is.",
            "a reader",
        ),
        Mutant(
            "zeros taken for filling",
            lambda ids, prompt, end: _after(ids, prompt) & (ids != 0),
            "You leave out the zeros. Rows are filled up with other things as well, and models "
            "babble on; what closes a reply is its first end.",
            "a reader",
        ),
        Mutant(
            "the first token missing",
            lambda ids, prompt, end: _own(ids, prompt, end) & _after(ids, prompt + 1),
            "The first token of each reply is missing. The prompt holds the places 0 to "
            "`prompt - 1`, so the reply begins *at* `prompt`.",
            "a reader",
        ),
        Mutant(
            "unfinished replies dropped",
            lambda ids, prompt, end: (
                _own(ids, prompt, end) & (_ended(ids, prompt, end)[:, -1:] > 0)
            ),
            "A reply that was cut has no mask at all. Its tokens are the student's as well, and "
            "the teacher has something to say about each. (To drop them is another method's "
            "choice.)",
            "TRL's GRPO, which has it as the option mask_truncated_completions",
        ),
        Mutant(
            "the prompt counted",
            lambda ids, prompt, end: _own(ids, prompt, end) | ~_after(ids, prompt),
            "The prompt counts. Those are the visitor's words and the desk's; the student did not "
            "say them.",
            "Transformers-Tutorials#456, on fine-tuning",
        ),
        Mutant(
            "one too many",
            _one_more,
            "One token too many: that right behind the end. Count the ends *before* each token, "
            "and the first end is the last that counts.",
            "a reader",
        ),
        Mutant(
            "moved to the logits",
            lambda ids, prompt, end: _own(ids, prompt, end).roll(-1, 1),
            "Your mask is one place to the left, where the *logits* of those tokens are. Here it "
            "lies on the tokens, like labels; the loss moves logits and labels together.",
            "ms-swift PR#8436, where logits and labels were moved apart",
        ),
    ),
)


EXERCISES = (OWN_WORDS,)
