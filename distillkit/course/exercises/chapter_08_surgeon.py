"""Exercise of chapter 08, pruning: what the other weights do when one is cut."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.course.exercises.definition import Case, Exercise, Mutant
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
) -> Function:
    """The cut with one part replaced.

    inverse: of the "rest", the "whole", of each number alone ("numbers"), or "none": H itself.
    divided: by the diagonal of the inverse, by its "square", by 1 / H_qq ("other") or "none".
    before: the columns before move as well. rows: that are updated.
    """

    def cut(weight: Tensor, hessian: Tensor, column: int, chosen: Tensor) -> Tensor:
        first = 0 if before else column
        part = hessian if before or inverse == "whole" else hessian[column:, column:]
        place = column if before or inverse == "whole" else 0
        found = {"none": part, "numbers": 1 / part}.get(inverse)
        found = torch.linalg.inv(part) if found is None else found
        row = found[place] if before else found[place, place:]
        by = {
            "diagonal": found[place, place],
            "square": found[place, place] ** 2,
            "other": 1 / hessian[column, column],
            "none": torch.ones((), dtype=weight.dtype),
        }[divided]
        result = weight.clone()
        step = weight[:, column] / by * (chosen if rows == "cut" else 1)
        result[:, first:] -= sign * step[:, None] * row
        result[chosen if rows == "cut" else slice(None), column] = 0.0
        return result

    return cut


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
    mutants=(
        Mutant(
            "no answer",
            _no_answer,
            "The weight is cut, and the others stay as they are: that is magnitude pruning. They "
            "can make up for a part of it.",
            "a reader",
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
            _cut(rows="all"),
            "You cut this column in every row. `cut_O` says in which ones; the others keep it.",
            "a reader, who did not use `cut_O`",
        ),
    ),
)

EXERCISES = (COLUMN,)
