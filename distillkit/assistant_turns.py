"""Where the assistant speaks: a conversation as text, and the assistant's stretches of it.

A chat template that carries ``{% generation %}`` says so itself. For the others a turn is what the
template adds to the rendering of the messages before it, with the generation prompt, when the
assistant's message is appended. Templates that rewrite history (which drop earlier reasoning, say)
have no such prefixes; there the turn is found by rendering the conversation once more with a marker
word in its place.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from distillkit.errors import UserError

Messages = Sequence[Mapping[str, Any]]
Span = tuple[int, int]
Special = tuple[str, ...]
Tokenizer = PreTrainedTokenizerBase

_MARKER_WORD = "QZTURNZQ"
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_CLOSING_TOKENS = frozenset(
    [
        *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|return|>", "<|eos|>", "</s>"),
        *("<|endoftext|>", "<|end_of_text|>", "<end_of_turn>", "<turn|>", "<|END_OF_TURN_TOKEN|>"),
    ]
)


def render(tokenizer: Tokenizer, messages: Messages, *, add_generation_prompt: bool = False) -> str:
    """The text of a conversation, as the tokenizer's chat template lays it out."""
    text, _ = _render(tokenizer, messages, add_generation_prompt=add_generation_prompt)
    return text


def render_with_turns(tokenizer: Tokenizer, messages: Messages) -> tuple[str, list[Span]]:
    """The text of a conversation, and the character span of each assistant message in it.

    A span runs from behind the generation prompt up to and including the end-of-turn token.
    Raises UserError, naming the turn, where a template leaves its place in doubt.
    """
    special = _special_tokens(tokenizer)
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if _GENERATION.search(_template(tokenizer)):
        text, spans = _render(tokenizer, messages, mark_turns=True)
        if len(spans) == len(turns):
            return text, [_to_end_of_turn(tokenizer, special, text, span) for span in spans]
    text = render(tokenizer, messages)
    spans = [_find_turn(tokenizer, special, messages, index, text) for index in turns]
    for index, before, after in zip(turns[1:], spans, spans[1:], strict=False):
        if after[0] < before[1]:
            raise _in_doubt(index)
    return text, spans


def _render(
    tokenizer: Tokenizer,
    messages: Messages,
    *,
    add_generation_prompt: bool = False,
    mark_turns: bool = False,
) -> tuple[str, list[Span]]:
    """Text and generation spans, through transformers' own machinery."""
    clean = [{k: v for k, v in message.items() if v is not None} for message in messages]
    template = _template(tokenizer)
    special: Any = tokenizer.special_tokens_map
    try:
        rendered: Any = render_jinja_template(
            [clean],
            chat_template=template,
            return_assistant_tokens_mask=mark_turns,
            add_generation_prompt=add_generation_prompt,
            **special,
        )
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
        roles = ", ".join(dict.fromkeys(str(message.get("role")) for message in clean))
        raise UserError(
            f"the chat template refuses a conversation with the roles {roles or '(none)'}: "
            f"{error}; use conversations that it admits, or set another tokenizer.chat_template"
        ) from error
    texts, spans = rendered
    return texts[0], [(start, end) for start, end in spans[0]] if mark_turns else []


def _template(tokenizer: Tokenizer) -> str:
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:
        raise UserError(
            "the tokenizer has no chat template: set tokenizer.chat_template "
            "(an instruction-tuned model's tokenizer brings its own)"
        ) from error


def _find_turn(
    tokenizer: Tokenizer, special: Special, messages: Messages, index: int, text: str
) -> Span:
    """The span of message ``index``: by rendered prefixes, else by a marker word in its place."""
    start = _length_as_prefix(tokenizer, messages[:index], text, add_generation_prompt=True)
    if index == 0 and start == _length_as_prefix(tokenizer, [], text):
        start = None  # a template that prompts inside its loop over messages has no prompt for none
    if index == len(messages) - 1:
        end: int | None = len(text)
    else:
        end = _length_as_prefix(tokenizer, messages[: index + 1], text)
    if start is None or end is None or end <= start:
        found = _find_by_marker(tokenizer, messages, index, text)
        start = found[0] if start is None or start > found[0] else start
        end = _to_end_of_turn(tokenizer, special, text, found)[1]
    return _without_blanks_behind_end(special, text, (start, end))


def _length_as_prefix(
    tokenizer: Tokenizer, messages: Messages, text: str, *, add_generation_prompt: bool = False
) -> int | None:
    """The length of the rendered messages if ``text`` begins with them, else None."""
    try:
        prefix = render(tokenizer, messages, add_generation_prompt=add_generation_prompt)
    except UserError:
        return None
    return len(prefix) if text.startswith(prefix) else None


def _find_by_marker(tokenizer: Tokenizer, messages: Messages, index: int, text: str) -> Span:
    """Put a marker word in the message's place: what stands around it stands around the message."""
    marked = list(messages)
    marked[index] = {"role": "assistant", "content": _MARKER_WORD}
    try:
        pieces = render(tokenizer, marked).split(_MARKER_WORD)
    except UserError as error:
        raise _in_doubt(index) from error
    if len(pieces) != 2:
        raise _in_doubt(index)
    before, after = pieces
    around_text = text.startswith(before) and text.endswith(after)
    if not around_text or len(before) + len(after) > len(text):
        raise _in_doubt(index)
    return len(before), len(text) - len(after)


def _to_end_of_turn(tokenizer: Tokenizer, special: Special, text: str, span: Span) -> Span:
    """Take in the end-of-turn token that a template leaves just outside its span."""
    start, end = span
    if not text[start:end].rstrip().endswith(special):
        behind = text[end : end + 80]
        for token in special:
            closes = token in _CLOSING_TOKENS or token == tokenizer.eos_token
            if closes and behind.lstrip().startswith(token):
                return start, end + behind.index(token) + len(token)
    return _without_blanks_behind_end(special, text, span)


def _without_blanks_behind_end(special: Special, text: str, span: Span) -> Span:
    """Leave out the line break behind an end-of-turn token: generation stops before it."""
    start, end = span
    spoken = text[start:end].rstrip()
    return (start, start + len(spoken)) if spoken.endswith(special) else span


def _special_tokens(tokenizer: Tokenizer) -> Special:
    # A template may end turns with a word that is an ordinary token for this tokenizer: no matter.
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    return tuple(
        {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
    )


def _in_doubt(index: int) -> UserError:
    return UserError(
        f"message {index + 1} (assistant) cannot be found exactly in the rendered conversation: "
        "the chat template rewrites it; add {% generation %} … {% endgeneration %} around the "
        "assistant's part of the template"
    )
