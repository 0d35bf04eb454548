"""What a model costs: bytes on disk, time for a turn, tokens a second, peak memory.

Measurements are medians of repeats after a warm-up, on a stated number of threads, and every model
does the same work: it reads and writes the same recorded conversations.
"""

from __future__ import annotations

import inspect
import os
import pickle
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distillkit.chat import encode
from distillkit.decoding import evaluating, new_cache
from distillkit.errors import UserError

__all__ = [
    "PeakMemory",
    "Speed",
    "bytes_on_disk",
    "machine",
    "measure_speed",
    "peak_memory",
    "using_threads",
]

_LOADED_SUFFIXES = (
    ".safetensors",
    ".bin",
    ".json",
    ".jinja",
    ".model",
    ".txt",
    ".gguf",
    ".onnx",
    ".data",
)
_NOT_LOADED = ("optimizer", "scheduler", "rng_state", "trainer_state", "training_args", "metrics")


def bytes_on_disk(folder: str | Path) -> int:
    """Bytes of all that is needed to load a model: weights, configuration, tokenizer, template.

    Model cards, optimizer states and other files that loading does not read are not counted. A
    GGUF file holds all of that itself: pass the file. Raises UserError where there is no model.
    """
    folder = Path(folder)
    if folder.suffix == ".gguf" and folder.is_file():
        return folder.stat().st_size
    if not (folder / "config.json").is_file():
        raise UserError(f"found no config.json in {folder}: expected the folder of a saved model")
    return sum(
        path.stat().st_size
        for path in folder.iterdir()
        if path.is_file()
        and path.suffix in _LOADED_SUFFIXES
        and not path.name.startswith(_NOT_LOADED)
    )


# Speed ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speed:
    """How fast a model answers at batch 1 with a cache.

    A turn is all that the assistant does between two messages of the visitor: reading what is new,
    writing its calls and its reply (the tools' own time is not counted).
    """

    tokens_per_second: float  # written tokens over the time of reading and writing
    latency_p50: float  # seconds a turn
    latency_p95: float
    turns: int
    tokens: int  # written in all turns
    threads: int
    repeats: int


def measure_speed(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[dict[str, Any]],
    *,
    threads: int = 1,
    repeats: int = 3,
) -> Speed:
    """Time the model turn by turn through recorded conversations, greedily, at batch 1.

    Each step picks the likeliest token, as greedy decoding does, and then goes on with the recorded
    one: so every model does the same work, and a terse model does not pass for a fast one. The
    first conversation is served once beforehand as a warm-up; a turn's latency is its median over
    `repeats`.

    An exported model (`export.load_onnx`) is timed in the same way, on the threads that it was
    loaded with: UserError when `threads` says another number.
    """
    if (loaded := getattr(model, "threads", threads)) != threads:
        raise UserError(
            f"the model was loaded for {loaded} threads and is to be timed on {threads}: load it "
            f"with threads={threads}"
        )
    encoded = [(encode(tokenizer, row["messages"]), row["messages"]) for row in conversations]
    plans = [_turns(each["labels"], messages) for each, messages in encoded]
    if not any(plans):
        raise UserError(f"found no assistant turn in {len(conversations)} conversations to time")
    ids = [each["input_ids"] for each, _ in encoded]
    with evaluating(model), torch.inference_mode(), using_threads(threads):
        _serve(model, ids[0], plans[0])
        rounds = [
            [
                seconds
                for each, plan in zip(ids, plans, strict=True)
                for seconds in _serve(model, each, plan)
            ]
            for _ in range(repeats)
        ]
    seconds = np.median(np.array(rounds), axis=0)
    tokens = sum(end - start for plan in plans for turn in plan for start, end in turn)
    return Speed(
        tokens_per_second=float(tokens / seconds.sum()),
        latency_p50=float(np.quantile(seconds, 0.5)),
        latency_p95=float(np.quantile(seconds, 0.95)),
        turns=len(seconds),
        tokens=tokens,
        threads=threads,
        repeats=repeats,
    )


Span = tuple[int, int]


