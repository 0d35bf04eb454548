"""The model of the exercise on recovery, and that in slow loops: slopes by the chain rule."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

from distillkit.course.exercises import loops

Build = Callable[[], "Tied"]
Masks = tuple[Tensor, Tensor]
MOMENTUM = 0.9


class Tied(nn.Module):
    """The smallest model whose head is its table: a mean of embeddings, a matrix, the table again.

    `embed`, `middle` and `head` are its layers; `head.weight` *is* `embed.weight`.
    """

    def __init__(self, table: Tensor, middle: Tensor) -> None:
        super().__init__()
        self.embed = nn.Embedding.from_pretrained(table.clone(), freeze=False)
        self.middle = nn.Linear(len(middle), len(middle), bias=False)
        self.middle.weight = nn.Parameter(middle.clone())
        self.head = nn.Linear(len(middle), len(table), bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B, S) ids -> (B, V) logits."""
        logits: Tensor = self.head(self.middle(self.embed(input_ids).mean(1)))
        return logits


def recovered_in_loops(
    build: Build,
    masks: Masks,
    ids_NBS: list[list[list[int]]],
    labels_NB: list[list[int]],
    alpha: float,
    rate: float,
) -> list[float]:
    model = build()
    stay = [mask.tolist() for mask in masks]
    whole = [model.embed.weight.tolist(), model.middle.weight.tolist()]
    cut = [_times(matrix, mask) for matrix, mask in zip(whole, stay, strict=True)]
    speed = [[[0.0] * len(row) for row in matrix] for matrix in cut]
    losses = []
    for ids_BS, labels_B in zip(ids_NBS, labels_NB, strict=True):
        loss, slopes = _loss_and_slopes(cut, whole, ids_BS, labels_B, alpha)
        losses.append(loss)
        for matrix, mask, slope, moving in zip(cut, stay, slopes, speed, strict=True):
            for i, row in enumerate(matrix):
                for j in range(len(row)):
                    moving[i][j] = MOMENTUM * moving[i][j] + slope[i][j]
                    row[j] = (row[j] - rate * moving[i][j]) * mask[i][j]
    weights = [w for matrix in cut for row in matrix for w in row]
    return [*losses, sum(w != 0 for w in weights)]


def _loss_and_slopes(
    cut: list[list[list[float]]],
    whole: list[list[list[float]]],
    ids_BS: list[list[int]],
    labels_B: list[int],
    alpha: float,
) -> tuple[float, list[list[list[float]]]]:
    """The loss of a batch, and its slopes in the table and in the middle, by the chain rule."""
    table, middle = cut
    slopes = [[[0.0] * len(row) for row in matrix] for matrix in cut]
    width, count = range(len(middle)), len(labels_B)
    loss = 0.0
    for ids, label in zip(ids_BS, labels_B, strict=True):
        x, h, z = _forward(table, middle, ids)
        log_q, log_p = loops.log_softmax(z), loops.log_softmax(_forward(whole[0], whole[1], ids)[2])
        loss += (alpha * loops.kl(log_p, log_q) - (1 - alpha) * log_q[label]) / count
        q, p = loops.softmax(z), [math.exp(log) for log in log_p]
        dz = [
            (alpha * (q[v] - p[v]) + (1 - alpha) * (q[v] - (v == label))) / count
            for v in range(len(z))
        ]
        dh = [sum(dz[v] * table[v][i] for v in range(len(z))) for i in width]
        for v in range(len(z)):
            for i in width:
                slopes[0][v][i] += dz[v] * h[i]
        for i in width:
            for j in width:
                slopes[1][i][j] += dh[i] * x[j]
                for token in ids:
                    slopes[0][token][j] += middle[i][j] * dh[i] / len(ids)
    return loss, slopes


def _forward(
    table: list[list[float]], middle: list[list[float]], ids: list[int]
) -> tuple[list[float], list[float], list[float]]:
    """The mean of the embeddings, what the middle makes of it, and the logits."""
    x = [sum(table[token][j] for token in ids) / len(ids) for j in range(len(middle))]
    h = [sum(a * b for a, b in zip(row, x, strict=True)) for row in middle]
    return x, h, [sum(a * b for a, b in zip(row, h, strict=True)) for row in table]


def _times(matrix: list[list[float]], mask: list[list[float]]) -> list[list[float]]:
    pairs = zip(matrix, mask, strict=True)
    return [[w * m for w, m in zip(row, line, strict=True)] for row, line in pairs]
