"""Exercises of chapter 07, distilling generation: an on-policy training to mend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.course.exercises import loops
from distillkit.course.exercises.broken import chapter_07 as broken
from distillkit.course.exercises.definition import Case, Exercise, Mutant
from distillkit.course.exercises.drawing import IGNORED, Draw
from distillkit.course.exercises.losses_by_hand import Function

# 7.3 · mend it ------------------------------------------------------------------------------------


class Babbler(nn.Module):
    """The smallest model that speaks: the next token's logits are a row of a table, (V, V).

    In training mode it drops some of them, always the same ones: those where `kept` is 0.
    """

    kept: Tensor

    def __init__(self, table: Tensor, kept: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table.clone())
        self.register_buffer("kept", kept.to(table.dtype))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, S) tokens -> (B, S, V) logits."""
        logits = self.table[tokens]
        return logits * self.kept[tokens] if self.training else logits

    @torch.no_grad()
    def generate(
        self, first: Tensor, noise: Tensor, temperature: float, end: int
    ) -> tuple[Tensor, Tensor]:
        """Speak after the tokens (B,), drawing with Gumbel noise (G, B, V).

        Gives ids (B, G+1), the first ones included, and for the G others whether the reply still
        goes on, (B, G).
        """
        ids, goes_on = [first], [torch.ones_like(first, dtype=torch.bool)]
        for each in noise:
            ids.append((self(ids[-1]) / temperature + each).argmax(-1))
            goes_on.append(goes_on[-1] & (ids[-1] != end))
        return torch.stack(ids, 1), torch.stack(goes_on[:-1], 1)


def _builder(student: Tensor, teacher: Tensor, kept: Tensor) -> Callable[[], tuple[Any, Any]]:
    def build() -> tuple[Babbler, Babbler]:
        return Babbler(student, kept), Babbler(teacher, kept).eval().requires_grad_(False)

    return build


