"""Exercises of chapter 01, why compress: time, and what one reads about sizes."""

from __future__ import annotations

from collections.abc import Callable

from distillkit.arithmetic import decode_bytes, step_seconds
from distillkit.course.exercises.definition import Case, Exercise, Mutant
from distillkit.course.exercises.drawing import Draw

# 1.3 · milliseconds of a step ---------------------------------------------------------------------


def _step_cases(draw: Draw) -> list[Case]:
    cases = [
        Case("8 billion parameters on a T4", (8_030_261_248, 16, 131_072 * 2048, 1, 320.0, 0.0)),
        Case("a model of 325,000 parameters", (325_000, 32, 98_304, 1, 20.0, 0.6)),
    ]
    for bits in (16, 8, 4):
        drawn = draw.integers(4, below=900, least=300).tolist()
        millions, cache, bandwidth, overhead = drawn
        batch = int(draw.integers(1, below=33, least=5))
        step = (millions * 10**6, bits, cache * 10**5, batch, float(bandwidth), overhead / 100)
        cases.append(Case(f"{millions} M parameters in {bits} bits, batch={batch}", step))
    return cases


def _step_oracle(
    parameters: int,
    bits: int,
    cache_bytes: int,
    batch: int,
    bandwidth: float,
    overhead_ms: float,
) -> float:
    read = parameters * bits / 8
    for _ in range(batch):
        read += cache_bytes
    seconds = read / (bandwidth * 1e9)
    return seconds * 1000 + overhead_ms


def _step(
    *,
    byte: float = 8.0,
    weights: Callable[[int], int] = lambda batch: 1,
    caches: Callable[[int], int] = lambda batch: batch,
    giga: float = 1e9,
    milli: float = 1000.0,
    overhead: bool = True,
) -> Callable[..., float]:
    """The time with one part replaced."""

    def step_ms(
        parameters: int, bits: int, cache: int, batch: int, bandwidth: float, besides: float
    ) -> float:
        read = weights(batch) * parameters * bits / byte + caches(batch) * cache
        return read / (bandwidth * giga) * milli + (besides if overhead else 0.0)

    return step_ms


def _whichever_is_longer(*step: float) -> float:
    *_, besides = step
    return max(_step(overhead=False)(*step), besides)


def _in_seconds(*step: float) -> float:
    return _step()(*step) / 1000


def _all_in_bits(
    parameters: int, bits: int, cache: int, batch: int, bandwidth: float, besides: float
) -> float:
    return (parameters + batch * cache) * bits / 8 / (bandwidth * 1e6) + besides


def _all_divided(
    parameters: int, bits: int, cache: int, batch: int, bandwidth: float, besides: float
) -> float:
    return (parameters * bits + batch * cache) / 8 / (bandwidth * 1e6) + besides


