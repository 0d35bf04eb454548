"""Build and shrink models: Llama-style, readable by every Hugging Face tool."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from distillkit.arithmetic import Shape
from distillkit.errors import UserError
from distillkit.model_files import SHIPPED, load_model, save_model
from distillkit.narrowing import Scores, narrowed

__all__ = [
    "SHIPPED",
    "SIZES",
    "ModelSize",
    "build_model",
    "build_shape",
    "count_parameters",
    "layer_stack",
    "load_model",
    "save_model",
    "student_from_layers",
]


@dataclass(frozen=True)
class ModelSize:
    """The shape of a Llama-style model: width of a token, layers, attention heads, feed-forward."""

    width: int
    layers: int
    heads: int
    feed_forward: int

    def __post_init__(self) -> None:
        if min(self.width, self.layers, self.heads, self.feed_forward) < 1:
            raise UserError(f"every number of a model's size must be at least 1, found {self}")
        if self.width % (2 * self.heads):
            raise UserError(
                f"width {self.width} does not split into {self.heads} heads of even width: "
                f"choose a multiple of {2 * self.heads}"
            )


SIZES = {
    "teacher": ModelSize(width=192, layers=4, heads=6, feed_forward=512),
    "student-large": ModelSize(width=96, layers=3, heads=4, feed_forward=256),
    "student": ModelSize(width=96, layers=2, heads=4, feed_forward=256),
    "student-small": ModelSize(width=64, layers=2, heads=4, feed_forward=176),
}


def build_model(
    size: str | ModelSize,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int = 0,
    max_positions: int = 2048,
    initializer_range: float | None = None,
) -> LlamaForCausalLM:
    """A new Llama-style model with random weights and tied embeddings, in float32.

    The weights depend on ``size``, the tokenizer's length and ``seed`` alone; the global random
    state is left as it was. ``initializer_range`` is their standard deviation, by default
    1/sqrt(width), at which a matrix leaves the size of what it reads as it was. The 0.02 of
    transformers suits models some twenty times as wide.
    """
    if isinstance(size, str):
        if size not in SIZES:
            raise UserError(f"no size is named {size!r}: choose one of {', '.join(SIZES)}")
        size = SIZES[size]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        intermediate_size=size.feed_forward,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        initializer_range=initializer_range or size.width**-0.5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).float()


def build_shape(
    shape: Shape, *, seed: int = 0, device: str = "cpu", max_positions: int = 8192
) -> PreTrainedModel:
    """A model of transformers in a given shape, with random weights, in float32: to count and time.

    On the device "meta" it has all its shapes and not a byte of weights, whatever its size. The
    global random state is left as it was.
    """
    settings: dict[str, Any] = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_width,
        "max_position_embeddings": max_positions,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": None,  # the defaults may lie outside of a small vocabulary
        "eos_token_id": None,
    }
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        if shape.qkv_bias:
            return Qwen2ForCausalLM(Qwen2Config(**settings)).float()
        return LlamaForCausalLM(LlamaConfig(**settings)).float()


def student_from_layers(
    teacher: PreTrainedModel,
    layers: Sequence[int],
    *,
    width: int | None = None,
    heads: int | None = None,
    feed_forward: int | None = None,
    scores: Scores | None = None,
) -> PreTrainedModel:
    """A student that begins as a copy of some of the teacher's layers (DistilBERT's start).

    All its weights learn, also where the teacher is frozen.

    Args:
        teacher: any model of transformers with a list of layers; it is left as it was.
        layers: which of its layers to keep, counted from 0, in ascending order.
        width, heads, feed_forward: in a Llama-style model, how much of each layer to keep: the
            parts with the largest weights (see `narrowing.py`). By default everything.
        scores: of all the teacher's layers; by these, not by weights, what to keep is chosen.

    Raises:
        UserError: no layers, or layers that the teacher lacks or that are not ascending.
    """
    name, stack = layer_stack(teacher)
    kept = list(layers)
    if not kept or kept != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= len(stack):
        raise UserError(
            f"layers is {kept}, expected ascending numbers from 0 to {len(stack) - 1}, "
            "each at most once"
        )
    # The memo maps the layers left out to nothing, so they are never copied.
    left_out = {id(layer): None for index, layer in enumerate(stack) if index not in kept}
    student = copy.deepcopy(teacher, left_out)
    copied = student.get_submodule(name)
    assert isinstance(copied, torch.nn.ModuleList)
    chosen = torch.nn.ModuleList([copied[index] for index in kept])
    student.set_submodule(name, chosen)
    for index, layer in enumerate(chosen):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index  # type: ignore[assignment]
    student.config.num_hidden_layers = len(kept)
    for setting, value in _settings_of_each_layer(teacher.config, len(stack)).items():
        setattr(student.config, setting, [value[index] for index in kept])
    student.requires_grad_(True)  # the teacher may have been frozen before
    if width is None and heads is None and feed_forward is None:
        return student
    kept_scores = scores and scores.of_layers(kept)
    size = {"width": width, "heads": heads, "feed_forward": feed_forward}
    return narrowed(student, **size, scores=kept_scores)[0]


def _settings_of_each_layer(config: Any, depth: int) -> dict[str, list]:
    """What a configuration says layer by layer: layer_types, SmolLM3's no_rope_layers, …"""
    return {
        name: value
        for name, value in vars(config).items()
        if "layer" in name and isinstance(value, list) and len(value) == depth
    }


def layer_stack(model: PreTrainedModel) -> tuple[str, torch.nn.ModuleList]:
    """The name and the list of a model's layers. UserError where there is none."""
    wanted = model.config.num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == wanted:
            return name, module
    raise UserError(f"{type(model).__name__} has no list of {wanted} layers to choose from")


def count_parameters(model: torch.nn.Module) -> int:
    """How many numbers the model learns; tied embeddings are counted once."""
    return sum(parameter.numel() for parameter in model.parameters())
