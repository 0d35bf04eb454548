"""Losses on what is inside a network: hidden states, attention and relations, token by token.

Every loss gives one number for each token, (B, S), as `losses.py` does for logits: whoever calls it
masks, adds up and divides. Shapes: `B` batch, `S` sequence, `D` the student's width, `E` the
teacher's, `H` heads. `visible` (B, S, S) says for each token (row) which tokens (columns) enter its
loss: real ones, and in a decoder no later ones. Half precision is computed in float32. No gradient
reaches the teacher, and what stands at tokens that are not visible does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distillkit.errors import UserError

# Which of BERT's twelve layers DistilBERT begins with, counted from 0 as in a ModuleList
# (Sanh et al. 2019; the choice is in the script that its authors published).
DISTILBERT_LAYERS = (0, 2, 4, 7, 9, 11)

# --- The losses ---------------------------------------------------------------------------------


def hidden_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference of two hidden states, (B, S, E) and (B, S, E) -> (B, S).

    1/E Σ_e (h_e − t_e)², where h is the student's state, projected by a learned matrix W if its
    width differs: h = W s.

    Source: Jiao et al. 2020, TinyBERT (arXiv 1909.10351), equations 8 and 9 (embeddings); with one
    layer and a regressor it is FitNets' hint (arXiv 1412.6550), equation 3.

    >>> hidden_mse(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 4.0]]])).item()
    2.0
    """
    _check_same(student, teacher)
    return (_exact(student) - _exact(teacher).detach()).square().mean(dim=-1)


def hidden_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """How far two hidden states point in different directions, (B, S, E) twice -> (B, S).

    1 − cos(h, t): 0 where they are parallel, 2 where they are opposite, at any lengths.

    Source: Sanh et al. 2019, DistilBERT (arXiv 1910.01108), section 2, of the last hidden states.

    >>> hidden_cosine(torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[0.0, 5.0]]])).item()
    1.0
    """
    _check_same(student, teacher)
    return 1.0 - F.cosine_similarity(_exact(student), _exact(teacher).detach(), dim=-1)


def attention_scores_mse(student: Tensor, teacher: Tensor, visible: Tensor) -> Tensor:
    """The mean squared difference of the attention's scores, (B, H, S, S) twice -> (B, S).

    1/H Σ_h 1/|visible| Σ_j (A_hij − B_hij)² of the scores q·k/√d *before* the softmax. That is what
    the paper uses: it found that they converge faster and do better than the maps after it. A
    constant added to a whole row changes this loss though it changes no map.

    Source: Jiao et al. 2020, TinyBERT (arXiv 1909.10351), equation 7.
    """
    _check_same(student, teacher)
    squared = (_exact(student) - _exact(teacher).detach()).square().mean(dim=1)
    return _mean_over_visible(squared, visible)


def attention_maps_mse(student: Tensor, teacher: Tensor, visible: Tensor) -> Tensor:
    """The same of the maps, the softmax of the scores over what is visible; for comparison.

    Maps are between 0 and 1 and most are almost 0, so this loss and its gradient are small: it
    needs a weight some orders of magnitude higher.
    """
    _check_same(student, teacher)
    maps = [
        _log_softmax_over_visible(_exact(scores), visible).exp()
        for scores in (student, teacher.detach())
    ]
    return _mean_over_visible((maps[0] - maps[1]).square().mean(dim=1), visible)


def relation_kl(student: Tensor, teacher: Tensor, visible: Tensor, heads: int) -> Tensor:
    """How far apart the relations among tokens are, (B, S, X) and (B, S, Y) -> (B, S), in nats.

    The states (all heads' queries side by side, or keys, or values) are cut anew into `heads`
    relation heads of width d. R_ai = softmax_j(x_ai · x_aj / √d) over what is visible, and the loss
    of token i is 1/A Σ_a KL(R^T_ai ‖ R^S_ai). Widths and numbers of attention heads may differ.

    Source: Wang et al. 2021, MiniLMv2 (arXiv 2012.15828), equations 4 to 7; there without a causal
    mask, because BERT has none.
    """
    log_p = _log_relations(_exact(teacher).detach(), visible, heads)
    log_q = _log_relations(_exact(student), visible, heads)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean(dim=1)