def _train_cases(draw: Draw) -> list[Case]:
    cases = []
    for n, b, g, v, tau, rate in (
        (3, 3, 6, 5, 2.0, 0.9),
        (4, 2, 8, 6, 0.6, 0.5),
        (3, 4, 5, 7, 1.4, 0.7),
    ):
        kept = draw.integers(v, v, below=3) > 0
        build = _builder(draw.logits(v, v), draw.logits(v, v), kept)
        uniform = draw.integers(n, g, b, v, below=9999, least=1).to(draw.dtype) / 10_000
        noise = -(-uniform.log()).log()
        labels = draw.integers(n, b, g + 3, below=v)
        labels[:, :, : g // 2] = IGNORED
        first = draw.integers(n, b, below=v)
        name = f"{n} steps, B={b}, G={g}, V={v}, τ={tau}"
        cases.append(Case(name, (build, first, noise, labels, v - 1, tau, rate)))
    return cases


def _train_oracle(
    build: Callable[[], tuple[Any, Any]],
    first_NB: list[Any],
    noise_NGBV: list[Any],
    labels_NBS: list[Any],
    end: int,
    tau: float,
    rate: float,
) -> list[float]:
    student, teacher = build()
    table, kept, taught = student.table.tolist(), student.kept.tolist(), teacher.table.tolist()
    losses = []
    for first_B, noise_GBV in zip(first_NB, noise_NGBV, strict=True):
        said = []  # the token before each token of the replies
        for b, token in enumerate(first_B):
            for noise_BV in noise_GBV:
                said.append(token)
                shaken = [x / tau + y for x, y in zip(table[token], noise_BV[b], strict=True)]
                token = max(range(len(shaken)), key=shaken.__getitem__)
                if token == end:
                    break
        total, slopes = 0.0, [[0.0] * len(row) for row in table]
        for token in said:
            heard = [x * y for x, y in zip(table[token], kept[token], strict=True)]
            log_q, log_p = loops.log_softmax(heard), loops.log_softmax(taught[token])
            kl = loops.kl(log_q, log_p)
            total += kl
            for v, (q, p) in enumerate(zip(log_q, log_p, strict=True)):
                slopes[token][v] += kept[token][v] * loops.softmax(heard)[v] * (q - p - kl)
        losses.append(total / len(said))
        for row, changes in zip(table, slopes, strict=True):
            for v, change in enumerate(changes):
                row[v] -= rate * change / len(said)
    return losses


def _training(
    *,
    calm: bool = True,
    back: bool = True,
    cool: tuple[bool, bool] = (True, True),
    divide: str = "said",
    all_summed: bool = False,
    drawn_at_one: bool = False,
    forward: bool = False,
) -> Function:
    """The training mended in part.

    calm: `eval()` while it speaks; back: `train()` afterwards; cool: whether student and teacher
    are scored without the sampling temperature. divide: by the tokens that were "said", those of
    the "reference", "all" that were written, or each reply "alone". all_summed: what stands behind
    the end enters. drawn_at_one: τ is left out of the drawing. forward: KL(p‖q).
    """

    def train(
        build: Any,
        first_NB: Tensor,
        noise_NGBV: Tensor,
        labels_NBS: Tensor,
        end: int,
        tau: float,
        rate: float,
    ) -> list[float]:
        student, teacher = build()
        optimizer = torch.optim.SGD(student.parameters(), lr=rate)
        losses = []
        for first, noise, labels in zip(first_NB, noise_NGBV, labels_NBS, strict=True):
            student.train(not calm)
            ids, said = student.generate(first, noise, 1.0 if drawn_at_one else tau, end)
            student.train(back)
            log_q, log_p = (
                (model(ids[:, :-1]) / (1.0 if right else tau)).log_softmax(-1)
                for model, right in zip((student, teacher), cool, strict=True)
            )
            log_a, log_b = (log_p, log_q) if forward else (log_q, log_p)
            kl = (log_a.exp() * (log_a - log_b)).sum(-1)
            kl = kl if all_summed else kl * said
            if divide == "alone":
                loss = (kl.sum(1) / said.sum(1)).mean()
            else:
                loss = kl.sum() / _count(divide, said, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    return train


def _count(divide: str, said: Tensor, labels: Tensor) -> Any:
    if divide == "reference":
        return (labels != IGNORED).sum()
    return said.numel() if divide == "all" else said.sum()


_HOT = (False, False)
_MODE = "trl#155, where it was agreed that eval() must stand before generate()"
_HEAT = "trl PR#5731, where the sampling temperature went into the loss"
_COUNT = "TRL 1.16, whose GKDTrainer counted the tokens of the unused reference"

MEND_ON_POLICY = Exercise(
    number="7.3",
    title="An on-policy training with three faults",
    kind="mend",
    minutes=15,
    difficulty=3,
    hints=(
        "Three questions: in which mode does the student speak? Which temperature is τ, that of "
        "the words or that of the loss? And how many tokens are in the sum?",
        "`student.eval()` before `generate`, and `student.train()` after it: the lesson may drop "
        "what it likes. `generate` does not change the mode itself.",
        "`log_q = student(ids[:, :-1]).log_softmax(-1)`, the teacher alike, and the sum is divided "
        "by `said.sum()`.",
    ),
    cases=_train_cases,
    oracle=_train_oracle,
    given=broken.train,
    mutants=(
        Mutant(
            "speaks in training mode",
            _training(calm=False),
            "One fault is left: the student speaks in training mode, with a part of its logits "
            "dropped. Those are not the words that it will say to visitors. `student.eval()` "
            "before `generate`, and `student.train()` after it.",
            _MODE,
        ),
        Mutant(
            "the sampling temperature in the loss",
            _training(cool=_HOT),
            "One fault is left: τ belongs to the drawing of the words. In the loss it makes both "
            "distributions softer or sharper than they are.",
            _HEAT,
        ),
        Mutant(
            "the reference counted",
            _training(divide="reference"),
            "One fault is left: the sum goes over what the student said, and you divide it by the "
            "length of an answer that nobody used. Divide by `said.sum()`, counted after "
            "`generate`.",
            _COUNT,
        ),
        Mutant(
            "only the mode mended",
            _training(cool=_HOT, divide="reference"),
            "The student speaks as it is, good. Two faults are left: τ stands in the loss, and the "
            "divisor counts an answer that nobody used.",
            f"{_HEAT}; {_COUNT}",
        ),
        Mutant(
            "only the temperature mended",
            _training(calm=False, divide="reference"),
            "The loss is at T = 1, good. Two faults are left: the mode in which the student "
            "speaks, and what the sum is divided by.",
            f"{_MODE}; {_COUNT}",
        ),
        Mutant(
            "only the count mended",
            _training(calm=False, cool=_HOT),
            "You divide by what was said, good. Two faults are left: the mode in which the student "
            "speaks, and τ in the loss.",
            f"{_MODE}; {_HEAT}",
        ),
        Mutant(
            "eval for good",
            _training(back=False),
            "The student speaks in eval mode, and stays in it: the loss is computed without "
            "dropout, in this step and in all that follow. `student.train()` after `generate`.",
            "a review of ai-engineering-from-scratch PR#206, whose generate() did so",
        ),
        Mutant(
            "eval for good, τ and the count left",
            _training(back=False, cool=_HOT, divide="reference"),
            "Now the student speaks in eval mode, and stays in it: `student.train()` after "
            "`generate`. Beside that, τ stands in the loss, and the divisor counts an answer that "
            "nobody used.",
            _MODE,
        ),
        Mutant(
            "eval for good, τ left",
            _training(back=False, cool=_HOT),
            "The student speaks in eval mode, and stays in it: `student.train()` after `generate`. "
            "And τ stands in the loss.",
            _MODE,
        ),
        Mutant(
            "eval for good, the count left",
            _training(back=False, divide="reference"),
            "The student speaks in eval mode, and stays in it: `student.train()` after `generate`. "
            "And the divisor counts an answer that nobody used.",
            _MODE,
        ),
        Mutant(
            "τ taken out everywhere",
            _training(drawn_at_one=True),
            "τ is gone from the drawing as well. There it belongs: `generate` gets τ, the loss "
            "does not.",
            "a reader",
        ),
        Mutant(
            "the forward KL",
            _training(forward=True),
            "That is KL(p‖q). On the student's words the statement asks for KL(q‖p): the student "
            "first.",
            "a reader",
        ),
        Mutant(
            "the teacher's temperature",
            _training(cool=(True, False)),
            "Now the student is scored at T = 1 and the teacher at τ, so the student would have to "
            "become somebody else. Neither gets τ in the loss.",
            "a reader",
        ),
        Mutant(
            "divided by all that was written",
            _training(divide="all"),
            "The mask is used, and the divisor counts what it masks: B·G is the number of tokens "
            "written, ends passed or not. Short replies make your loss small. Divide by "
            "`said.sum()`.",
            "Fast-LLM#344, masked but divided by all tokens",
        ),
        Mutant(
            "what stands behind the end",
            _training(all_summed=True, divide="all"),
            "What the model wrote behind its end counts. Nobody hears that: multiply by `said` "
            "before the sum, and divide by `said.sum()`.",
            "trl PR#2058, on-policy batches whose padding was in the loss",
        ),
        Mutant(
            "a mean of means",
            _training(divide="alone"),
            "Yours is a mean over replies of their means, so a token of a short reply weighs more "
            "than one of a long reply. Sum over all of them, and divide once.",
            "trl#4719 and ms-swift#10076, on micro-batches",
        ),
    ),
)

EXERCISES = (MEND_ON_POLICY,)
