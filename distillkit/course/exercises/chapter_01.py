"""Exercises of chapter 01, why compress: memory."""

from __future__ import annotations

from collections.abc import Callable

from distillkit.arithmetic import kv_cache_bytes, parameters, parameters_by_part
from distillkit.course.exercises.definition import Case, Exercise, Mutant
from distillkit.course.exercises.drawing import Draw

EXACT = 1e-7
"""Counts are exact; the engine's absolute tolerance still allows two parts in a million."""


def _shape(draw: Draw) -> tuple[int, int, int, int]:
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
        heads, kv_heads, head_width, layers = _shape(draw)
        vocabulary, feed_forward = draw.integers(2, below=700, least=500).tolist()
        width = heads * head_width
        shape = (vocabulary, width, layers, heads, kv_heads, feed_forward, tied)
        cases.append(Case(f"{layers} layers, {heads} heads, tied={tied}", shape))
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
    norms: bool = True,
) -> Callable[..., int]:
    """The count with one part replaced."""

    def count(
        vocabulary: int, width: int, layers: int, heads: int, kv_heads: int, hidden: int, tied: bool
    ) -> int:
        shared = kv(heads, kv_heads) * (width // heads)
        layer = 2 * width * width + 2 * width * shared + matrices * width * hidden
        vectors = (2 * layers + 1) * width if norms else 0
        return tables(tied) * vocabulary * width + layers * layer + vectors

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
            _counted(norms=False),
            "Everything is there except the norms: two of `width` numbers in a layer, and one at "
            "the end. They weigh little; the count is exact only with them.",
            "Kaplan et al. 2020, section 2.1, whose 12·layers·width² leaves them out on purpose",
        ),
    ),
)


# 1.2 · bytes of the KV cache ----------------------------------------------------------------------


def _cache_cases(draw: Draw) -> list[Case]:
    cases = [
        Case("Llama-3.1-8B, one conversation", (32, 4096, 32, 8, 128, 8192, 1, 16)),
        Case("Mistral Nemo, whose heads are narrow", (40, 5120, 32, 8, 128, 2048, 4, 8)),
    ]
    for bits in (32, 16, 4):
        heads, kv_heads, head_width, layers = _shape(draw)
        width = heads * (head_width - 2)
        tokens, batch = (int(draw.integers(1, below=b, least=a)) for a, b in ((100, 999), (2, 9)))
        shape = (layers, width, heads, kv_heads, head_width, tokens, batch, bits)
        cases.append(Case(f"{tokens} tokens, batch={batch}, bits={bits}", shape))
    return cases


def _cache_oracle(
    layers: int,
    width: int,
    heads: int,
    kv_heads: int,
    head_width: int,
    tokens: int,
    batch: int,
    bits: int,
) -> float:
    total = 0.0
    for _ in range(layers):
        for _ in range(kv_heads):
            for _ in ("key", "value"):
                total += head_width * bits / 8
    return total * tokens * batch


_Sizes = dict[str, int]


def _cached(count: Callable[[_Sizes], float]) -> Callable[..., float]:
    """A wrong count of the cached numbers, in bytes."""
    names = ("layers", "width", "heads", "kv_heads", "head_width", "tokens", "batch", "bits")

    def cache(*sizes: int) -> float:
        s = dict(zip(names, sizes, strict=True))
        return count(s) * s["bits"] / 8

    return cache


def _usual(s: _Sizes, **instead: int) -> int:
    """Two numbers for each layer, kv head, place, token and conversation; parts replaced."""
    s = s | instead
    return 2 * s["layers"] * s["kv_heads"] * s["head_width"] * s["tokens"] * s["batch"]


KV_CACHE = Exercise(
    number="1.2",
    library=(kv_cache_bytes,),
    title="How large is the KV cache?",
    kind="write",
    minutes=10,
    difficulty=2,
    hints=(
        "What does one layer keep for one token? A key and a value for each *kv head*, and each of "
        "them has `head_width` numbers.",
        "Multiply by layers, tokens and conversations; then turn numbers into bytes: `bits / 8`.",
        "`2 * layers * kv_heads * head_width * tokens * batch * bits / 8`; `width` and `heads` are "
        "not needed.",
    ),
    cases=_cache_cases,
    oracle=_cache_oracle,
    tolerance=EXACT,
    mutants=(
        Mutant(
            "all heads",
            _cached(lambda s: _usual(s, kv_heads=s["heads"])),
            "You counted all heads. Grouped-query attention caches keys and values of the "
            "`kv_heads` alone: that is what it was invented for.",
            "torchtune#38, whose cache was 8 times as large as needed",
        ),
        Mutant(
            "kv_heads as a divisor",
            _cached(lambda s: _usual(s, kv_heads=s["heads"] // s["kv_heads"])),
            "You divided `heads` by `kv_heads`: that is how many heads *share* a key. `kv_heads` "
            "is already the number of keys.",
            "rasbt/LLMs-from-scratch#922",
        ),
        Mutant(
            "width by heads",
            _cached(lambda s: _usual(s, head_width=s["width"] // s["heads"])),
            "You computed the head width as `width // heads`. Often that is right, but a model may "
            "state another one, and then the stated one holds.",
            "LMCache#688 and NVIDIA/Model-Optimizer#2482",
        ),
        Mutant(
            "the width for every head",
            _cached(lambda s: _usual(s, kv_heads=s["heads"], head_width=s["width"])),
            "You multiplied the whole width by the number of heads, but the heads *share* the "
            "width: each has `head_width` of it.",
            "jranaraki/vllm-fit#2, 8 times too many",
        ),
        Mutant(
            "keys alone",
            _cached(lambda s: _usual(s) / 2),
            "Yours is half: for each token both a key *and* a value are kept.",
            "an answer in ray-project/llm-numbers#25",
        ),
        Mutant(
            "one layer",
            _cached(lambda s: _usual(s, layers=1)),
            "That is one layer's cache: every layer has keys and values of its own.",
            "a script in sammcj/gollama#117",
        ),
        Mutant(
            "one conversation",
            _cached(lambda s: _usual(s, batch=1)),
            "That is the cache of one conversation. Each one of the batch has its own, which is "
            "why a server's memory fills with caches and not with weights.",
            "the estimate in ai-runway/airunway#139, which knows no concurrency",
        ),
        Mutant(
            "multiplied by 8",
            _cached(lambda s: 64 * _usual(s)),
            "You multiplied by 8 where bits become bytes. Eight bits are one byte: divide.",
            "a printed formula, cfregly/ai-performance-engineering#11",
        ),
        Mutant(
            "bits for bytes",
            _cached(lambda s: 8 * _usual(s)),
            "That is the number of *bits*. A byte has eight of them.",
            "a reader's question about units, mlco2/ecologits#84",
        ),
    ),
)

EXERCISES = (PARAMETERS, KV_CACHE)
