"""Exercise of chapter 09, quantization: rounding with feedback, column after column."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.course.exercises.definition import Case, Exercise, Mutant, Property
from distillkit.course.exercises.drawing import Draw
from distillkit.course.exercises.losses_by_hand import Function
from distillkit.course.exercises.rounding import largest_code
from distillkit.course.exercises.surgery import best_answer, hessian

# 9.5 · rounding with feedback ---------------------------------------------------------------------

Rows = list[list[float]]
SURE = 0.01
"""So far from a boundary, in steps, every weight is when its turn comes."""


def _feedback_cases(draw: Draw) -> list[Case]:
    cases: list[Case] = []
    for o, i, bits, size in ((6, 7, 3, 0.3), (5, 9, 4, 0.2), (8, 6, 2, 2.0)):
        weight, h, scales = _sure(draw, o, i, bits, size)
        if not cases:
            weight, scales = _with_a_row_that_tells_damping(draw, weight, h, scales, bits)
        arguments = (weight.to(draw.dtype), h.to(draw.dtype), scales.to(draw.dtype), bits)
        cases.append(Case(f"O={o}, I={i}, {bits} bits", arguments))
    return cases


def _sure(draw: Draw, o: int, i: int, bits: int, size: float) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, Hessian and scales; rows that come near a boundary are drawn again."""
    h = hessian(draw, i, size).float().double()
    rows: list[Tensor] = []
    scales: list[Tensor] = []
    while len(rows) < o:
        row = draw.logits(i, dtype=torch.float64).float().double()
        scale = (0.7 * row.abs().max() / largest_code(bits)).float().double()
        seen = _rounded_row(row.tolist(), h.tolist(), scale.item(), bits)[1]
        if min(abs(each % 1 - 0.5) for each in seen) > SURE:
            rows.append(row)
            scales.append(scale)
    return torch.stack(rows), h, torch.stack(scales)


def _with_a_row_that_tells_damping(
    draw: Draw, weight: Tensor, h: Tensor, scales: Tensor, bits: int
) -> tuple[Tensor, Tensor]:
    """The last row is one that a Hessian with 1 % of damping rounds to other codes."""
    while True:
        rows = draw.logits(400, len(h), dtype=torch.float64).float().double()
        own = (0.7 * rows.abs().amax(1) / largest_code(bits)).float().double()
        other = _rounded(damped=0.01)(rows, h, own, bits)
        differ = (_rounded()(rows, h, own, bits) - other).abs().amax(1) > 0.5 * own
        for row, scale in zip(rows[differ], own[differ], strict=True):
            seen = _rounded_row(row.tolist(), h.tolist(), scale.item(), bits)[1]
            if min(abs(each % 1 - 0.5) for each in seen) > 0.3 * SURE:
                return torch.stack([*weight[:-1], row]), torch.stack([*scales[:-1], scale])


def _rounded_row(
    row: list[float], hessian_II: Rows, scale: float, bits: int
) -> tuple[list[float], list[float]]:
    """The row on its grid, and w / scale of each weight when its turn came."""
    last = 2 ** (bits - 1) - 1
    row, seen = list(row), []
    for q in range(len(row)):
        seen.append(row[q] / scale)
        code = min(max(round(row[q] / scale), -last), last)
        moves = best_answer(hessian_II, q, code * scale - row[q])
        row[q] = code * scale
        for place, move in enumerate(moves, start=q + 1):
            row[place] += move
    return row, seen


def _feedback_oracle(weight_OI: Rows, hessian_II: Rows, scales_O: list[float], bits: int) -> Rows:
    pairs = zip(weight_OI, scales_O, strict=True)
    return [_rounded_row(row, hessian_II, scale, bits)[0] for row, scale in pairs]


