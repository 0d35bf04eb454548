"""The quizzes at the end of the chapters, from one data file: `quizzes.toml`.

Without answers a quiz is shown with its explanations folded away, as HTML that GitHub shows as
well; with answers it explains each choice that was made, and keeps the score.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path

from distillkit.course import learner
from distillkit.course.showing import Shown, inline, say, show
from distillkit.course.words import SAID

RIGHT = "Right"
LETTERS = "abcdef"


@dataclass(frozen=True)
class Choice:
    """One choice and its explanation; that of the right one begins with "Right"."""

    text: str
    why: str

    @property
    def right(self) -> bool:
        """Whether it is the right one."""
        return self.why.startswith(RIGHT)


@dataclass(frozen=True)
class Question:
    """A question of a quiz."""

    ask: str
    choices: tuple[Choice, ...]

    @property
    def letter(self) -> str:
        """The letter of the right choice."""
        return next(a for a, choice in zip(LETTERS, self.choices, strict=False) if choice.right)


@cache
def quizzes() -> dict[str, tuple[Question, ...]]:
    """Chapter -> its questions."""
    text = Path(__file__).with_name("quizzes.toml").read_text(encoding="utf-8")
    return {
        chapter: tuple(
            Question(each["ask"], tuple(Choice(text, why) for text, why in each["choices"]))
            for each in content["question"]
        )
        for chapter, content in tomllib.loads(text).items()
    }


def quiz(chapter: str, answers: str = "") -> None:
    """Show the quiz of a chapter; with answers, one letter for each question, mark them."""
    chapter = str(chapter).zfill(2)
    questions = quizzes().get(chapter)
    if questions is None:
        known = ", ".join(quizzes())
        say(SAID["no quiz"].format(chapter=chapter, known=known))
        return
    letters = "".join(str(answers).lower().split())
    if not letters:
        show(Shown(_text(chapter, questions), _html(chapter, questions)))
    elif not _fit(letters, questions):
        example = LETTERS[0] * len(questions)
        say(SAID["answers wanted"].format(count=len(questions), chapter=chapter, letters=example))
    else:
        _mark(chapter, questions, letters)


def _mark(chapter: str, questions: tuple[Question, ...], letters: str) -> None:
    right = sum(letter == each.letter for letter, each in zip(letters, questions, strict=True))

    def note(progress: learner.Progress) -> None:
        progress.quizzes[chapter] = max(right, progress.quizzes.get(chapter, 0))

    learner.update(note)
    lines, rows = [], []
    for place, (letter, each) in enumerate(zip(letters, questions, strict=True), start=1):
        choice = each.choices[LETTERS.index(letter)]
        sign = "✓" if choice.right else "✗"
        lines.append(f"{sign} {place}. {letter}) {choice.text}: {choice.why}")
        rows.append(
            f"{sign} <b>{place}.</b> {letter}) <i>{inline(choice.text)}</i> {inline(choice.why)}"
        )
    score = SAID["score"].format(right=right, count=len(questions))
    show(Shown("\n".join([*lines, score]), "<br>".join([*rows, f"<b>{escape(score)}</b>"])))


def _fit(letters: str, questions: tuple[Question, ...]) -> bool:
    return len(letters) == len(questions) and all(
        letter in LETTERS[: len(each.choices)]
        for letter, each in zip(letters, questions, strict=True)
    )


def _how(chapter: str, questions: tuple[Question, ...]) -> str:
    example = LETTERS[0] * len(questions)
    return SAID["quiz how"].format(chapter=chapter, letters=example)


def _text(chapter: str, questions: tuple[Question, ...]) -> str:
    lines = []
    for place, each in enumerate(questions, start=1):
        lines.append(f"{place}. {each.ask}")
        lines += [f"   {a}) {c.text}" for a, c in zip(LETTERS, each.choices, strict=False)]
    return "\n".join([*lines, _how(chapter, questions)])


def _html(chapter: str, questions: tuple[Question, ...]) -> str:
    parts = [f"<p>{escape(SAID['quiz'])} {escape(_how(chapter, questions))}</p>"]
    for place, each in enumerate(questions, start=1):
        parts.append(f"<p><b>{place}.</b> {inline(each.ask)}</p>")
        for letter, choice in zip(LETTERS, each.choices, strict=False):
            parts.append(
                f"<details><summary>{letter}) {inline(choice.text)}</summary>"
                f"{inline(choice.why)}</details>"
            )
    return "\n".join(parts)
