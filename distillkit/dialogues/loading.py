"""Conversations from anywhere: the front desk, a file of ``messages``, or a hub data set.

Rows that cannot be learned from are refused with the file, the line and the reason, and counted.
"""

import codecs
import glob
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from distillkit.dialogues.rows import Row, check_row, kind_of
from distillkit.errors import UserError

ENDINGS = (".jsonl", ".json", ".parquet")
_OTHER_ENDINGS = (".txt", ".csv", ".tsv", ".gz", ".zip", ".zst", ".arrow", ".yaml", ".xml", ".md")
FRONT_DESK_COUNT = 1_000  # conversations, where no limit is given

SPLITS = ("train", "development", "test")  # of the front desk
_SPLITS = {"validation": "development", "dev": "development"}
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")
_NAMED = 3  # refusals that a summary spells out


class Refused(NamedTuple):
    """A row that was left out: the source, its line or row number (from 1), and the reason."""

    where: str
    line: int | None
    reason: str
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.unit} {self.line}: {self.reason}" if self.line else self.reason


@dataclass
class Dialogues(Sequence[Row]):
    """The conversations of a source, and what was refused of it."""

    rows: list[Row]
    source: str
    refused: list[Refused] = field(default_factory=list)
    stopped: bool = False  # at the limit, before the source was read to its end

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def summary(self) -> str:
        """One line to print: how many were kept of how many, and the first refusals."""
        read = len(self.rows) + len(self.refused)
        first = "the first " if self.stopped else ""
        line = f"kept {len(self.rows):,} of {first}{read:,} dialogues from {self.source}"
        return f"{line}; {_first_refusals(self.refused)}" if self.refused else line


