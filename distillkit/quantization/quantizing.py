"""Put integers in the place of a model's linear layers and embeddings.

    smaller = quantize(model, Grid(bits=4, group=32), encoded=calibration, rounding=gptq)

The layers of the stack are rounded from the first to the last, each on what the rounded ones below
give. The embeddings and the head have a grid of their own: at course size the table is a good part
of all bytes, and its rows are read one by one. Where head and embeddings share their weights, they
share the integers; norms and biases stay as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from distillkit.calibration import Inputs, layer_by_layer, linears
from distillkit.errors import UserError
from distillkit.models import layer_stack
from distillkit.quantization.activations import static_scale
from distillkit.quantization.grids import EIGHT_BITS, Grid, Quantized, round_to_nearest
from distillkit.quantization.layers import (
    Integers,
    QuantizedEmbedding,
    QuantizedLinear,
    TiedHead,
    check_activations,
)

__all__ = [
    "Plan",
    "Rounding",
    "count_weights",
    "is_quantized",
    "memory_bytes",
    "plan_of",
    "quantize",
]

QUANT_METHOD = "distillkit"  # in config.json
Encoded = dict[str, list[int]]
Rounding = Callable[[Tensor, Grid, Any], Quantized]


@dataclass(frozen=True)
class Plan:
    """Which parts of a model are on which grid: what config.json says of a quantized model.

    grid: of the linear layers in the layer stack. embeddings: of the table and the head; None, they
    stay floats. exceptions: of linear layers of the stack that differ, by name; None as before.
    activations: None, "dynamic" or "static", of the linear layers in the stack.
    """

    grid: Grid
    embeddings: Grid | None = EIGHT_BITS
    exceptions: Mapping[str, Grid | None] = field(default_factory=dict)
    activations: str | None = None

    def grid_of(self, name: str) -> Grid | None:
        return self.exceptions.get(name, self.grid)

    def as_json(self) -> dict[str, Any]:
        def words(grid: Grid | None) -> dict[str, Any] | None:
            return None if grid is None else grid.as_json()

        return {
            "grid": words(self.grid),
            "embeddings": words(self.embeddings),
            "exceptions": {name: words(grid) for name, grid in self.exceptions.items()},
            "activations": self.activations,
        }

    @classmethod
    def from_json(cls, words: dict[str, Any]) -> Plan:
        """The plan that `as_json` wrote. Raises UserError where it is none."""
        try:
            table = words["embeddings"]
            return cls(
                Grid.from_json(words["grid"]),
                None if table is None else Grid.from_json(table),
                {
                    n: None if g is None else Grid.from_json(g)
                    for n, g in words["exceptions"].items()
                },
                words["activations"],
            )
        except (TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{words} does not say how a model is quantized") from error


def quantize(
    model: PreTrainedModel,
    grid: Grid,
    *,
    embeddings: Grid | None = EIGHT_BITS,
    exceptions: Mapping[str, Grid | None] | None = None,
    activations: str | None = None,
    rounding: Rounding = round_to_nearest,
    encoded: Sequence[Encoded] = (),
    batch_tokens: int = 4096,
) -> PreTrainedModel:
    """A copy of a model that holds integers in place of weights; the model is left as it was.

    Args:
        grid: of the linear layers in the layer stack.
        embeddings: the grid of the embedding table and of the head, tied or not; rounded to the
            nearest always. None leaves them as they are.
        exceptions: linear layers on another grid, by name; None leaves one as it is.
        activations: "dynamic" or "static" for products of integers (see `activations.py`), in the
            layer stack alone; None for weights only.
        rounding: `round_to_nearest`, `gptq`, or a `functools.partial` of one with its options.
        encoded: calibration conversations, as `chat.encode_rows` gives them. `gptq` and static
            activations need them.
        batch_tokens: tokens in a forward pass of calibration.

    Raises:
        UserError: the model is quantized already; has weights in its layers that are in no
            `nn.Linear` (GPT-2's are in none); an exception names no layer; a group does not divide
            a layer's inputs, or a weight is NaN; or calibration text is needed and absent.
    """
    plan = Plan(grid, embeddings, dict(exceptions or {}), activations)
    check_quantizable(model, plan)
    changed: Any = copy.deepcopy(model).eval()
    layers = _rounded_on_text(changed, plan, rounding, encoded, batch_tokens) if encoded else {}
    for name, linear in stack_linears(changed).items():
        own = plan.grid_of(name)
        if own is not None and name not in layers:  # without text, or an expert that read none
            layers[name] = _layer(name, linear, own, activations, rounding, None)
    for name, layer in layers.items():
        changed.set_submodule(name, layer)
    if embeddings is not None:
        _replace_table(changed, embeddings)
    return mark(changed, plan)


def _rounded_on_text(
    model: Any, plan: Plan, rounding: Rounding, encoded: Sequence[Encoded], batch_tokens: int
) -> dict[str, QuantizedLinear]:
    """Round layer by layer; each then gives what its integers give."""
    found: dict[str, QuantizedLinear] = {}

    def work(name: str, linear: nn.Linear, inputs: Inputs) -> None:
        own = plan.grid_of(name)
        if own is not None:
            layer = found[name] = _layer(name, linear, own, plan.activations, rounding, inputs)
            linear.weight.copy_(layer.dequantized())

    products = rounding is not round_to_nearest
    layer_by_layer(model, encoded, work, products=products, batch_tokens=batch_tokens)
    return found


def _layer(
    name: str,
    linear: nn.Linear,
    grid: Grid,
    activations: str | None,
    rounding: Rounding,
    inputs: Inputs | None,
) -> QuantizedLinear:
    try:
        return QuantizedLinear.of(
            rounding(linear.weight.detach(), grid, inputs),
            linear.bias,
            activations=activations,
            input_scale=None if inputs is None else static_scale(inputs.largest),
        )
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def _replace_table(model: Any, grid: Grid) -> None:
    """Put integers in the place of the embedding table and of the head."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    rows = round_to_nearest(table.weight.detach(), grid)
    own = None
    if head is not None and head.weight is not table.weight:
        own = QuantizedLinear.of(round_to_nearest(head.weight.detach(), grid), head.bias)
    put_table(model, QuantizedEmbedding.of(rows, table.weight.dtype), own)


def put_table(model: Any, table: QuantizedEmbedding, head: QuantizedLinear | None) -> None:
    """Give a model this table, and this head; where the two were tied, one that reads the table."""
    before = model.get_output_embeddings()
    tied = before is not None and before.weight is model.get_input_embeddings().weight
    if before is not None:
        model.set_output_embeddings(TiedHead(table) if tied else head)
    model.set_input_embeddings(table)
    # There are no two parameters to tie any more: the head reads the table.
    model._tied_weights_keys, model.all_tied_weights_keys = None, {}


def mark(model: Any, plan: Plan) -> Any:
    """Let a model say how it is quantized, in its configuration and to transformers' Trainer."""
    model.config.quantization_config = {"quant_method": QUANT_METHOD, **plan.as_json()}
    model.is_quantized, model.quantization_method = True, QUANT_METHOD
    return model


def stack_linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linear layers of the layer stack, by their names in the model."""
    prefix, stack = layer_stack(model)
    return {f"{prefix}.{name}": linear for name, linear in linears(stack).items()}


def check_quantizable(model: Any, plan: Plan) -> None:
    """Raises UserError, in a sentence, where `quantize` could not do what the plan says."""
    if is_quantized(model):
        raise UserError("the model is quantized already: quantize the one with floats")
    found, layers = stack_linears(model), layer_stack(model)[1]
    held = {id(linear.weight) for linear in found.values()}
    for name, parameter in layers.named_parameters():
        if parameter.dim() > 1 and id(parameter) not in held:
            raise UserError(
                f"{type(model).__name__} keeps {name} in no nn.Linear (GPT-2's Conv1D is another "
                "class): it would stay as it is, and only a part of the model would shrink"
            )
    if unknown := set(plan.exceptions) - set(found):
        raise UserError(
            f"exceptions name {min(unknown)}: expected names of linear layers, such as "
            f"{next(iter(found), 'none')}"
        )
    for name, linear in found.items():
        if (grid := plan.grid_of(name)) is not None:
            check_activations(grid, plan.activations)
            _check_group(name, grid, linear)
    table = model.get_input_embeddings()
    if plan.embeddings is not None and type(table) is not nn.Embedding:
        raise UserError(
            f"the embeddings are a {type(table).__name__}, which does more than look rows up: "
            "pass embeddings=None"
        )


def _check_group(name: str, grid: Grid, linear: nn.Linear) -> None:
    try:
        grid.groups(linear.out_features, linear.in_features)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def plan_of(model: PreTrainedModel) -> Plan:
    """How a model was quantized. Raises UserError where it was not, or not by distillkit."""
    words = getattr(model.config, "quantization_config", None)
    if words is None:
        raise UserError(f"{type(model).__name__} is not quantized")
    words = words if isinstance(words, dict) else words.to_dict()
    return Plan.from_json(words)


def is_quantized(model: PreTrainedModel) -> bool:
    """Whether any tensor of the model is on a grid, ours or another library's."""
    return getattr(model.config, "quantization_config", None) is not None


def count_weights(model: nn.Module) -> int:
    """How many weights a model has, floats or integers; tied ones once.

    `models.count_parameters` counts what learns, and integers do not.
    """
    integers = [part for part in model.modules() if isinstance(part, Integers)]
    biases = [part.bias for part in integers if isinstance(part, QuantizedLinear)]
    return (
        sum(parameter.numel() for parameter in model.parameters())
        + sum(part.rows * part.columns for part in integers)
        + sum(bias.numel() for bias in biases if bias is not None)
    )


def memory_bytes(model: nn.Module) -> int:
    """Bytes of all tensors that a model holds, integers and scales included; shared ones once."""
    tensors = [*model.parameters(), *model.buffers()]
    storages = {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors}
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())