def _rounded(
    *,
    inverse: str = "rest",
    sign: float = 1.0,
    divided: str = "diagonal",
    reach: str = "behind",
    clamped: bool = True,
    backwards: bool = False,
    in_codes: bool = False,
    damped: float = 0.0,
    crumbs: bool = False,
    given: str = "weights",
    error_of: str = "now",
) -> Function:
    """The loop with one part replaced.

    inverse: of the "rest", of the "whole", or "none": H. divided: by the diagonal of the inverse,
    by that of H ("other"), or by "none". reach: of the feedback; "next" for one column, "all" for
    those before as well, "none". in_codes: the error is counted in steps. damped: the share of
    the mean diagonal that is added to it. crumbs: ŵ is not set. given: back, "weights" or "codes".
    error_of: the column "now", of the "old" one, or of the code before its "clamp".
    """

    def quantize(weight: Tensor, h: Tensor, scales: Tensor, bits: int) -> Tensor:
        h = h + damped * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)
        if given == "codes":
            return (quantize_in_order(weight, h, scales, bits) / scales[:, None]).round()
        if backwards:
            turned = quantize_in_order(weight.flip(1), h.flip(0, 1), scales, bits)
            return turned.flip(1)
        return quantize_in_order(weight, h, scales, bits)

    def quantize_in_order(weight: Tensor, h: Tensor, scales: Tensor, bits: int) -> Tensor:
        last, w, columns = largest_code(bits), weight.clone(), weight.shape[1]
        for q in range(columns):
            nearest = (w[:, q] / scales).round()
            codes = nearest.clamp(-last, last) if clamped else nearest
            error = w[:, q] / scales - codes if in_codes else w[:, q] - codes * scales
            error = weight[:, q] - codes * scales if error_of == "old" else error
            error = w[:, q] - nearest * scales if error_of == "clamp" else error
            part = h if inverse == "whole" or reach == "all" else h[q:, q:]
            place = q if inverse == "whole" or reach == "all" else 0
            found = part if inverse == "none" else torch.linalg.inv(part)
            by = {"diagonal": found[place, place], "other": 1 / h[q, q], "none": h.new_ones(())}
            move = sign * torch.outer(error / by[divided], found[place])
            first = 0 if reach == "all" else q
            end = {"next": q + 2, "none": q}.get(reach, columns)
            w[:, first:end] -= move[:, (0 if first == 0 else place) :][:, : end - first]
            w[:, q] = w[:, q] if crumbs else codes * scales
        return w

    return quantize


def _zeros_are_zero(quantize: Function, draw: Draw) -> bool:
    """With two bits a third of the codes is 0; with three Hessians, one crumb at least is not."""
    return all(_zeros_of_one(quantize, draw) for _ in range(3))


def _zeros_of_one(quantize: Function, draw: Draw) -> bool:
    weight, h = draw.logits(24, 6), hessian(draw, 6).to(draw.dtype)
    scales = 0.7 * weight.abs().amax(1)
    found = torch.as_tensor(quantize(weight, h, scales, 2))
    return bool((found[found.abs() < scales[:, None] / 2] == 0).all())