def load_dialogues(
    source: str | os.PathLike[str] = "front-desk",
    *,
    split: str = "train",
    limit: int | None = None,
    seed: int = 0,
) -> Dialogues:
    """Load conversations as rows ``{"id": …, "messages": [{"role": …, "content": …}, …]}``.

    Args:
        source: ``"front-desk"``; a ``.jsonl``, ``.json`` or ``.parquet`` file; or a data set on
            the hub, ``"owner/name"`` or ``"owner/name:configuration"``. A row has ``messages``
            with ``role`` and ``content``, or ShareGPT's ``conversations`` with ``from`` (human,
            gpt, system) and ``value``.
        split: which part of the front desk (train, development, test) or of a hub data set. A file
            has no parts.
        limit: the most conversations to keep: the first good ones. The front desk without a limit
            gives 1,000.
        seed: of the front desk.

    Raises:
        UserError: no such file, an unknown ending, no good row at all, or the hub's refusal.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}, expected at least 1")
    name = os.fspath(source)
    if name == "front-desk":
        return _front_desk(split, limit, seed)
    path = Path(name).expanduser()
    if isinstance(source, os.PathLike) or os.path.exists(path) or _looks_like_file(name, path):
        label, candidates = path.name, _read_file(path)
    else:
        label, candidates = f"{name} ({split})", _read_hub(name, split)
    return _sift(label, candidates, limit)


def _front_desk(split: str, limit: int | None, seed: int) -> Dialogues:
    from distillkit.dialogues import front_desk

    split = _SPLITS.get(split, split)
    if split not in SPLITS:
        raise UserError(f"the front desk has no split {split!r}: use train, development or test")
    rows = list(front_desk(limit or FRONT_DESK_COUNT, seed=seed, split=split))
    return Dialogues(rows, f"front-desk ({split}, seed {seed})")


# --- Reading: numbered candidates, each a value to be checked or a reason why there is none ------


class _Candidate(NamedTuple):
    number: int
    value: Any = None
    fault: str | None = None
    unit: str = "row"


def _looks_like_file(name: str, path: Path) -> bool:
    # "notes.txt" is a file that is not there; "owner/corpus-v1.5" may be on the hub.
    suffix = path.suffix.lower()
    return suffix in ENDINGS or name.startswith((".", "~", os.sep)) or suffix in _OTHER_ENDINGS


def _read_file(path: Path) -> Iterable[_Candidate]:
    if not os.path.exists(path):  # Path.exists raises for a name that no file can have
        raise UserError(f"{path}: no such file; expected a file of conversations ({_endings()})")
    if path.is_dir():
        raise UserError(f"{path} is a folder; expected a file of conversations ({_endings()})")
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise UserError(f"{path} has the ending {path.suffix!r}; expected {_endings()}")
    return readers[path.suffix.lower()](path)


def _endings() -> str:
    return ", ".join(ENDINGS[:-1]) + " or " + ENDINGS[-1]


def _read_jsonl(path: Path) -> Iterator[_Candidate]:
    with _opened(path) as lines:
        for number, raw in enumerate(lines, 1):
            raw = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            if raw.strip():
                value, fault = _parse(raw)
                yield _Candidate(number, value, fault, "line")


def _read_json(path: Path) -> Iterator[_Candidate]:
    with _opened(path) as file:
        raw = file.read().removeprefix(codecs.BOM_UTF8)
    value, fault = _parse(raw)
    if fault:
        raise UserError(f"{path.name} cannot be read: {fault}; expected a JSON list of dialogues")
    one_dialogue = isinstance(value, dict) or (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and _is_message(item) for item in value)
    )
    rows = [value] if one_dialogue else value
    if not isinstance(rows, list):
        raise UserError(f"{path.name} holds {kind_of(value)}; expected a JSON list of dialogues")
    yield from (_Candidate(number, row) for number, row in enumerate(rows, 1))


def _is_message(item: Mapping[str, Any]) -> bool:
    return ("role" in item or "from" in item) and not (
        "messages" in item or "conversations" in item
    )


def _opened(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror}") from error


def _parse(raw: bytes) -> tuple[Any, str | None]:
    """The value of a piece of JSON, or the reason why there is none."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return None, f"not UTF-8 (byte {raw[error.start]:#04x} at position {error.start + 1})"
    try:
        return json.loads(text), None
    except json.JSONDecodeError as error:
        return None, f"not JSON ({error.msg} at line {error.lineno} column {error.colno})"
    except (ValueError, RecursionError) as error:
        return None, f"not JSON that can be read ({str(error).splitlines()[0]})"


def _read_parquet(path: Path) -> Iterator[_Candidate]:
    from pyarrow.parquet import read_metadata  # comes with datasets

    try:
        if not read_metadata(path).num_rows:  # datasets stumbles over a file without any
            return
        # Streaming: no second copy of the data in the user's cache.
        rows = _load_dataset(
            "parquet", data_files=glob.escape(str(path)), split="train", streaming=True
        )
        for number, row in enumerate(rows, 1):
            yield _Candidate(number, row)
    except UserError:
        raise
    except Exception as error:  # pyarrow and datasets raise what they like
        raise UserError(f"{path.name} cannot be read as Parquet: {_first_line(error)}") from error


def _read_hub(name: str, split: str) -> Iterator[_Candidate]:
    yield from (_Candidate(number, row) for number, row in enumerate(hub_rows(name, split), 1))


def hub_rows(name: str, split: str) -> Iterable[Any]:
    """A data set of the hub, ``owner/name`` or ``owner/name:configuration``, as it stands there.

    Raises UserError for what can be no hub name, and in a sentence for the hub's refusal.
    """
    if not _HUB_NAME.fullmatch(name):
        raise UserError(
            f"{name!r} is no file and no hub name; expected 'front-desk', a file ({_endings()}), "
            "or 'owner/name' or 'owner/name:configuration'"
        )
    repository, _, configuration = name.partition(":")
    _ask_hub(repository)
    try:
        return _load_dataset(repository, configuration or None, split=split)
    except Exception as error:
        raise _hub_error(repository, error) from error


def _load_dataset(*args: Any, **options: Any) -> Iterable[Any]:
    import datasets

    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(*args, **options)
    finally:
        if not bars:
            datasets.enable_progress_bars()


def _ask_hub(name: str) -> None:
    """Ask once whether the hub has the data set, unless it is cached: a download tries long."""
    from datasets import config
    from huggingface_hub import HfApi

    cached = Path(config.HF_DATASETS_CACHE) / name.replace("/", "___").lower()
    if cached.exists():
        return
    try:
        HfApi().dataset_info(name, timeout=10)
    except Exception as error:
        raise _hub_error(name, error) from error


def _hub_error(name: str, error: Exception) -> UserError:
    chain: BaseException | None = error
    names = ""
    while chain is not None:
        names += type(chain).__name__ + " "
        chain = chain.__cause__ or chain.__context__
    if re.search("Offline|Connect|Timeout", names):
        return UserError(
            f"{name} is no local file, and the hub cannot be reached: give a file ({_endings()}), "
            "or 'front-desk', or connect to the network"
        )
    return UserError(f"the hub gives no data set {name}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


# --- Sifting ------------------------------------------------------------------------------------


def _sift(label: str, candidates: Iterable[_Candidate], limit: int | None) -> Dialogues:
    refused: list[Refused] = []

    def good() -> Iterator[Row]:
        for number, value, fault, unit in candidates:
            row, reason = (None, fault) if fault else check_row(value)
            if row is None:
                refused.append(Refused(label, number, reason or "", unit))
                continue
            row["id"] = str(row["id"]) if row.get("id") is not None else f"{label}-{number}"
            yield row

    rows = list(islice(good(), limit))
    if not rows:
        found = _first_refusals(refused) if refused else "it is empty"
        raise UserError(f"{label} gives no dialogue to learn from: {found}")
    return Dialogues(rows, label, refused, stopped=len(rows) == limit)


def _first_refusals(refused: Sequence[Refused]) -> str:
    more = f" and {len(refused) - _NAMED:,} more" if len(refused) > _NAMED else ""
    return f"refused {len(refused):,}: " + "; ".join(map(str, refused[:_NAMED])) + more
