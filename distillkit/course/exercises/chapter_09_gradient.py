"""Exercise of chapter 09, quantization: a gradient through rounding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distillkit.course.exercises import gradients
from distillkit.course.exercises.definition import Case, Exercise, Mutant, Property
from distillkit.course.exercises.drawing import Draw
from distillkit.course.exercises.losses_by_hand import Function
from distillkit.course.exercises.ranking import signs
from distillkit.course.exercises.rounding import largest_code, units

# 9.6 · a gradient through rounding ----------------------------------------------------------------

SCALE = 0.35
BITS = 4


def _weights(draw: Draw, o: int, i: int, scale: float, bits: int) -> Tensor:
    """Weights of which some lie outside of the range, two less than half a step; none near Q."""
    codes = units(draw, o, i, most=largest_code(bits) - 1)
    codes[0, :2] = torch.tensor([2.2, -1.7], dtype=torch.float64)
    outside = (largest_code(bits) + 3.3) * signs(draw, o)
    codes[:, -1] = outside
    codes[0, -1], codes[1, -1] = outside[0].abs(), -outside[0].abs()
    codes[0, 2], codes[1, 0] = largest_code(bits) + 0.3, -largest_code(bits) - 0.3
    return (scale * codes).to(draw.dtype)


def _fake_cases(draw: Draw) -> list[Case]:
    cases = []
    for o, i, bits in ((3, 6, 4), (4, 5, 8), (2, 9, 3)):
        scale = 0.02 + float(draw.probabilities(3, dtype=torch.float64)[0])
        name = f"O={o}, I={i}, {bits} bits, scale {scale:.3f}"
        cases.append(Case(name, (_weights(draw, o, i, scale, bits), scale, bits)))
    return cases


def _fake_oracle(weight_OI: list[list[float]], scale: float, bits: int) -> list[list[float]]:
    last = 2 ** (bits - 1) - 1
    rows = []
    for row in weight_OI:
        codes = [round(w / scale) for w in row]
        rows.append([scale * min(max(code, -last), last) for code in codes])
    return rows


def _values(
    w: Tensor, scale: float, bits: int, *, more: int = 0, rounded: Function = torch.round
) -> Tensor:
    """The right values; `more` codes below, or another rounding."""
    last = largest_code(bits)
    result: Tensor = scale * rounded(w / scale).clamp(-last - more, last)
    return result


class _Custom(torch.autograd.Function):
    """The right values, with any slope inside and outside of the range."""

    @staticmethod
    def forward(context: Any, w: Tensor, scale: float, bits: int, slopes: Any) -> Tensor:
        inside = w.abs() <= scale * largest_code(bits)
        context.slope = torch.where(inside, *(torch.full_like(w, s) for s in slopes(scale)))
        return _values(w, scale, bits)

    @staticmethod
    def backward(context: Any, *slopes: Tensor) -> Any:
        return slopes[0] * context.slope, None, None, None


def _half_a_step_more(w: Tensor, scale: float, bits: int) -> Tensor:
    inside = (w / scale).round().abs() <= largest_code(bits)
    return w * inside + (_values(w, scale, bits) - w * inside).detach()


def _with_slopes(slopes: Function) -> Function:
    """The right values; `slopes` of a scale are those inside and outside of the range."""
    return lambda w, scale, bits: _Custom.apply(w, scale, bits, slopes)


def _detached(w: Tensor, scale: float, bits: int) -> Tensor:
    return _values(w.detach(), scale, bits)


def _wrong_part(w: Tensor, scale: float, bits: int) -> Tensor:
    rounded = _values(w, scale, bits)
    return rounded + (w - rounded).detach()


def _unclamped(w: Tensor, scale: float, bits: int) -> Tensor:
    return w + (scale * (w / scale).round() - w).detach()


def _clamped_alone(w: Tensor, scale: float, bits: int) -> Tensor:
    return w.clamp(-scale * largest_code(bits), scale * largest_code(bits))


def _through(values: Function) -> Function:
    """Other values, with the right gradient."""

    def fake(w: Tensor, scale: float, bits: int) -> Tensor:
        held = _clamped_alone(w, scale, bits)
        result: Tensor = held + (values(w, scale, bits) - held).detach()
        return result

    return fake


def _slope(fake: Function, draw: Draw) -> tuple[Tensor, Tensor]:
    """The gradients of each weight, and which weights lie inside of the range."""
    weight = _weights(draw, 4, 6, SCALE, BITS)
    inside = weight.abs() <= SCALE * largest_code(BITS)
    return gradients.gradient(lambda w: fake(w, SCALE, BITS), weight), inside


def _some_inside(fake: Function, draw: Draw) -> bool:
    slope, inside = _slope(fake, draw)
    return bool(slope[inside].any())


def _one_inside(fake: Function, draw: Draw) -> bool:
    slope, inside = _slope(fake, draw)
    return torch.allclose(slope[inside], torch.ones_like(slope[inside]))


def _none_outside(fake: Function, draw: Draw) -> bool:
    slope, _ = _slope(fake, draw)
    return not slope[:, -1].any()


def _none_close_outside(fake: Function, draw: Draw) -> bool:
    slope, inside = _slope(fake, draw)
    return not slope[~inside].any()


GRADIENT = Exercise(
    number="9.6",
    title="A gradient through rounding",
    kind="write",
    minutes=12,
    difficulty=3,
    hints=(
        "Rounding is flat, so its gradient is 0 and nothing learns. Write the value as "
        "`held + (rounded - held).detach()`: it *is* `rounded`, and its gradient is that of "
        "`held`.",
        "What may `held` be, so that its gradient is 1 inside of the range and 0 outside? "
        "`clamp` has just that.",
        "`held = weight_OI.clamp(-scale * last, scale * last)` and "
        "`rounded = scale * (held / scale).round()`.",
    ),
    cases=_fake_cases,
    oracle=_fake_oracle,
    properties=(
        Property(
            "some gradient arrives",
            _some_inside,
            "The values are right, but no gradient arrives at the weights inside of the range: "
            "nothing would learn.",
        ),
        Property(
            "a gradient of 1 inside",
            _one_inside,
            "The values are right, but inside of the range the gradient is not 1: it must pass "
            "straight through, as if nothing had been rounded.",
        ),
        Property(
            "no gradient outside",
            _none_outside,
            "The values are right, but weights outside of the range get a gradient. Their value "
            "does not change with them: it is that of the last code.",
        ),
        Property(
            "no gradient right behind Qs",
            _none_close_outside,
            "The values are right, but a weight less than half a step outside of the range gets a "
            "gradient. The range ends at Qs.",
        ),
    ),
    mutants=(
        Mutant(
            "rounding alone",
            _values,
            "The values are right, and the gradient is 0 everywhere: rounding is flat. Let the "
            "gradient pass beside it: `held + (rounded - held).detach()`.",
            "a reader; aimet#236 asks for the way around",
        ),
        Mutant(
            "detached",
            _detached,
            "The values are right, and nothing hangs on the weights any more: you detached them "
            "altogether. Only the *difference* that rounding makes is detached.",
            "a reader",
        ),
        Mutant(
            "one everywhere",
            _with_slopes(lambda scale: (1.0, 1.0)),
            "The values are right, but the gradient is 1 outside of the range, too. Such a weight "
            "walks further and further out, and its value never changes.",
            "quantized.pytorch#5 and oneflow#8649, where it is 1 everywhere",
        ),
        Mutant(
            "half a step more",
            _half_a_step_more,
            "The values are right, but the gradient ends half a step late: at (Q + ½)s, where "
            "codes begin to be clamped, as `torch.fake_quantize_per_tensor_affine` has it. Here it "
            "ends at Qs: ask |w| <= Qs, and not the rounded code.",
            "a reader, who asked whether the *code* is clamped",
        ),
        Mutant(
            "the scale in the gradient",
            _with_slopes(lambda scale: (1 / scale, 0.0)),
            "The values are right, but inside of the range the gradient is not 1. Most likely the "
            "scale is in it: dividing by s and multiplying by s belong both inside of what is "
            "detached, or both outside.",
            "optimum-quanto#146, where 1 / scale is proposed",
        ),
        Mutant(
            "the wrong part detached",
            _wrong_part,
            "You get the weights back, unrounded: `rounded + (weight - rounded).detach()`. The two "
            "have changed places.",
            "LQ-Nets#9, where somebody stumbles over these signs",
        ),
        Mutant(
            "no clamp",
            _unclamped,
            "Your values leave the range: there is no code for them. Clamp to the last code.",
            "a reader",
        ),
        Mutant(
            "not rounded",
            _clamped_alone,
            "Your values are clamped and not rounded: that is the gradient's half of the work.",
            "a reader",
        ),
        Mutant(
            "one code more",
            _through(lambda w, scale, bits: _values(w, scale, bits, more=1)),
            "Your codes go down to -2^(b-1). Symmetric ones end at -(2^(b-1) - 1), as far below "
            "zero as above.",
            "distiller PR#463, where both ranges are told apart",
        ),
        Mutant(
            "truncated",
            _through(lambda w, scale, bits: _values(w, scale, bits, rounded=torch.trunc)),
            "You cut the decimals off instead of rounding to the nearest code.",
            "a reader",
        ),
        Mutant(
            "codes",
            _through(lambda w, scale, bits: _values(w, scale, bits) / scale),
            "These are the codes. Fake quantization gives back *weights*, on the grid: times the "
            "scale.",
            "a reader",
        ),
    ),
)

EXERCISES = (GRADIENT,)