STEP = Exercise(
    number="1.3",
    library=(step_seconds, decode_bytes),
    title="How long is one step of decoding?",
    kind="write",
    minutes=10,
    difficulty=2,
    hints=(
        "Which bytes must come out of memory before the step is done? All weights, once, however "
        "many conversations wait for them, and the cache of each conversation.",
        "Bytes divided by bytes a second are seconds. A GB is 10⁹ bytes, a second 1,000 ms.",
        "What the program spends besides is added at the end; it is in milliseconds already.",
    ),
    cases=_step_cases,
    oracle=_step_oracle,
    tolerance=1e-6,
    mutants=(
        Mutant(
            "no overhead",
            _step(overhead=False),
            "That is what bandwidth alone allows. With a large model it is nearly everything; a "
            "model of the course's size spends most of its time *between* the reads. Add "
            "`overhead_ms`.",
            "inference-sim#489, a predictor of latency without overhead",
        ),
        Mutant(
            "weights alone",
            _step(caches=lambda batch: 0),
            "You read the weights alone. Attention looks back at every token, so the step reads "
            "the caches as well.",
            "the rule tokens per second = bandwidth / model size, llmfit PR#137",
        ),
        Mutant(
            "one cache",
            _step(caches=lambda batch: 1),
            "You read one conversation's cache. `cache_bytes` is that of *one*; the step serves "
            "`batch` of them.",
            "the estimate in ai-runway/airunway#139, which knows no concurrency",
        ),
        Mutant(
            "weights for each conversation",
            _step(weights=lambda batch: batch),
            "You read the weights once for each conversation. One reading serves all of them, "
            "which is why servers form batches; the caches alone are multiplied by `batch`.",
            "a reader",
        ),
        Mutant(
            "bits for bytes",
            _step(byte=1.0),
            "Your weights are 8 times too heavy: `bits` are bits, and bandwidth counts bytes.",
            "a reader's question about units, mlco2/ecologits#84",
        ),
        Mutant(
            "GiB",
            _step(giga=2.0**30),
            "You took a GB for 1024³ bytes, which is a GiB. Bandwidths are stated in units of 10⁹ "
            "bytes a second.",
            "lattice/quda#39 and datawhalechina/hello-gpu#8",
        ),
        Mutant(
            "seconds",
            _step(milli=1.0),
            "Your reading time is in seconds, and `overhead_ms` in milliseconds.",
            "tile-ai/TileOPs#183, on seconds and milliseconds in a bandwidth",
        ),
        Mutant(
            "whichever is longer",
            _whichever_is_longer,
            "You took the longer of reading and `overhead_ms`. The program spends its overhead "
            "*besides*, before and after the reading: the two add up.",
            "a reader",
        ),
        Mutant(
            "all in seconds",
            _in_seconds,
            "That is right, in seconds. The milliseconds are asked for: 1,000 of them a second.",
            "a reader",
        ),
        Mutant(
            "cache multiplied by bits",
            _all_in_bits,
            "You multiply the cache by `bits / 8`, too. `cache_bytes` is in bytes already: only "
            "the parameters have `bits` each.",
            "a reader",
        ),
        Mutant(
            "cache divided by 8",
            _all_divided,
            "You divide the cache by 8, too. `cache_bytes` is in bytes already; only the weights "
            "come in bits.",
            "a reader",
        ),
    ),
)


# 1.4 · what one reads -----------------------------------------------------------------------------

_LLAMA_8B = {"parameters": 8_030_261_248, "layers": 32, "kv_heads": 8, "head_width": 128}


def caches_over_weights(conversations: int = 64, tokens: int = 8192) -> float:
    """The bytes of the caches of Llama-3.1-8B, as a multiple of its weights', both in 16 bits.

    Sentence c, which the learner judges:

    >>> caches_over_weights() > 4
    True
    """
    numbers = 2 * _LLAMA_8B["layers"] * _LLAMA_8B["kv_heads"] * _LLAMA_8B["head_width"]
    return numbers * tokens * conversations / _LLAMA_8B["parameters"]


SENTENCES = Exercise(
    number="1.4",
    title="Which of these sentences is true?",
    kind="predict",
    minutes=5,
    difficulty=2,
    hints=(
        "For a: half of the *layers* is not half of the parameters; what is outside the layers? "
        "For b: what does a service send you, numbers for every token or a text?",
        "Sentence c can be computed: 1.1 and 1.2 know everything about it. Two bytes a number.",
    ),
    choices=("a", "b", "c", "d", "e"),
    oracle=lambda: "c",
    mutants=(
        Mutant(
            "half of BERT",
            "a",
            "It is 40 % smaller: 66 million parameters for 110. The number of *layers* was halved, "
            "and the table of embeddings stayed whole.",
            "many articles; Sanh et al. 2019 say 40 %",
        ),
        Mutant(
            "the logits of GPT-3",
            "b",
            "Its weights were never published, and the service gave text, with the log-probability "
            "of a few tokens at best. It can be a *black-box* teacher only: one that writes what "
            "students then read.",
            "articles that name GPT-3 among the teachers; Brown et al. 2020 published no weights",
        ),
        Mutant(
            "zeros are fast",
            "d",
            "A zero is multiplied like any other number, and stored like it. Zeros save time only "
            "where whole rows or heads are taken out, or hardware knows their pattern.",
            "wanda#9 and #29: a pruned model of the same size and speed",
        ),
        Mutant(
            "four bits are four times the speed",
            "e",
            "It has at most four times fewer bytes of weights. The cache stays as it is, so does "
            "what is spent besides reading, and where no kernel multiplies four bits they are "
            "unpacked first.",
            "fake quantization sold as speed, in many notebooks",
        ),
    ),
)

EXERCISES = (STEP, SENTENCES)
