"""Exercises of chapter 01, why compress: parameters."""

from __future__ import annotations

from collections.abc import Callable

from distillkit.arithmetic import parameters, parameters_by_part
from distillkit.course.exercises.definition import Case, Exercise, Mutant
from distillkit.course.exercises.drawing import Draw

EXACT = 1e-7
"""Counts are exact; the engine's absolute tolerance still allows two parts in a million."""


def shape(draw: Draw) -> tuple[int, int, int, int]:
    """Heads, kv heads, head width (even) and layers; no two of the counts are equal."""
    kv_heads, share = draw.integers(2, below=5, least=3).tolist()
    share += 3  # heads for each kv head
    half, layers = draw.integers(2, below=14, least=9).tolist()
    return kv_heads * share, kv_heads, 2 * half, layers


# 1.1 · parameters ---------------------------------------------------------------------------------


def _count_cases(draw: Draw) -> list[Case]:
    cases = [
        Case("the shape of SmolLM2-135M", (49_152, 576, 30, 9, 3, 1536, True)),
        Case("the shape of Llama-3.1-8B", (128_256, 4096, 32, 32, 8, 14_336, False)),
    ]
    for tied in (True, False, True):
        heads, kv_heads, head_width, layers = shape(draw)
        vocabulary, feed_forward = draw.integers(2, below=700, least=500).tolist()
        width = heads * head_width
        drawn = (vocabulary, width, layers, heads, kv_heads, feed_forward, tied)
        cases.append(Case(f"{layers} layers, {heads} heads, tied={tied}", drawn))
    return cases


def _count_oracle(
    vocabulary: int,
    width: int,
    layers: int,
    heads: int,
    kv_heads: int,
    feed_forward: int,
    tied: bool,
) -> int:
    head_width = width // heads
    total = vocabulary * width  # the table of embeddings
    for _ in range(layers):
        for _ in range(heads):
            total += width * head_width  # queries
        for _ in range(kv_heads):
            total += 2 * width * head_width  # keys and values
        total += heads * head_width * width  # output
        total += 3 * width * feed_forward
        total += 2 * width  # norms
    total += width
    return total if tied else total + vocabulary * width


def _counted(
    *,
    kv: Callable[[int, int], int] = lambda heads, kv_heads: kv_heads,
    matrices: int = 3,
    tables: Callable[[bool], int] = lambda tied: 1 if tied else 2,
    norms: Callable[[int], int] = lambda layers: 2 * layers + 1,
) -> Callable[..., int]:
    """The count with one part replaced."""

    def count(
        vocabulary: int, width: int, layers: int, heads: int, kv_heads: int, hidden: int, tied: bool
    ) -> int:
        shared = kv(heads, kv_heads) * (width // heads)
        layer = 2 * width * width + 2 * width * shared + matrices * width * hidden
        return tables(tied) * vocabulary * width + layers * layer + norms(layers) * width

    return count


PARAMETERS = Exercise(
    number="1.1",
    library=(parameters, parameters_by_part),
    title="How many parameters?",
    kind="write",
    minutes=15,
    difficulty=2,
    hints=(
        "Go through one layer: queries and output are `width × width`; keys and values are "
        "narrower, `width × (kv_heads · head width)`, where the head width is `width // heads`.",
        "The gated feed-forward part has three matrices of `width × feed_forward`. Each layer has "
        "two norms of `width` numbers, and one more norm stands after the last layer.",
        "Outside the layers: the table of `vocabulary × width`, and as many numbers once more for "
        "the head, unless it is tied to the table.",
    ),
    cases=_count_cases,
    oracle=_count_oracle,
    tolerance=EXACT,
    mutants=(
        Mutant(
            "no grouped queries",
            _counted(kv=lambda heads, kv_heads: heads),
            "You gave every head keys and values of its own. In grouped-query attention there are "
            "`kv_heads` of them, so these two matrices are narrower.",
            "jranaraki/vllm-fit#8",
        ),
        Mutant(
            "kv_heads as a divisor",
            _counted(kv=lambda heads, kv_heads: heads // kv_heads),
            "You took `kv_heads` for the number of heads that share a key. It *is* the number of "
            "keys: `heads // kv_heads` heads share each.",
            "rasbt/LLMs-from-scratch#922",
        ),
        Mutant(
            "two matrices",
            _counted(matrices=2),
            "Your feed-forward part has two matrices, as GPT-2's. A gated one has three: gate, up "
            "and down.",
            "TransformerLens#448, where Llama-7B came out with 5.0 billion",
        ),
        Mutant(
            "tied table twice",
            _counted(tables=lambda tied: 2),
            "You counted the table twice where it is tied. Table and head are one tensor then: "
            "training finds it once.",
            "karpathy/llama2.c#378 and Megatron-DeepSpeed#99",
        ),
        Mutant(
            "untied head missed",
            _counted(tables=lambda tied: 1),
            "Where the head is not tied it is a second matrix of `vocabulary × width`, and you "
            "left it out.",
            "jranaraki/vllm-fit#27",
        ),
        Mutant(
            "tied table subtracted",
            _counted(tables=lambda tied: 0 if tied else 2),
            "Where table and head are tied, yours has neither. One of the two is left: the same "
            "tensor serves as both.",
            "torchtitan PR#3225, which took a tied table off twice",
        ),
        Mutant(
            "tied the other way round",
            _counted(tables=lambda tied: 2 if tied else 1),
            "You have `tied` the wrong way round: yours has two tables where head and table are "
            "one, and one where they are two.",
            "a reader",
        ),
        Mutant(
            "no norms",
            _counted(norms=lambda layers: 0),
            "Everything is there except the norms: two of `width` numbers in a layer, and one at "
            "the end. They weigh little; the count is exact only with them.",
            "Kaplan et al. 2020, section 2.1, whose 12·layers·width² leaves them out on purpose",
        ),
        Mutant(
            "no final norm",
            _counted(norms=lambda layers: 2 * layers),
            "Everything is there except one norm: after the last layer stands one more, of `width` "
            "numbers.",
            "a reader",
        ),
        Mutant(
            "one norm a layer",
            _counted(norms=lambda layers: layers + 1),
            "Everything is there except one norm in each layer: it has two, one before attention "
            "and one before the feed-forward part.",
            "a reader",
        ),
        Mutant(
            "one norm a layer, none at the end",
            _counted(norms=lambda layers: layers),
            "All matrices are right. Of norms a layer has two, and one more stands after the last "
            "layer.",
            "a reader",
        ),
    ),
)

EXERCISES = (PARAMETERS,)
