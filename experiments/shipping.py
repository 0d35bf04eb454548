"""A model that ships with the package: saved into distillkit/checkpoints, with its card."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distillkit.benchmark import bytes_on_disk
from distillkit.model_files import SHIPPED_FOLDER
from distillkit.models import save_model

CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
license: apache-2.0
---
# {name}

{text} It knows the simulated front desk of the course and nothing else.
"""


def ship(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, text: str) -> int:
    """Save the model under its name; how many bytes it takes there, tokenizer included."""
    card = CARD.format(name=name, text=text)
    return bytes_on_disk(save_model(model, tokenizer, SHIPPED_FOLDER / name, card=card))
