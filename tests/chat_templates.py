"""Chat templates of the kinds that are in use, and a small tokenizer for each to be tried with.

They follow the published ones in what matters for masks: default system prompts, trimmed content,
tool results inside user turns, refused roles, history that is rewritten.
"""

from typing import NamedTuple

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast


class Template(NamedTuple):
    text: str
    special_tokens: tuple[str, ...]
    eos_token: str
    opening: str  # what stands before the assistant's part
    closing: str  # the end of turn


CHATML = """\
{%- if messages[0]['role'] == 'system' -%}
{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' -}}
{%- else -%}{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) -%}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- elif message.role == 'assistant' -%}
{{- '<|im_start|>assistant' -}}
{%- if message.content -%}{{- '\\n' + message.content -}}{%- endif -%}
{%- for tool_call in message.tool_calls or [] -%}
{{- '\\n<tool_call>\\n{"name": "' + tool_call.function.name + '", "arguments": ' -}}
{{- tool_call.function.arguments | tojson + '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- elif message.role == 'tool' -%}
{%- if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' -%}
{{- '<|im_start|>user' -}}{%- endif -%}
{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' -}}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{- '<|im_end|>\\n' -}}{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

SMOLLM = """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM<|im_end|>\\n' }}{% endif %}\
{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# The same, with the assistant's part marked.
SMOLLM_MARKED = SMOLLM.replace(
    "message['content'] + '<|im_end|>' + '\\n'}}",
    "''}}{% if message['role'] == 'assistant' %}{% generation %}"
    "{{message['content'] + '<|im_end|>'}}{% endgeneration %}"
    "{% else %}{{message['content'] + '<|im_end|>'}}{% endif %}{{'\\n'}}",
)

LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim -}}
{{- '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}
"""

LLAMA2 = """\
{%- for message in messages -%}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') -}}
{%- endif -%}
{%- if message.role == 'user' -%}
{{- bos_token + '[INST] ' + message.content.strip() + ' [/INST]' -}}
{%- elif message.role == 'assistant' -%}{{- ' ' + message.content.strip() + ' ' + eos_token -}}
{%- endif -%}
{%- endfor -%}
"""

PLAIN = """\
{%- for message in messages -%}
{{- message.role | capitalize + ': ' + message.content + eos_token + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}
"""

PLAIN_MARKED = PLAIN.replace(
    "': ' + message.content + eos_token + '\\n' -}}",
    "':' -}}{%- if message.role == 'assistant' -%}"
    "{%- generation -%}{{- ' ' + message.content + eos_token -}}{%- endgeneration -%}"
    "{%- else -%}{{- ' ' + message.content + eos_token -}}{%- endif -%}{{- '\\n' -}}",
)

# Prompts inside its loop, so that it has no prompt for a conversation that the assistant opens.
ZEPHYR = """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n' + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""

# As in models that reason: what was thought before the last question is forgotten.
THINKING = """\
{%- set ns = namespace(last_query=0) -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{%- set ns.last_query = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
{%- set content = message.content -%}
{%- if message.role == 'assistant' and loop.index0 < ns.last_query -%}
{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
{%- elif message.role == 'assistant' and '</think>' not in content -%}
{%- set content = '<think>\\n\\n</think>\\n\\n' + content -%}
{%- endif -%}
{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

GENERATION = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.role == 'assistant' -%}
{%- generation -%}{{- message.content -}}{%- endgeneration -%}{{- '<|im_end|>\\n' -}}
{%- else -%}{{- message.content + '<|im_end|>\\n' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

LAST_TURN_ONLY = GENERATION.replace(
    "'assistant' -%}\n{%- gen", "'assistant' and loop.last -%}\n{%- gen"
)

_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_HEADER = "<|start_header_id|>assistant<|end_header_id|>\n\n"
TEMPLATES = {
    "chatml": Template(CHATML, _IM, "<|im_end|>", "<|im_start|>assistant\n", "<|im_end|>"),
    "smollm": Template(SMOLLM, _IM, "<|im_end|>", "<|im_start|>assistant\n", "<|im_end|>"),
    "smollm marked": Template(
        SMOLLM_MARKED, _IM, "<|im_end|>", "<|im_start|>assistant\n", "<|im_end|>"
    ),
    # The end-of-turn token is not the tokenizer's eos_token here, as in early Qwen and Llama.
    "llama3": Template(
        LLAMA3,
        ("<s>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|end_of_text|>",
        _HEADER,
        "<|eot_id|>",
    ),
    "llama2": Template(LLAMA2, ("<s>", "</s>"), "</s>", " [/INST]", "</s>"),
    "plain": Template(PLAIN, ("<|endoftext|>",), "<|endoftext|>", "Assistant:", "<|endoftext|>"),
    "plain marked": Template(
        PLAIN_MARKED, ("<|endoftext|>",), "<|endoftext|>", "Assistant:", "<|endoftext|>"
    ),
    "zephyr": Template(ZEPHYR, ("<s>", "</s>"), "</s>", "<|assistant|>\n", "</s>"),
    "thinking": Template(THINKING, _IM, "<|im_end|>", "<|im_start|>assistant\n", "<|im_end|>"),
    "generation": Template(GENERATION, _IM, "<|im_end|>", "<|im_start|>assistant\n", "<|im_end|>"),
    "last turn only": Template(
        LAST_TURN_ONLY, _IM, "<|im_end|>", "<|im_start|>assistant\n", "<|im_end|>"
    ),
}


def tokenizer_for(template: Template) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with trimmed offsets, like GPT-2's, and the template's tokens.

    Line breaks stay together as in Llama 3 and Qwen, whose generation prompts end in them.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s*[\r\n]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(template.special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = [
        "hello Good day! user\n\nassistant\n\n I think so. system: You are a helpful assistant."
    ]
    core.train_from_iterator(text * 20, trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>" if "<s>" in template.special_tokens else None,
        eos_token=template.eos_token,
        extra_special_tokens=list(template.special_tokens),
        chat_template=template.text,
        clean_up_tokenization_spaces=False,
    )
