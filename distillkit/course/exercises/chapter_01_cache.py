"""Exercises of chapter 01, why compress: the KV cache."""

from __future__ import annotations

from collections.abc import Callable

from distillkit.arithmetic import kv_cache_bytes
from distillkit.course.exercises.chapter_01 import EXACT, shape
from distillkit.course.exercises.definition import Case, Exercise, Mutant
from distillkit.course.exercises.drawing import Draw

# 1.2 · bytes of the KV cache ----------------------------------------------------------------------


def _cache_cases(draw: Draw) -> list[Case]:
    cases = [
        Case("Llama-3.1-8B, one conversation", (32, 4096, 32, 8, 128, 8192, 1, 16)),
        Case("Mistral Nemo, whose heads are narrow", (40, 5120, 32, 8, 128, 2048, 4, 8)),
    ]
    for bits in (32, 16, 4):
        heads, kv_heads, head_width, layers = shape(draw)
        width = heads * (head_width - 2)
        tokens, batch = (int(draw.integers(1, below=b, least=a)) for a, b in ((100, 999), (2, 9)))
        drawn = (layers, width, heads, kv_heads, head_width, tokens, batch, bits)
        cases.append(Case(f"{tokens} tokens, batch={batch}, bits={bits}", drawn))
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
        Mutant(
            "the width once",
            _cached(lambda s: _usual(s, kv_heads=1, head_width=s["width"])),
            "You took `width` numbers for a key. That is a key for each of all heads, if heads are "
            "as wide as usual; here `kv_heads` of them are kept, each of `head_width` numbers.",
            "a reader",
        ),
        Mutant(
            "one token",
            _cached(lambda s: _usual(s, tokens=1)),
            "That is what one token adds. The cache holds keys and values of all `tokens`.",
            "a reader",
        ),
    ),
)

EXERCISES = (KV_CACHE,)