FEEDBACK = Exercise(
    number="9.5",
    title="Rounding with feedback",
    kind="write",
    minutes=18,
    difficulty=4,
    hints=(
        "A loop over the columns q = 0, 1, … on a copy of W. In each step: round the column as it "
        "is *now*, look at the error, move the columns behind.",
        "`codes = (w[:, q] / scales_O).round().clamp(-last, last)` with `last = 2**(bits-1) - 1`; "
        "`error = w[:, q] - codes * scales_O`.",
        "`inverse = torch.linalg.inv(hessian_II[q:, q:])`, anew in each step. "
        "`w[:, q:] -= torch.outer(error / inverse[0, 0], inverse[0])` also puts column q on its "
        "grid.",
    ),
    cases=_feedback_cases,
    oracle=_feedback_oracle,
    tolerance=1e-3,
    properties=(
        Property(
            "code 0 is exactly 0",
            _zeros_are_zero,
            "The numbers are right but for a crumb: where the code is 0, some of your weights are "
            "not exactly 0. Set column q to ŵ after the step, so that it lies on its grid.",
        ),
    ),
    mutants=(
        Mutant(
            "a crumb left",
            _rounded(crumbs=True),
            "The numbers are right but for a crumb: the formula brings column q near its grid, and "
            "the last digit is off. After the step set it: `w[:, q] = w_hat`.",
            "a reader, who took the formula at its word",
        ),
        Mutant(
            "a damped Hessian",
            _rounded(damped=0.01),
            "You added something to the diagonal of H, as GPTQ does, 1 % of its mean, where H "
            "might have no inverse. This one has. Damping changes some of the codes.",
            "a reader, who knew `percdamp=.01`",
        ),
        Mutant(
            "codes",
            _rounded(given="codes"),
            "These are the codes, and they are right. Asked for are the weights on their grid: "
            "each code times the scale of its row.",
            "a reader",
        ),
        Mutant(
            "the old column's error",
            _rounded(error_of="old"),
            "Your error is that of the weight as it was in the beginning. Column q has moved since "
            "then: the error is w_q *now*, minus ŵ_q.",
            "a reader, who wrote `weight_OI[:, q] - w_hat`",
        ),
        Mutant(
            "the error before the clamp",
            _rounded(error_of="clamp"),
            "The error that you pass on is that of the rounded code before it was clamped. What "
            "the clamp takes is a part of the error: clamp first.",
            "a reader",
        ),
        Mutant(
            "no feedback",
            _rounded(reach="none"),
            "This is rounding to the nearest, each weight by itself. What one column loses, those "
            "behind it can give back: move them by the error. (Or did you round W and not the copy "
            "that moves? Or read the error after column q was overwritten, when it is 0?)",
            "a reader",
        ),
        Mutant(
            "wrong sign",
            _rounded(sign=-1.0),
            "Your feedback goes the wrong way and adds to the error. With the error w - ŵ, the "
            "columns behind move by *minus* its share.",
            "a reader, who took ŵ - w for the error",
        ),
        Mutant(
            "inverse of the whole",
            _rounded(inverse="whole"),
            "You invert H once and read all rows from it. After a step a column is gone from those "
            "that may move: invert `hessian_II[q:, q:]` anew. (A Cholesky factor has all of these "
            "rows at once; that is GPTQ's trick.)",
            "gptq#21 and #44, AutoGPTQ#422, which wonder about it; cactus PR#807, where it was so",
        ),
        Mutant(
            "H for its inverse",
            _rounded(inverse="none"),
            "You used H where its inverse belongs.",
            "a reader",
        ),
        Mutant(
            "not divided",
            _rounded(divided="none"),
            "You do not divide the error by [H⁻¹]_qq, so the feedback has the wrong size.",
            "a reader",
        ),
        Mutant(
            "the diagonal inverted",
            _rounded(divided="other"),
            "You took 1 / H_qq for [H⁻¹]_qq. They differ as soon as inputs are correlated.",
            "a reader",
        ),
        Mutant(
            "the next column alone",
            _rounded(reach="next"),
            "Your feedback ends at the next column. It reaches all columns behind, each by its own "
            "share.",
            "mlx-lm#1878, where a part of the feedback went missing",
        ),
        Mutant(
            "columns before move",
            _rounded(reach="all"),
            "Columns that have been rounded move again, off their grid. Only those behind move.",
            "a reader, who wrote the formula of 1993, where every weight may move",
        ),
        Mutant(
            "no clamp",
            _rounded(clamped=False),
            "Some of your codes lie outside of -Q … Q. Feedback makes weights grow: clamp each "
            "code when its turn comes, and pass the error on.",
            "a reader",
        ),
        Mutant(
            "from the right",
            _rounded(backwards=True),
            "You began with the last column. It is a right way to do it, and the result is another "
            "one: here the order is from left to right.",
            "a reader, who looped over `reversed(range(I))`",
        ),
        Mutant(
            "error in steps",
            _rounded(in_codes=True),
            "Your error is counted in steps, w / scale - code. The columns behind are weights: "
            "multiply it by the scale of its row.",
            "a reader",
        ),
    ),
)

EXERCISES = (FEEDBACK,)
