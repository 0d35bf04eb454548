"""Quantization in slow loops of Python numbers, written from the papers' equations.

Matrices are lists of rows, or arrays read entry by entry; nothing is taken from distillkit.
"""

import numpy as np


def grid_of(values: list[float], bits: int, symmetric: bool, kind=np.float16):
    """(scale, zero, lowest integer, highest integer) of a group by its least and largest value."""
    low, high = min(0.0, min(values)), max(0.0, max(values))
    if symmetric:
        high = max(high, -low)
        low, first, last = -high, -(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1
    else:
        first, last = 0, 2**bits - 1
    scale = float(kind((high - low) / (last - first))) if high > low else 1.0
    zero = 0 if symmetric else min(max(round_half_even(-low / scale), first), last)
    return scale, zero, first, last


def round_half_even(value: float) -> int:
    return round(value)  # Python's own: ties go to the even integer


def on_grid(value: float, grid) -> tuple[int, float]:
    """The integer of a value, and what it comes back as."""
    scale, zero, first, last = grid
    code = min(max(round_half_even(value / scale) + zero, first), last)
    return code, (code - zero) * scale


def nearest(matrix, bits: int, symmetric: bool, group: int, kind=np.float16):
    """Round to nearest, one group of each row after the other: (integers, what comes back)."""
    codes, back = [], []
    for row in matrix:
        codes.append([])
        back.append([])
        for start in range(0, len(row), group):
            values = [float(value) for value in row[start : start + group]]
            grid = grid_of(values, bits, symmetric, kind)
            for value in values:
                code, restored = on_grid(value, grid)
                codes[-1].append(code)
                back[-1].append(restored)
    return np.array(codes), np.array(back)


def bits_of(codes: list[int], bits: int) -> list[int]:
    """Bytes of integers, bit by bit, the lowest first."""
    stream = [code >> place & 1 for code in codes for place in range(bits)]
    stream += [0] * (-len(stream) % 8)
    return [
        sum(stream[start + place] << place for place in range(8))
        for start in range(0, len(stream), 8)
    ]


def optimal_brain_quantization(matrix, products, bits, symmetric, group, damping, order):
    """OBQ with a fixed order of columns: what GPTQ computes by Cholesky (Frantar et al. 2023).

    F being the columns that are left, rounding the first of them, q, changes those behind it by
    −(w_q − quant(w_q)) / [H_F⁻¹]_qq · (H_F⁻¹)_q,: (equation 2); H_F is inverted anew for every F.
    A group's grid is that of its weights when its first column comes.
    """
    weights = np.array(matrix, dtype=np.float64)
    hessian = 2 * np.array(products, dtype=np.float64)
    hessian += damping * np.mean(np.diag(hessian)) * np.eye(len(hessian))
    codes, back = np.zeros(weights.shape, dtype=int), np.zeros_like(weights)
    grids: dict[tuple[int, int], tuple] = {}
    in_order = list(order) == sorted(order)
    for place, column in enumerate(order):
        left = list(order[place:])
        inverse = np.linalg.inv(hessian[np.ix_(left, left)])
        for output in range(len(weights)):
            key = output, column // group
            if key not in grids:
                start = column // group * group
                source = weights if in_order else np.array(matrix, dtype=np.float64)
                values = np.float32(source[output, start : start + group])
                grids[key] = grid_of([float(value) for value in values], bits, symmetric)
            w = weights[output, column]
            codes[output, column], back[output, column] = on_grid(w, grids[key])
            error = (w - back[output, column]) / inverse[0, 0]
            for there, other in enumerate(left):
                if there:
                    weights[output, other] -= error * inverse[0, there]
    return codes, back


def squared_error(rows, matrix, other) -> float:
    """Σ over tokens and outputs of the squared difference of two layers' products."""
    total = 0.0
    for x in rows:
        for one, two in zip(matrix, other, strict=True):
            total += sum(a * (b - c) for a, b, c in zip(x, one, two, strict=True)) ** 2
    return total


def smoothing(rows, matrix, alpha: float) -> list[float]:
    """SmoothQuant's equation 4, feature by feature."""
    scales = []
    for feature in range(len(rows[0])):
        x = max(abs(row[feature]) for row in rows)
        w = max(abs(row[feature]) for row in matrix)
        scales.append(x**alpha / w ** (1 - alpha))
    return scales


def activation_aware(rows, matrix, bits, symmetric, group, steps) -> tuple[list[float], list]:
    """AWQ's equations 4 and 5 by trying all: (the scales found, the error of each step)."""
    means = [sum(abs(row[j]) for row in rows) / len(rows) for j in range(len(rows[0]))]
    errors, tried = [], []
    for step in range(steps + 1):
        scales = [mean ** (step / steps) for mean in means]
        middle = (max(scales) * min(scales)) ** 0.5
        scales = [scale / middle for scale in scales]
        enlarged = [[w * s for w, s in zip(row, scales, strict=True)] for row in matrix]
        _, back = nearest(np.float32(enlarged), bits, symmetric, group)
        restored = [[w / s for w, s in zip(row, scales, strict=True)] for row in back]
        errors.append(squared_error(rows, matrix, restored))
        tried.append(scales)
    best = min(range(len(errors)), key=lambda step: errors[step])
    return tried[best], errors


def integer_layer(rows, matrix, *, static_scale=None):
    """W8A8: integers of x, integers of W (one scale a row), the product, the two scales."""
    result = []
    grids = [grid_of([float(w) for w in row], 8, True) for row in matrix]
    for row in rows:
        scale = static_scale or max(abs(float(x)) for x in row) / 127 or 1.0
        x_codes = [min(max(round_half_even(float(x) / scale), -127), 127) for x in row]
        result.append([])
        for w_row, grid in zip(matrix, grids, strict=True):
            total = sum(x * on_grid(float(w), grid)[0] for x, w in zip(x_codes, w_row, strict=True))
            result[-1].append(total * scale * grid[0])
    return np.array(result)
