"""Pruning once more, as slow explicit loops over Python floats: the specification, to be read."""


def magnitude_mask(weight, sparsity):
    """Of the whole matrix the ⌊sparsity · size⌋ smallest |w| go."""
    places = [(abs(w), r, c) for r, row in enumerate(weight) for c, w in enumerate(row)]
    gone = {(r, c) for _, r, c in sorted(places)[: int(sparsity * len(places) + 1e-9)]}
    return [[(r, c) not in gone for c in range(len(row))] for r, row in enumerate(weight)]


def wanda_mask(weight, inputs, sparsity):
    """In each output row the ⌊sparsity · columns⌋ smallest |w| · ‖x‖₂ go; inputs: N rows of x."""
    norms = [sum(x[c] ** 2 for x in inputs) ** 0.5 for c in range(len(weight[0]))]
    mask = []
    for row in weight:
        scores = [abs(w) * norm for w, norm in zip(row, norms, strict=True)]
        order = sorted(range(len(row)), key=lambda c: scores[c])
        gone = set(order[: int(sparsity * len(row) + 1e-9)])
        mask.append([c not in gone for c in range(len(row))])
    return mask


def wanda_mask_n_of_m(weight, inputs, n, m):
    """In each output row, of each m columns in a row, the n largest |w| · ‖x‖₂ stay."""
    norms = [sum(x[c] ** 2 for x in inputs) ** 0.5 for c in range(len(weight[0]))]
    mask = []
    for row in weight:
        keep = [False] * len(row)
        for start in range(0, len(row), m):
            group = range(start, start + m)
            for c in sorted(group, key=lambda c: abs(row[c]) * norms[c], reverse=True)[:n]:
                keep[c] = True
        mask.append(keep)
    return mask


def inverse(matrix):
    """By Gauss and Jordan, with pivots."""
    size = len(matrix)
    rows = [
        [*map(float, row), *(float(i == j) for j in range(size))] for i, row in enumerate(matrix)
    ]
    for i in range(size):
        pivot = max(range(i, size), key=lambda k: abs(rows[k][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for k in range(size):
            if k != i:
                rows[k] = [a - rows[k][i] * b for a, b in zip(rows[k], rows[i], strict=True)]
    return [row[size:] for row in rows]


def sparsegpt(weight, inputs, damping, chosen_at_once, how_many_go, in_each_row):
    """Zero column by column; for each, invert the Hessian of the columns that are left anew.

    Columns are chosen from `chosen_at_once` at a time, when the first of them is reached: of all
    their weights, or of each row's (`in_each_row`), the `how_many_go(count)` cheapest go.
    """
    rows, columns = len(weight), len(weight[0])
    hessian = [[sum(x[i] * x[j] for x in inputs) for j in range(columns)] for i in range(columns)]
    mean = sum(hessian[i][i] for i in range(columns)) / columns
    for i in range(columns):
        hessian[i][i] += damping * mean
    weight = [list(map(float, row)) for row in weight]
    keep = [[True] * columns for _ in weight]
    left = [inverse([row[c:] for row in hessian[c:]]) for c in range(columns)]  # (H from c on)⁻¹
    for c in range(columns):
        if c % chosen_at_once == 0:
            block = range(c, min(c + chosen_at_once, columns))
            groups = [[r] for r in range(rows)] if in_each_row else [list(range(rows))]
            for group in groups:
                costs = [(weight[r][j] ** 2 / left[j][0][0], r, j) for r in group for j in block]
                for _, r, j in sorted(costs)[: how_many_go(len(costs))]:
                    keep[r][j] = False
        for r in range(rows):
            if not keep[r][c]:
                error = weight[r][c] / left[c][0][0]
                for j in range(c, columns):
                    weight[r][j] -= error * left[c][0][j - c]
                weight[r][c] = 0.0
    return weight, keep
