"""A small language for phrases that can be said, listed with probabilities, and understood again.

A pattern is text with three constructs::

    (a|b|c)          one of them; the k-th has weight 1/k, so later ones are rarer
    [ in {area}]     said when, and only when, all slots inside are given
    {area}           the value of a slot

``Phrase`` compiles a pattern once and then says it (``sample``), lists every way to say it with its
probability (``realisations``), and recognises it (``match``). What is said and what is understood
come from one text, so they cannot drift apart.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import Any, NamedTuple

Values = Mapping[str, str]


class Act(NamedTuple):
    """What a message does, apart from how it is worded: a kind and the values it carries."""

    kind: str
    slots: dict[str, str] = {}  # noqa: RUF012  (never changed in place)


@dataclass(frozen=True)
class Slot:
    name: str


@dataclass(frozen=True)
class Choice:
    options: tuple[tuple, ...]
    weights: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        raw = [1.0 / (rank + 1) for rank in range(len(self.options))]
        object.__setattr__(self, "weights", tuple(weight / sum(raw) for weight in raw))


@dataclass(frozen=True)
class Group:
    """A part that is said when all its slots are given."""

    nodes: tuple
    slots: frozenset[str]


def parse(pattern: str) -> tuple:
    """Turn a pattern into nodes; raises ValueError for unbalanced brackets."""
    tokens = re.findall(r"\{\w+\}|[()|\[\]]|[^(){}|\[\]]+", pattern)
    if any(pattern.count(left) != pattern.count(right) for left, right in ("()", "[]", "{}")):
        raise ValueError(f"unbalanced brackets in {pattern!r}")
    nodes, _ = _parse_sequence(tokens, 0, "")
    return nodes


def _parse_sequence(tokens: list[str], at: int, stops: str) -> tuple[tuple, int]:
    nodes: list = []
    while at < len(tokens) and tokens[at] not in tuple(stops):
        token = tokens[at]
        if token == "(":
            options = []
            while token != ")":
                option, at = _parse_sequence(tokens, at + 1, "|)")
                options.append(option)
                token = tokens[at]
            nodes.append(Choice(tuple(options)))
        elif token == "[":
            inner, at = _parse_sequence(tokens, at + 1, "]")
            nodes.append(Group(inner, frozenset(_slots(inner))))
        elif token.startswith("{"):
            nodes.append(Slot(token[1:-1]))
        else:
            nodes.append(token)
        at += 1
    return tuple(nodes), at


def _slots(nodes: Sequence) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, Slot):
            yield node.name
        elif isinstance(node, Choice):
            for option in node.options:
                yield from _slots(option)
        elif isinstance(node, Group):
            yield from _slots(node.nodes)


def _required(nodes: Sequence) -> set[str]:
    """Slots without which the phrase cannot be said."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, Slot):
            found.add(node.name)
        elif isinstance(node, Choice):
            found |= set.intersection(*(_required(option) for option in node.options))
    return found


class Phrase:
    """One pattern, compiled."""

    def __init__(self, pattern: str, value_regex: Callable[[str], str]):
        self.pattern = pattern
        self.nodes = parse(pattern)
        self.required = frozenset(_required(self.nodes))
        self.allowed = frozenset(_slots(self.nodes))
        self._value_regex = value_regex
        self._regex: re.Pattern[str] | None = None
        self._groups: list[tuple[str, str]] = []

    def fits(self, slots: Values) -> bool:
        """Can the phrase say exactly these slots?"""
        given = slots.keys()
        return self.required <= given and given <= self.allowed

    def sample(self, values: Values, rng: Random) -> str:
        return "".join(_sample(self.nodes, values, rng))

    def realisations(self, given: frozenset[str]) -> list[tuple[float, str]]:
        """Every wording for these slots, as (probability, format string)."""
        return _expand(self.nodes, given)

    def match(self, text: str) -> dict[str, str] | None:
        """The slots' surface texts when ``text`` is a wording of this phrase, else None."""
        if self._regex is None:
            self._regex = re.compile(self._compile(self.nodes))
        found = self._regex.fullmatch(text)
        if found is None:
            return None
        groups = found.groupdict()
        return {slot: groups[name] for name, slot in self._groups if groups[name] is not None}

    def _compile(self, nodes: Sequence) -> str:
        parts = []
        for node in nodes:
            if isinstance(node, Slot):
                name = f"g{len(self._groups)}"
                self._groups.append((name, node.name))
                parts.append(f"(?P<{name}>{self._value_regex(node.name)})")
            elif isinstance(node, Choice):
                parts.append(
                    "(?:" + "|".join(self._compile(option) for option in node.options) + ")"
                )
            elif isinstance(node, Group):
                parts.append("(?:" + self._compile(node.nodes) + ")?")
            else:
                parts.append(re.escape(node))
        return "".join(parts)


def _sample(nodes: Sequence, values: Values, rng: Random) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, str):
            yield node
        elif isinstance(node, Slot):
            yield values[node.name]
        elif isinstance(node, Choice):
            yield from _sample(node.options[weighted_index(node.weights, rng)], values, rng)
        elif node.slots <= values.keys():
            yield from _sample(node.nodes, values, rng)


def _expand(nodes: Sequence, given: frozenset[str]) -> list[tuple[float, str]]:
    columns: list[list[tuple[float, str]]] = []
    for node in nodes:
        if isinstance(node, str):
            columns.append([(1.0, node)])
        elif isinstance(node, Slot):
            columns.append([(1.0, "{" + node.name + "}")])
        elif isinstance(node, Choice):
            columns.append(
                [
                    (weight * inner, text)
                    for weight, option in zip(node.weights, node.options, strict=True)
                    for inner, text in _expand(option, given)
                ]
            )
        elif node.slots <= given:
            columns.append(_expand(node.nodes, given))
    rows = []
    for combination in itertools.product(*columns):
        weight = 1.0
        for part, _ in combination:
            weight *= part
        rows.append((weight, "".join(text for _, text in combination)))
    return rows


def weighted_index(weights: Sequence[float], rng: Random) -> int:
    """Draw an index; uses ``rng.random()`` alone, which is the same on every platform."""
    target = rng.random()
    for index, weight in enumerate(weights):
        target -= weight
        if target < 0:
            return index
    return len(weights) - 1


@lru_cache(maxsize=64)
def rank_weights(count: int) -> tuple[float, ...]:
    """The weights 1, 1/2, … 1/count, made to sum to one."""
    raw = [1.0 / (rank + 1) for rank in range(count)]
    return tuple(weight / sum(raw) for weight in raw)


def pick(options: Sequence, rng: Random) -> Any:
    """One of the options, each as likely as the other."""
    return options[int(rng.random() * len(options))]
