"""A tokenizer for small dialogue models, and the check that two models read the same ids."""

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from distillkit.assistant_turns import render
from distillkit.errors import UserError

log = logging.getLogger(__name__)

PAD, END, CALL, UNKNOWN = "<|pad|>", "<|end|>", "<|call|>", "<|unk|>"
SPECIAL_TOKENS = (PAD, END, "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", CALL, UNKNOWN)

# A call's arguments are words, "domain hotel, area north", or JSON where words would be ambiguous.
# A marker inside a message is broken up ("< |end|>"), so that nobody can speak in another's name.
CHAT_TEMPLATE = """\
{%- macro call(function) -%}
{%- set arguments = function.arguments or {} -%}
{%- set plain = namespace(ok=arguments is mapping) -%}
{%- for key, value in (arguments if arguments is mapping else {}) | items -%}
{%- if value is not string or not key or not value or value != value | trim or ' ' in key
 or key[0] == '{' or ',' in key + value or '\\n' in key + value or '<|' in key + value -%}
{%- set plain.ok = false -%}{%- endif -%}
{%- endfor -%}
{{- '<|call|> ' + function.name -}}
{%- if plain.ok -%}
{%- for key, value in arguments | items -%}
{{- (' ' if loop.first else ', ') + key + ' ' + value -}}
{%- endfor -%}
{%- elif arguments is string -%}{{- ' ' + arguments | trim | replace('<|', '< |') -}}
{%- else -%}{{- ' ' + arguments | tojson | replace('<|', '<\\\\u007c') -}}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{%- set text = ' ' + (message.content or '') | trim | replace('<|', '< |') -%}
{%- if message.role == 'assistant' -%}
{{- '<|assistant|>' -}}
{%- generation -%}
{%- if message.content or not message.tool_calls -%}{{- text -}}{%- endif -%}
{%- for tool_call in message.tool_calls or [] -%}
{{- call(tool_call.function or tool_call) -}}
{%- endfor -%}
{{- '<|end|>' -}}
{%- endgeneration -%}
{%- elif message.role in ['system', 'user', 'tool'] -%}
{{- '<|' + message.role + '|>' + text + '<|end|>' -}}
{%- else -%}{{- raise_exception('unknown role ' + message.role | string) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""

# GPT-2's pattern, but a digit (with the blank before it) is a word of its own.
WORD_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_MARKERS = re.compile("|".join(re.escape(token) for token in SPECIAL_TOKENS))
_PROBES = (
    "Good day! I'd like 2 tickets for the 19:30 train, please.",
    "  two  blanks, a\ttab,\r\na line\n\nand another ",
    "UPPER lower CamelCase snake_case https://example.org/a?b=c#d 3.14159 1,000,000 £5 €6 50%",
    "naïve café Ångström ﬁ e\u0301 \u00a0\u200b \ufeff½ ™",
    "你好，世界。 こんにちは 안녕하세요 Привет, мир! مرحبا שלום नमस्ते ไทย",
    "😀👩‍👩‍👧‍👦🏳️‍🌈 \U0001d54f",
    "def f(x):\n    return {'a': [x ** 2, !x]}  # \\n",
    "don't we'll I'M 'tis <|x|> </s> <s> [INST] ###",
)


def train_tokenizer(
    rows: Iterable[Mapping[str, Any]], vocab_size: int = 1024, *, alphabet: str = "ascii"
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on conversations, with this module's chat template.

    Digits are single tokens (with or without the blank before them), so numbers and codes never
    seen before are spelled alike.

    Args:
        rows: conversations with ``messages``; every role is read.
        vocab_size: the most ids that the tokenizer may have, special tokens included.
        alphabet: ``"ascii"`` (ASCII and the bytes that occur in ``rows``; anything else becomes
            ``<|unk|>``) or ``"bytes"`` (all 256 bytes: nothing is ever unknown).

    Raises:
        UserError: no rows, or ``vocab_size`` below what the alphabet itself needs.
    """
    letters = _alphabet(alphabet)
    needed = len(SPECIAL_TOKENS) + len(letters)
    if vocab_size < needed:
        raise UserError(f"vocab_size is {vocab_size}, but the alphabet alone needs {needed} ids")
    core = Tokenizer(models.BPE(unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=letters,
        show_progress=False,
    )
    core.train_from_iterator(_texts(rows), trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        extra_special_tokens=list(SPECIAL_TOKENS[2:7]),
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def _alphabet(name: str) -> list[str]:
    if name == "bytes":
        return sorted(pre_tokenizers.ByteLevel.alphabet())
    if name == "ascii":
        return [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ"]  # byte-level blank, line break
    raise UserError(f"alphabet is {name!r}, expected 'ascii' or 'bytes'")


def _texts(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    digits = " 0 1 2 3 4 5 6 7 8 9"  # of every row, so that each has its form behind a blank
    count = 0
    for count, row in enumerate(rows, 1):  # noqa: B007  (counted for the check below)
        rendered: Any = render_jinja_template([row["messages"]], chat_template=CHAT_TEMPLATE)
        yield digits
        yield from (piece for piece in _MARKERS.split(rendered[0][0]) if piece)
    if not count:
        raise UserError("there is no conversation to train a tokenizer on: pass at least one row")


def check_same_tokenizer(
    teacher_tokenizer: PreTrainedTokenizerBase, student_tokenizer: PreTrainedTokenizerBase
) -> int:
    """How many ids the two tokenizers share; raises if one would misread the other's ids.

    Contents are compared, not names: which token stands behind each id, the merges, and the ids of
    probe texts. One may have more *added* tokens at the end than the other, and the heads of the
    models may be wider than either (as in the sizes of one family). A chat template that differs is
    only warned of: the teacher then reads conversations laid out in a way it was not trained on.

    Raises:
        UserError: it says from which id on, or on which text, the two differ.
    """
    teacher, student = _tokens_by_id(teacher_tokenizer), _tokens_by_id(student_tokenizer)
    shared = sorted(teacher.keys() & student.keys())
    agreeing = sum(teacher[token_id] == student[token_id] for token_id in shared)
    for token_id in shared:
        if teacher[token_id] != student[token_id]:
            raise _different(
                f"from id {token_id:,} on ({teacher[token_id]!r} for the teacher, "
                f"{student[token_id]!r} for the student; {agreeing:,} of {len(shared):,} agree)"
            )
    _check_surplus("teacher", teacher_tokenizer, teacher.keys() - student.keys())
    _check_surplus("student", student_tokenizer, student.keys() - teacher.keys())
    _check_behaviour(teacher_tokenizer, student_tokenizer, shared)
    _compare_templates(teacher_tokenizer, student_tokenizer)
    return len(shared)


def _tokens_by_id(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {token_id: token for token, token_id in tokenizer.get_vocab().items()}


def _check_surplus(role: str, tokenizer: PreTrainedTokenizerBase, surplus: Iterable[int]) -> None:
    added = tokenizer.added_tokens_decoder
    ordinary = sorted(token_id for token_id in surplus if token_id not in added)
    if ordinary:
        token = tokenizer.convert_ids_to_tokens(ordinary[0])
        raise _different(
            f"in {len(ordinary):,} tokens that only the {role} has, from id {ordinary[0]:,} on "
            f"({token!r})"
        )


def _check_behaviour(
    teacher_tokenizer: PreTrainedTokenizerBase,
    student_tokenizer: PreTrainedTokenizerBase,
    shared: Sequence[int],
) -> None:
    merges = [_merges(tokenizer) for tokenizer in (teacher_tokenizer, student_tokenizer)]
    if merges[0] != merges[1]:
        raise _different("in their merges, although their vocabularies agree")
    stride = max(1, len(shared) // 2_000) * 8
    samples = [shared[at : at + 8] for at in range(0, len(shared), stride)]
    words = [student_tokenizer.decode(list(sample), skip_special_tokens=True) for sample in samples]
    for text in (*_PROBES, *words):
        ids = [
            tokenizer(text, add_special_tokens=False)["input_ids"]
            for tokenizer in (teacher_tokenizer, student_tokenizer)
        ]
        if ids[0] != ids[1]:
            raise _different(f"in how they read {text!r} ({ids[0][:6]} and {ids[1][:6]})")


def _merges(tokenizer: PreTrainedTokenizerBase) -> Any:
    if not tokenizer.is_fast:
        return None
    return json.loads(tokenizer.backend_tokenizer.to_str())["model"].get("merges")


def _compare_templates(
    teacher_tokenizer: PreTrainedTokenizerBase, student_tokenizer: PreTrainedTokenizerBase
) -> None:
    if not (teacher_tokenizer.chat_template and student_tokenizer.chat_template):
        return
    probe = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Good day!"}]
    texts = [render(tokenizer, probe) for tokenizer in (teacher_tokenizer, student_tokenizer)]
    if texts[0] != texts[1]:
        log.warning(
            "the chat templates differ: the teacher would write %r, the student writes %r", *texts
        )


def _different(where: str) -> UserError:
    return UserError(
        f"the teacher's and the student's tokenizers differ {where}: logits can only be compared "
        "between models that read the same ids; take both from one family, or build the student "
        "with the teacher's tokenizer"
    )