def _turns(labels: Sequence[int], messages: Sequence[dict[str, Any]]) -> list[list[Span]]:
    """The spans that the assistant writes, grouped by the visitor's message that they answer."""
    valid = np.concatenate([[False], np.array(labels) != -100, [False]])
    edges = np.flatnonzero(valid[1:] != valid[:-1])
    spans = list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
    visitor = np.cumsum([message["role"] == "user" for message in messages])
    answered = [
        int(turn)
        for turn, message in zip(visitor, messages, strict=True)
        if message["role"] == "assistant"
    ]
    if len(answered) != len(spans):  # a template without a marker between two assistant messages
        answered = list(range(len(spans)))
    turns: dict[int, list[Span]] = {}
    for turn, span in zip(answered, spans, strict=True):
        turns.setdefault(turn, []).append(span)
    return list(turns.values())


def _serve(
    model: PreTrainedModel, ids: Sequence[int], plan: Sequence[Sequence[Span]]
) -> list[float]:
    """Seconds of each turn, the cache being kept over the conversation."""
    cache, read, result = new_cache(model), 0, []
    tokens = torch.tensor([list(ids)], device=model.device)
    for turn in plan:
        begin = time.perf_counter()
        for start, end in turn:
            for stop in range(start, end):  # a block of what is new, then token by token
                output: Any = model(
                    tokens[:, read:stop], past_key_values=cache, use_cache=True, logits_to_keep=1
                )
                output.logits[0, -1].argmax().item()  # .item() waits for an accelerator to finish
                read = stop
        result.append(time.perf_counter() - begin)
    return result


@contextmanager
def using_threads(number: int) -> Iterator[None]:
    """Let torch compute on so many threads, and afterwards on as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# Memory --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PeakMemory:
    """Bytes of main memory that a process held at most, and held before the function was called."""

    peak: int
    before: int

    @property
    def added(self) -> int:
        """What the function itself needed, the interpreter and imported packages left out."""
        return self.peak - self.before


def peak_memory(function: Callable[..., Any], *arguments: Any) -> PeakMemory:
    """Call function(*arguments) in a fresh process and report the memory of that process.

    A fresh process, because the peak of one that has done other things before tells nothing. The
    function must be importable (defined in a module, not in a notebook cell), and so must what is
    passed to it. Linux and macOS. Raises UserError when the function cannot be sent or fails.
    """
    if sys.platform == "win32":
        raise UserError("found Windows: peak memory can be measured on Linux and macOS only")
    if getattr(function, "__module__", None) == "__main__":
        raise UserError(
            f"found {function!r} defined in the running script or notebook: a fresh process can "
            "call only functions that it can import from a module"
        )
    try:
        order = pickle.dumps(sys.path) + pickle.dumps((function, arguments))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(
            f"cannot send {function!r} to a fresh process ({error}): pass a function of a module"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer"
        program = _CHILD.format(answer=str(answer), process_peak=inspect.getsource(process_peak))
        run = subprocess.run(
            [sys.executable, "-c", program], input=order, capture_output=True, check=False
        )
        if run.returncode:
            last = run.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
            raise UserError(f"the function failed in the fresh process: {last[-1]}")
        before, peak = map(int, answer.read_text().split())
    return PeakMemory(peak=peak, before=before)


_CHILD = """
import pickle, sys
from pathlib import Path
{process_peak}
sys.path[:] = pickle.load(sys.stdin.buffer)
function, arguments = pickle.load(sys.stdin.buffer)
before = process_peak()  # after the imports that unpickling has made
function(*arguments)
open({answer!r}, "w").write(f"{{before}} {{process_peak()}}")
"""


def process_peak() -> int:
    """Bytes of main memory that this process has held at most so far."""
    status = Path("/proc/self/status")
    if status.exists():  # not getrusage: on Linux a new process inherits its parent's peak there
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# Machine -------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What a number was measured on: processor, cores, memory, accelerator, versions."""
    import transformers

    return {
        "cpu": _cpu_name(),
        "cores": _usable_cores(),
        "memory_gb": _memory_gb(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, OSError, ValueError):
        return None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return platform.processor() or platform.machine()
