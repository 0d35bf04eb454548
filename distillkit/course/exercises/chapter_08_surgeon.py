"""Exercise of chapter 08, pruning: what the other weights do when one is cut."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.course.exercises.definition import Case, Exercise, Mutant, Property
from distillkit.course.exercises.drawing import Draw
from distillkit.course.exercises.losses_by_hand import Function
from distillkit.course.exercises.surgery import best_answer, hessian

# 8.3 · one column of SparseGPT --------------------------------------------------------------------


def _column_cases(draw: Draw) -> list[Case]:
    cases = []
    for o, i, column, size in ((5, 6, 0, 0.4), (4, 8, 3, 0.2), (6, 7, 5, 2.5), (3, 5, 4, 0.4)):
        weight = draw.logits(o, i)
        weight[:, column] = weight[:, column].sign() * (1.0 + weight[:, column].abs())
        cut = torch.arange(o) % 2 == int(draw.integers(1, below=2))
        arguments = (weight, hessian(draw, i, size).to(draw.dtype), column, cut)
        cases.append(Case(f"O={o}, I={i}, column {column}", arguments))
    return cases


def _column_oracle(
    weight_OI: list[list[float]], hessian_II: list[list[float]], column: int, cut_O: list[bool]
) -> list[list[float]]:
    changed = []
    for row, cut in zip(weight_OI, cut_O, strict=True):
        if cut:
            moves = best_answer(hessian_II, column, -row[column])
            behind = [w + move for w, move in zip(row[column + 1 :], moves, strict=True)]
            row = [*row[:column], 0.0, *behind]
        changed.append(row)
    return changed


def _cut(
    *,
    inverse: str = "rest",
    sign: float = 1.0,
    divided: str = "diagonal",
    before: bool = False,
    rows: str = "cut",
    zeros: str = "cut",
    at: int = 0,
) -> Function:
    """The cut with one part replaced.

    inverse: of the "rest", the "whole", of each number alone ("numbers"), or "none": H itself.
    divided: by the diagonal of the inverse, by its "square", by 1 / H_qq ("other") or "none".
    before: the columns before move as well. rows: that are updated, "cut", "all" or the "others".
    zeros: the rows that are set to 0 in the end, "none" or "all". at: 1 reads the inverse at q.
    """

    def cut(weight: Tensor, hessian: Tensor, column: int, chosen: Tensor) -> Tensor:
        first = 0 if before else column
        part = hessian if before or inverse == "whole" else hessian[column:, column:]
        place = column if before or inverse == "whole" else at * column
        found = {"none": part, "numbers": 1 / part}.get(inverse)
        found = torch.linalg.inv(part) if found is None else found
        row = found[place] if before or at else found[place, place:]
        by = {
            "diagonal": found[place, place],
            "square": found[place, place] ** 2,
            "other": 1 / hessian[column, column],
            "none": torch.ones((), dtype=weight.dtype),
        }[divided]
        result = weight.clone()
        everywhere = torch.ones_like(chosen)
        which = {"cut": chosen, "all": everywhere, "others": ~chosen}[rows]
        step = weight[:, column] / by * which
        result[:, first:] -= sign * step[:, None] * row
        result[{"cut": which, "all": everywhere, "none": ~everywhere}[zeros], column] = 0.0
        return result

    return cut


def _behind(weight: Tensor, hessian: Tensor, column: int, chosen: Tensor) -> Tensor:
    """The inverse begins behind the column, and so does the move."""
    inverse = torch.linalg.inv(hessian[column + 1 :, column + 1 :])
    result = weight.clone()
    if len(inverse):
        step = weight[:, column] / inverse[0, 0] * chosen
        result[:, column + 1 :] -= torch.outer(step, inverse[0])
    result[chosen, column] = 0.0
    return result


def _exactly_zero(cut: Function, draw: Draw) -> bool:
    """In 60 rows, and with an inverse that leaves crumbs where it is left to the numbers."""
    chosen = torch.arange(60) % 3 > 0
    weight, h = draw.logits(60, 6), hessian(draw, 6).to(draw.dtype)
    while not _leaves_crumbs(weight[chosen, 1], torch.linalg.inv(h[1:, 1:])[0, 0]):
        h = hessian(draw, 6).to(draw.dtype)
    found = torch.as_tensor(cut(weight, h, 1, chosen))
    return not found[chosen, 1].any()


def _leaves_crumbs(w: Tensor, by: Tensor) -> bool:
    """Whether dividing and multiplying, in either order, misses some of the numbers."""
    both = (w / by * by, w * by / by)
    return all(int((each != w).sum()) > len(w) // 10 for each in both)


def _no_answer(weight: Tensor, hessian: Tensor, column: int, chosen: Tensor) -> Tensor:
    result = weight.clone()
    result[chosen, column] = 0.0
    return result


COLUMN = Exercise(
    number="8.3",
    title="Cut one weight, move the others",
    kind="write",
    minutes=15,
    difficulty=3,
    hints=(
        "`torch.linalg.inv(hessian_II[column:, column:])` is the inverse of the part that may "
        "still move. Its row 0 belongs to your column.",
        "A row of weights whose weight is cut moves by `-w_q / inverse[0, 0] * inverse[0]`. At "
        "your own column that is -w_q: the weight becomes 0, but for a crumb.",
        "Work on `weight_OI.clone()`. `torch.outer(step_O, inverse[0])` has the moves of all rows, "
        "where `step_O` is w_q over the diagonal for the rows to cut, and 0 for the others. At the "
        "end, `result[cut_O, column] = 0.0`.",
    ),
    cases=_column_cases,
    oracle=_column_oracle,
    properties=(
        Property(
            "exactly 0",
            _exactly_zero,
            "The numbers are right, but some of the weights that were cut are a crumb, such as "
            "2.4e-7: w - w is not always 0 on the way you take. A file keeps a crumb as it keeps "
            "any weight. Set them to 0 in the end.",
        ),
    ),
    mutants=(
        Mutant(
            "no answer",
            _no_answer,
            "The weight is cut, and the others stay as they are: that is magnitude pruning. They "
            "can make up for a part of it. (Or did you set w_q to 0 before its move was computed? "
            "Then the move is 0, too.)",
            "a reader",
        ),
        Mutant(
            "a crumb left",
            _cut(zeros="none"),
            "The numbers are right, but where a weight was cut, a crumb such as 2.4e-7 is left. "
            "Set it to 0 in the end: `result[cut_O, column] = 0.0`.",
            "a reader, who took the formula at its word",
        ),
        Mutant(
            "row q of the block",
            _cut(at=1),
            "You read the inverse at `[q]`. It begins at column q, since you cut H before, so what "
            "belongs to q stands in its row 0, and the diagonal at `[0, 0]`.",
            "a reader, who took [·]_qq for an index into the block",
        ),
        Mutant(
            "inverse of what is behind",
            _behind,
            "Your block begins behind column q. The set F has q in it: take the inverse of "
            "`hessian_II[column:, column:]`, whose row 0 belongs to q.",
            "a reader, who wrote `column + 1`",
        ),
        Mutant(
            "the other rows",
            _cut(rows="others"),
            "You cut the rows in which `cut_O` is False. It is True where the weight goes.",
            "a reader, who was used to masks of what stays",
        ),
        Mutant(
            "zeros in all rows",
            _cut(zeros="all"),
            "The moves are right, but you set the column to 0 in every row. Only rows in which "
            "`cut_O` is True lose their weight.",
            "a reader, who wrote `result[:, column] = 0`",
        ),
        Mutant(
            "wrong sign",
            _cut(sign=-1.0),
            "The others move by the right amount, the wrong way: the error grows. The move is "
            "*minus* w_q / [H⁻¹]_qq times the row.",
            "a reader, who wrote `+=`",
        ),
        Mutant(
            "columns before move",
            _cut(before=True),
            "You moved the columns before as well. They have been decided already, and some are "
            "zeros: take the inverse of `hessian_II[column:, column:]`.",
            "a reader, who wrote the formula of 1993, where every weight may move",
        ),
        Mutant(
            "inverse of the whole",
            _cut(inverse="whole"),
            "The columns before stay, good, but your inverse still counts on them. A piece of an "
            "inverse is not the inverse of the piece: cut H first, then invert.",
            "cactus PR#807, and gptq#44, which wonders why the inverse is never updated",
        ),
        Mutant(
            "H for its inverse",
            _cut(inverse="none"),
            "You used H where its inverse belongs. Inputs that often come together have to make up "
            "for each other; that is in H⁻¹.",
            "a reader",
        ),
        Mutant(
            "each number inverted",
            _cut(inverse="numbers"),
            "`H ** -1` inverts each number by itself. The inverse of a matrix is "
            "`torch.linalg.inv`.",
            "a reader, who wrote `H ** -1`",
        ),
        Mutant(
            "not divided",
            _cut(divided="none"),
            "You do not divide by [H⁻¹]_qq, so the moves have the wrong size. With it, the weight "
            "itself becomes 0 without being set.",
            "a reader",
        ),
        Mutant(
            "divided by the square",
            _cut(divided="square"),
            "You divide by the square of the diagonal. In SparseGPT's code that square undoes a "
            "root, since it holds a Cholesky factor; your matrix is the inverse itself.",
            "sparsegpt#12 and #43, which ask about it",
        ),
        Mutant(
            "the diagonal inverted",
            _cut(divided="other"),
            "You took 1 / H_qq for [H⁻¹]_qq. They differ as soon as inputs are correlated: invert "
            "the matrix first, then read its diagonal.",
            "a reader",
        ),
        Mutant(
            "all rows",
            _cut(rows="all", zeros="all"),
            "You cut this column in every row. `cut_O` says in which ones; the others keep it.",
            "a reader, who did not use `cut_O`",
        ),
    ),
)

EXERCISES = (COLUMN,)