def _log_relations(states: Tensor, visible: Tensor, heads: int) -> Tensor:
    width = states.shape[-1]
    if heads < 1 or width % heads:
        raise UserError(f"{heads} relation heads do not divide a width of {width}: choose another")
    split = states.unflatten(-1, (heads, width // heads)).transpose(1, 2)  # (B, A, S, d)
    scores = split @ split.transpose(-1, -2) / (width // heads) ** 0.5
    return _log_softmax_over_visible(scores, visible)


def _log_softmax_over_visible(scores: Tensor, visible: Tensor) -> Tensor:
    """Logarithms; where nothing is to be seen a large negative number, whose exp is 0.

    Not −inf: a difference of two −inf, and the gradient of a row that sees nothing, would be NaN.
    """
    hidden = ~visible.unsqueeze(1)
    masked = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
    return F.log_softmax(masked, dim=-1).masked_fill(hidden, -1e4)


def _mean_over_visible(per_pair: Tensor, visible: Tensor) -> Tensor:
    total = per_pair.masked_fill(~visible, 0.0).sum(dim=-1)
    return total / visible.sum(dim=-1).clamp(min=1)


def _exact(states: Tensor) -> Tensor:
    return states if states.dtype == torch.float64 else states.float()


def _check_same(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise UserError(
            f"the student's features are {tuple(student.shape)}, the teacher's "
            f"{tuple(teacher.shape)}: project the student's hidden states, choose as many "
            "teacher_heads as the student has, or compare relations"
        )


# --- Where in the network -----------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class After:
    """A place between layers: what comes out of the first `layer` layers.

    `After(0)` are the embeddings, `After(1)` what leaves the first layer: the layer that a
    ModuleList counts as number 0. `normed` means after the network's final norm, which stands
    behind the last layer alone. In a Llama-style model the last of the `hidden_states` that
    transformers gives is after the final norm and all others are not, so for a model of L layers
    hidden_states[i] is After(i) for i < L and After(L, normed=True) at the end. In a model without
    a final norm, such as BERT, the two are the same.
    """

    layer: int
    normed: bool = False


def uniform_layers(student_layers: int, teacher_layers: int) -> list[tuple[int, int]]:
    """After student layer m stands teacher layer m·T/S: pairs (0, 0), (1, k), (2, 2k), …, (S, T).

    Both count as `After` does: 0 are the embeddings. Source: TinyBERT, section 3.

    >>> uniform_layers(2, 4)
    [(0, 0), (1, 2), (2, 4)]
    """
    _check_depths(student_layers, teacher_layers)
    if teacher_layers % student_layers:
        raise UserError(
            f"{teacher_layers} layers are no multiple of {student_layers}: give the pairs yourself"
        )
    every = teacher_layers // student_layers
    return [(m, m * every) for m in range(student_layers + 1)]


def last_layers(student_layers: int, teacher_layers: int) -> list[tuple[int, int]]:
    """The embeddings, and the student's layers with the last ones of the teacher.

    >>> last_layers(2, 4)
    [(0, 0), (1, 3), (2, 4)]
    """
    _check_depths(student_layers, teacher_layers)
    skipped = teacher_layers - student_layers
    return [(0, 0)] + [(m, m + skipped) for m in range(1, student_layers + 1)]


def layers_to_copy(pairs: Iterable[tuple[int, int]]) -> list[int]:
    """The teacher's layers behind which the pairs stand, as `student_from_layers` counts: from 0.

    >>> layers_to_copy(uniform_layers(2, 4))
    [1, 3]
    """
    return [teacher - 1 for student, teacher in pairs if student > 0]


def _check_depths(student_layers: int, teacher_layers: int) -> None:
    if not 1 <= student_layers <= teacher_layers:
        raise UserError(
            f"a student of {student_layers} and a teacher of {teacher_layers} layers: expected at "
            "least one, and no more than the teacher has"
        )


# --- What the losses read -----------------------------------------------------------------------


@dataclass(frozen=True)
class Heads:
    """What enters the attention of one layer, positions already rotated in: (B, H, S, d) each.

    With grouped queries there are fewer keys and values than queries. A sliding window is not
    noted: in texts longer than it, pairs of tokens are matched that the model does not look at.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    causal: bool

    def scores(self, heads: Sequence[int] | None = None) -> Tensor:
        """q·k·scaling, (B, H, S, S), of some of the heads or of all, before mask and softmax.

        In float32 at least. Raises UserError for heads that are not there.
        """
        query, key = _exact(self.query), _exact(self.key)  # a product in float16 overflows
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        if heads is not None:
            if not all(0 <= head < query.shape[1] for head in heads):
                raise UserError(
                    f"teacher_heads are {list(heads)}: expected numbers from 0 to "
                    f"{query.shape[1] - 1}"
                )
            query, key = query[:, list(heads)], key[:, list(heads)]
        return query @ key.transpose(-1, -2) * self.scaling

    def states(self, name: str) -> Tensor:
        """All heads of "query", "key" or "value" side by side, (B, S, H·d)."""
        return getattr(self, name).transpose(1, 2).flatten(2)


@dataclass
class Inside:
    """What one pass through a model showed: hidden states by place, heads by layer (from 1)."""

    hidden: dict[After, Tensor] = field(default_factory=dict)
    heads: dict[int, Heads] = field(default_factory=dict)


Visible = Callable[[bool], Tensor]  # causal? -> (B, S, S)


@dataclass(frozen=True)
class Hidden:
    """Match hidden states of `pairs` (student's place, teacher's place) by `loss`.

    Where the widths differ, one learned matrix brings the student's states to the teacher's width;
    all pairs of this object share it, as in TinyBERT (which gives the embeddings another one: put
    them into an object of their own).
    """

    pairs: Sequence[tuple[After, After]]
    weight: float = 1.0
    loss: Callable[[Tensor, Tensor], Tensor] = hidden_mse

    @property
    def name(self) -> str:
        return f"{self.loss.__name__}_loss"

    def per_token(self, student: Inside, teacher: Inside, project: Any, visible: Visible) -> Tensor:
        """The sum over the pairs, (B, S)."""
        return _sum(
            self.loss(project(student.hidden[mine]), teacher.hidden[its])
            for mine, its in self.pairs
        )


@dataclass(frozen=True)
class Attention:
    """Match attention head by head, in `pairs` of layers counted from 1 (student's, teacher's).

    `teacher_heads` says which of the teacher's heads (from 0) stand beside the student's, when it
    has more. `loss` compares scores (the paper's way) or maps.
    """

    pairs: Sequence[tuple[int, int]]
    weight: float = 1.0
    teacher_heads: Sequence[int] | None = None
    loss: Callable[[Tensor, Tensor, Tensor], Tensor] = attention_scores_mse

    @property
    def name(self) -> str:
        return f"{self.loss.__name__}_loss"

    def per_token(self, student: Inside, teacher: Inside, project: Any, visible: Visible) -> Tensor:
        """The sum over the pairs, (B, S)."""
        return _sum(
            self.loss(
                student.heads[mine].scores(),
                teacher.heads[its].scores(self.teacher_heads),
                visible(student.heads[mine].causal),
            )
            for mine, its in self.pairs
        )


@dataclass(frozen=True)
class Relations:
    """Match the relations among tokens, in `pairs` of layers counted from 1 (student's, teacher's).

    `heads` is the number of relation heads; `of` says between which states: MiniLMv2 takes all
    three, of one pair of layers, with equal weights.
    """

    pairs: Sequence[tuple[int, int]]
    weight: float = 1.0
    heads: int = 12
    of: Sequence[str] = ("query", "key", "value")
    name = "relation_kl_loss"

    def __post_init__(self) -> None:
        if not self.of or set(self.of) - {"query", "key", "value"}:
            raise UserError(f'of is {self.of!r}: give some of "query", "key" and "value"')

    def per_token(self, student: Inside, teacher: Inside, project: Any, visible: Visible) -> Tensor:
        """The sum over the pairs and the kinds of relations, (B, S)."""
        return _sum(
            relation_kl(
                student.heads[mine].states(name),
                teacher.heads[its].states(name),
                visible(student.heads[mine].causal),
                self.heads,
            )
            for mine, its in self.pairs
            for name in self.of
        )


def _sum(parts: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(parts)).sum(dim=0)


Match = Hidden | Attention | Relations
