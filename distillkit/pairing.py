"""What a teacher and its student must have in common, or be refused in a sentence.

Two models can be compared logit by logit if they do the same kind of thing, read the same token
ids, and mean the same by each logit: the same token, or for classifiers the same class.
"""

from typing import Any

from transformers import PreTrainedTokenizerBase

from distillkit.chat import check_same_tokenizer
from distillkit.errors import UserError
from distillkit.logits import CAUSAL, CLASSIFIER, alignment_of, check_causal

Tokenizer = PreTrainedTokenizerBase | None


def shared_logits(
    student: Any, teacher: Any, student_tokenizer: Tokenizer, teacher_tokenizer: Tokenizer
) -> int:
    """How many logits mean the same to both; heads of different width are cut to that.

    Raises UserError when they do different kinds of things, read different ids, or when two
    classifiers know different classes, or know them in another order.
    """
    kinds = alignment_of(teacher), alignment_of(student)
    if kinds[0] is not kinds[1]:
        raise UserError(
            f"the teacher is {kinds[0].name} ({type(teacher).__name__}), the student "
            f"{kinds[1].name} ({type(student).__name__}): their logits mean different things"
        )
    shared = _shared_ids(student, teacher, student_tokenizer, teacher_tokenizer)
    if kinds[0] is CAUSAL:
        check_causal(teacher)
    return check_same_classes(teacher, student) if kinds[0] is CLASSIFIER else shared


def check_same_classes(teacher: Any, student: Any) -> int:
    """How many classes two classifiers share; refused unless logit by logit they are the same.

    Raises UserError with the first class that differs. Names are compared, so a student built
    without them (LABEL_0, …) is refused too: give it the teacher's `id2label`.
    """
    names = [dict(model.config.id2label) for model in (teacher, student)]
    if len(names[0]) != len(names[1]):
        raise UserError(
            f"the teacher has {len(names[0])} classes, the student {len(names[1])}: "
            "build the student with the teacher's id2label"
        )
    for number, name in names[0].items():
        if names[1].get(number) != name:
            raise UserError(
                f"class {number} is {name!r} to the teacher and {names[1].get(number)!r} to the "
                "student: build the student with the teacher's id2label, in the same order"
            )
    return len(names[0])


def _shared_ids(
    student: Any, teacher: Any, student_tokenizer: Tokenizer, teacher_tokenizer: Tokenizer
) -> int:
    """How many ids mean the same to both models."""
    widths = [model.config.get_text_config().vocab_size for model in (teacher, student)]
    highest = max(student_tokenizer.get_vocab().values(), default=-1) if student_tokenizer else -1
    if highest >= widths[0]:
        raise UserError(
            f"the student's tokenizer has ids up to {highest}, the teacher reads ids below "
            f"{widths[0]}: leave out the added tokens, or give the teacher rows for them with "
            "teacher.resize_token_embeddings"
        )
    if student_tokenizer is not None and teacher_tokenizer is not None:
        return min(check_same_tokenizer(teacher_tokenizer, student_tokenizer), *widths)
    if widths[0] != widths[1]:
        raise UserError(
            f"the teacher has {widths[0]} logits, the student {widths[1]}: pass both tokenizers "
            "(processing_class=, teacher_tokenizer=), so that the shared ids are known"
        )
    return widths[0]
