"""Exercise of chapter 08, pruning: heads that share their keys."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.course.exercises.definition import Case, Exercise, Mutant
from distillkit.course.exercises.drawing import Draw
from distillkit.course.exercises.losses_by_hand import Function

# 8.5 · whole groups of heads ----------------------------------------------------------------------

Four = tuple[Tensor, Tensor, Tensor, Tensor]
Rows = list[list[float]]


def _head_cases(draw: Draw) -> list[Case]:
    cases = []
    for groups, share, d, keep in ((3, 2, 4, 2), (4, 3, 2, 2), (5, 2, 2, 3), (4, 2, 6, 1)):
        width = groups * share * d
        shapes = ((width, width), (groups * d, width), (groups * d, width), (width, width))
        inner = draw.logits(groups - 1).argsort()[:keep] + 1  # the first group never stays
        matrices = [draw.logits(*shape) for shape in shapes]
        name = f"{groups * share} heads, {groups} kv heads, d={d}, {keep} kv heads stay"
        cases.append(Case(name, (*matrices, groups, sorted(inner.tolist()))))
    return cases


def _head_oracle(
    q_PD: Rows, k_ND: Rows, v_ND: Rows, o_DP: Rows, kv_heads: int, kept: list[int]
) -> tuple[Rows, Rows, Rows, Rows]:
    d = len(k_ND) // kv_heads
    heads = len(q_PD) // d
    asking, asked = [], []
    for head in range(heads):
        if head // (heads // kv_heads) in kept:
            asking += [head * d + i for i in range(d)]
    for kv_head in kept:
        asked += [kv_head * d + i for i in range(d)]
    o = [[row[p] for p in asking] for row in o_DP]
    return [q_PD[p] for p in asking], [k_ND[n] for n in asked], [v_ND[n] for n in asked], o


def _kept(
    *,
    grouping: str = "together",
    o: str = "columns",
    shared: str = "both",
    dropped: bool = False,
) -> Function:
    """The four matrices cut, with one part replaced.

    grouping: which heads share keys; o: what of the output matrix goes; shared: what is
    cut of keys and values, "exchanged" for both in the other's place. dropped: the others stay.
    """

    def keep(q: Tensor, k: Tensor, v: Tensor, out: Tensor, groups: int, kept: list[int]) -> Four:
        d = len(k) // groups
        heads = len(q) // d
        stay = [g for g in range(groups) if g not in kept] if dropped else kept
        asking = {
            "together": [h for h in range(heads) if h // (heads // groups) in stay],
            "in turn": [h for h in range(heads) if h % groups in stay],
            "alone": list(stay),
            "heads": [h for h in range(heads) if h // groups in stay],
            "leaders": [g * (heads // groups) for g in stay],
            "first": list(range(len(stay) * heads // groups)),
        }[grouping]
        p = _numbers(asking, d)
        n = _numbers(stay, d)
        k, v = (v, k) if shared == "exchanged" else (k, v)
        keys = k if shared == "none" else k[n]
        values = v if shared in ("none", "keys") else v[n]
        cut = {"columns": out[:, p], "rows": out[p], "whole": out}[o]
        return q[p], keys, values, cut

    return keep


def _numbers(heads: list[int], d: int) -> list[int]:
    """The rows of these heads, d for each."""
    return [head * d + i for head in heads for i in range(d)]


def _zeroed(q: Tensor, k: Tensor, v: Tensor, out: Tensor, groups: int, kept: list[int]) -> Four:
    stay = torch.zeros(groups, dtype=q.dtype)
    stay[kept] = 1.0
    asking, asked = (stay.repeat_interleave(len(each) // groups) for each in (q, k))
    return q * asking[:, None], k * asked[:, None], v * asked[:, None], out * asking


def _in_turn(q: Tensor, k: Tensor, v: Tensor, out: Tensor, groups: int, kept: list[int]) -> Four:
    p, n = ([row for row in range(len(each)) if row % groups in kept] for each in (q, k))
    return q[p], k[n], v[n], out[:, p]


HEADS = Exercise(
    number="8.5",
    title="Heads that share their keys",
    kind="write",
    minutes=12,
    difficulty=3,
    hints=(
        "`d = len(k_ND) // kv_heads`, `heads = len(q_PD) // d`, and `heads // kv_heads` heads "
        "that stand beside each other share one key.",
        "A view by heads makes it easy: `q_PD.unflatten(0, (kv_heads, -1))` is (G, heads/G · d, "
        "D). Index the first axis with `kept`, and `flatten(0, 1)`.",
        "The output matrix has the heads in its *columns*: "
        "`o_DP.unflatten(1, (kv_heads, -1))[:, kept].flatten(1)`.",
    ),
    cases=_head_cases,
    oracle=_head_oracle,
    mutants=(
        Mutant(
            "heads in turn",
            _kept(grouping="in turn"),
            "You took every `kv_heads`-th head. Those that share a key stand *beside each other*: "
            "head h asks key h // (heads / kv_heads).",
            "a reader, who wrote `h % kv_heads`",
        ),
        Mutant(
            "over the number of groups",
            _kept(grouping="heads"),
            "You divide the number of a head by `kv_heads`. Divide it by how many heads share a "
            "key: head h asks key h // (heads / kv_heads).",
            "a reader, who wrote `h // kv_heads`",
        ),
        Mutant(
            "the first of each group",
            _kept(grouping="leaders"),
            "Of each group you keep the first head alone. All heads that ask a key stay with it.",
            "a reader",
        ),
        Mutant(
            "zeros for what goes",
            _zeroed,
            "The right heads are set to 0, and still there. Asked for are smaller matrices.",
            "a reader, who multiplied by a mask",
        ),
        Mutant(
            "values whole",
            _kept(shared="keys"),
            "Queries, keys and output are right, but the values are whole: a kv head is a key "
            "*and* a value.",
            "a reader",
        ),
        Mutant(
            "keys and values exchanged",
            _kept(shared="exchanged"),
            "The right rows, but keys and values come back in each other's place.",
            "a reader",
        ),
        Mutant(
            "one head a key",
            _kept(grouping="alone"),
            "You kept as many heads as keys. Each key is asked by several heads, and all of them "
            "stay with it.",
            "Torch-Pruning#461, grouped queries of Qwen2.5",
        ),
        Mutant(
            "the first heads",
            _kept(grouping="first"),
            "Keys and values are the right ones, but the heads are the first so many: they ask "
            "keys that they were not trained with.",
            "a reader, who cut the queries to the right size",
        ),
        Mutant(
            "rows of o",
            _kept(o="rows"),
            "You cut rows of the output matrix. Its rows are the layer's width; the heads are its "
            "columns.",
            "Torch-Pruning#57, whose shapes no longer matched",
        ),
        Mutant(
            "o whole",
            _kept(o="whole"),
            "Queries, keys and values are right, but the output matrix still waits for all heads.",
            "neural-compressor#525, whose layer still counted the old heads",
        ),
        Mutant(
            "keys whole",
            _kept(shared="none"),
            "You cut the heads and left keys and values whole. Nobody asks those any more, and "
            "each group that is left asks the wrong ones.",
            "onnxsim PR#803, which takes whole groups out for that reason",
        ),
        Mutant(
            "the others",
            _kept(dropped=True),
            "You took out what should stay: `kept` names the kv heads to keep.",
            "a reader",
        ),
        Mutant(
            "rows in turn",
            _in_turn,
            "You took every G-th row: `unflatten(0, (-1, kv_heads))`. The rows of a group stand "
            "together, so its axis comes first: `unflatten(0, (kv_heads, -1))`.",
            "a reader",
        ),
    ),
)

EXERCISES = (HEADS,)
