"""Scores of written replies that need no model: likeness to a reference, and variety."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np


def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """Share of word n-grams that are different ones: 1 is no repetition, near 0 a parrot.

    It falls with the amount of text, so compare equal numbers of replies only. Source: Li et al.
    2016, "A Diversity-Promoting Objective Function for Neural Conversation Models".

    >>> distinct_n(["good day", "good day to you"], n=2)
    0.75
    """
    grams = [gram for text in texts for gram in _grams(text.split(), n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def chrf(
    hypotheses: Sequence[str], references: Sequence[str], *, order: int = 6, beta: float = 2.0
) -> float:
    """Character n-gram F-score of replies against one reference each, from 0 to 100.

    For n = 1..order, precision and recall of character n-grams (blanks left out) over the whole
    corpus; the score is F_beta of their averages over n. With beta = 2 recall weighs twice as much
    as precision. N-grams longer than a reference are not held against the reply to it, as in
    sacreBLEU, whose corpus chrF2 this equals. It needs no tokenizer.

    Source: Popović 2015, "chrF: character n-gram F-score for automatic MT evaluation".
    """
    counts = np.zeros((order, 3))  # in the hypotheses, in the references, in both
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        for n in range(1, order + 1):
            said = Counter(_grams("".join(hypothesis.split()), n))
            right = Counter(_grams("".join(reference.split()), n))
            both = (said & right).total()
            counts[n - 1] += said.total() if right else 0, right.total(), both
    counts = counts[(counts[:, 0] > 0) & (counts[:, 1] > 0)]
    if not counts.size or not counts[:, 2].any():
        return 0.0
    precision, recall = (counts[:, 2:] / counts[:, :2]).mean(axis=0)
    return float(100 * (1 + beta**2) * precision * recall / (beta**2 * precision + recall))


def _grams(items: Sequence[str], n: int) -> Iterator[Sequence[str]]:
    for start in range(len(items) - n + 1):
        gram = items[start : start + n]
        yield gram if isinstance(gram, str) else tuple(gram)
