"""Tiny models and conversations for the tests of training, the same on every call."""

import random

from distillkit.chat import encode_rows, train_tokenizer
from distillkit.models import ModelSize, build_model

WORDS = ("the", "cheap", "hotel", "in", "north", "please", "book", "two", "nights", "yes", "1", "2")
TEACHER, STUDENT = ModelSize(24, 2, 2, 32), ModelSize(16, 1, 2, 24)


def dialogues(count: int, *, seed: int = 0, longest: int = 4) -> list[dict]:
    """Conversations of very different lengths, 1 to `longest` turns of 1 to 12 words."""
    chance = random.Random(seed)

    def words() -> str:
        return " ".join(chance.choices(WORDS, k=chance.randint(1, 12)))

    rows = []
    for number in range(count):
        messages = []
        for _ in range(chance.randint(1, longest)):
            messages.append({"role": "user", "content": words()})
            messages.append({"role": "assistant", "content": words()})
        rows.append({"id": str(number), "messages": messages})
    return rows


TOKENIZER = train_tokenizer(dialogues(50, seed=9), vocab_size=130)


def encoded(count: int, *, seed: int = 0) -> list[dict]:
    return encode_rows(TOKENIZER, dialogues(count, seed=seed))


def teacher():
    """A teacher whose distribution is far from flat."""
    model = build_model(TEACHER, TOKENIZER, seed=1)
    for parameter in model.parameters():
        parameter.data.mul_(3.0) if parameter.dim() > 1 else None
    return model


def student(seed: int = 2):
    return build_model(STUDENT, TOKENIZER, seed=seed)
