"""The graph of a Llama-style decoder in ONNX: every operation of a step, written down.

One graph reads a prompt and writes a token: only the sizes differ. It never copies what was read
before. The caller keeps keys and values in rooms with free slots; the graph reads the rooms, and
returns the keys and values of the new tokens alone, which the caller puts into the free slots.
(A graph that returns "past and new, joined" copies the whole past to add one token to it.)

Inputs: B conversations, S new tokens, M slots, W wanted positions
    ids (B, S)          the new tokens
    positions (S)       how many tokens stand before each: n, n+1, …; the first n slots are read
    wanted (W)          which of the S tokens' logits to compute
    keys.i, values.i    (B, KV heads, M, d) of layer i
Outputs
    logits (B, W, V)
    new (2·L·B, KV heads, S, d): keys of layer 0, values of layer 0, keys of layer 1, …

Written by hand, not traced: it takes milliseconds, the names can be followed in any viewer, and the
table that is both embedding and head is stored once. Only operations of ONNX's own opset 20 are
used, so it runs wherever ONNX runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from distillkit.export.decoder import Decoder, Layer, Linear
from distillkit.export.needed import needed

OPSET, IR_VERSION = 20, 10
TABLE, HEAD = "table", "head"
_NEVER = np.array(np.iinfo(np.int64).max)  # the position of a slot that holds nothing


def build_graph(decoder: Decoder) -> Any:
    """The `onnx.ModelProto` of a decoder, in float32."""
    return _Builder(decoder).build()


class _Builder:
    """Collects nodes and stored numbers; each method adds some and returns the result's name."""

    def __init__(self, decoder: Decoder) -> None:
        onnx = needed("onnx")
        self.make, self.stored_as, self.kinds = onnx.helper, onnx.numpy_helper, onnx.TensorProto
        self.decoder = decoder
        self.nodes: list[Any] = []
        self.stored: dict[str, np.ndarray] = {}
        self.widths = ""  # the name of [M, S], once the mask has asked for it

    def build(self) -> Any:
        decoder, layers = self.decoder, range(len(self.decoder.layers))
        state = self.embedded()
        mask, turns = self.mask(), self.rotations()
        new: list[str] = []
        for number, layer in enumerate(decoder.layers):
            state = self.block(state, layer, number, mask, turns, new)
        wanted = self.add("Gather", [state, "wanted"], axis=1)
        head = TABLE
        if decoder.head is not None:
            head = self.store(HEAD, decoder.head.T)
        normed = self.norm(wanted, decoder.norm, "norm")
        self.add("MatMul", [normed, head], into="logits")
        self.add("Concat", new, into="new", axis=0)
        room = ["batch", decoder.kv_heads, "slots", decoder.head_width]
        inputs = [
            self.value("ids", ["batch", "length"], self.kinds.INT64),
            self.value("positions", ["length"], self.kinds.INT64),
            self.value("wanted", ["wanted_length"], self.kinds.INT64),
            *(self.value(f"{what}.{n}", room) for n in layers for what in ("keys", "values")),
        ]
        outputs = [
            self.value("logits", ["batch", "wanted_length", decoder.table.shape[0]]),
            self.value("new", ["rows", decoder.kv_heads, "length", decoder.head_width]),
        ]
        initializers = [self.stored_as.from_array(a, name) for name, a in self.stored.items()]
        graph = self.make.make_graph(self.nodes, "decoder", inputs, outputs, initializers)
        opset = self.make.make_opsetid("", OPSET)
        return self.make.make_model(
            graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="distillkit"
        )

    # The parts of a step ---------------------------------------------------------------------

    def embedded(self) -> str:
        """Columns of the table (D, V), which is stored as the head's product reads it."""
        columns = self.add("Gather", [self.store(TABLE, self.decoder.table.T), "ids"], axis=1)
        return self.add("Transpose", [columns], perm=[1, 2, 0])

    def mask(self) -> str:
        """0 where a token may look, −∞ where not: (S, M + S), or (G·S, M + S) for groups of G."""
        first = self.add("Slice", ["positions", *self.numbers([0], [1])])
        slots = self.add("Shape", ["keys.0"], start=2, end=3)
        self.widths = self.add("Concat", [slots, self.add("Shape", ["positions"])], axis=0)
        count = self.add("Squeeze", [slots])
        slot = self.add("Range", [self.number(0), count, self.number(1)])
        filled = self.add("Less", [slot, first])
        place = self.add("Where", [filled, slot, self.store("never", _NEVER)])
        everywhere = self.add("Concat", [place, "positions"], axis=0)
        here = self.add("Unsqueeze", ["positions", *self.numbers([1])])
        seen = self.add("LessOrEqual", [everywhere, here])
        zero, never = (self.real(value) for value in (0.0, -np.inf))
        mask = self.add("Where", [seen, zero, never])
        group = self.decoder.heads // self.decoder.kv_heads
        return mask if group == 1 else self.add("Concat", [mask] * group, axis=0)

    def rotations(self) -> tuple[str, str]:
        """cos and ±sin of each position's angles, (S, d)."""
        position = self.add("Cast", ["positions"], to=self.kinds.FLOAT)
        column = self.add("Unsqueeze", [position, *self.numbers([1])])
        steps = self.store("frequencies", self.decoder.frequencies[None])
        angle = self.add("Mul", [column, steps])
        cos, sin = self.add("Cos", [angle]), self.add("Sin", [angle])
        if self.decoder.rope_scale != 1.0:
            scale = self.real(self.decoder.rope_scale)
            cos, sin = (self.add("Mul", [each, scale]) for each in (cos, sin))
        minus = self.add("Neg", [sin])
        return self.add("Concat", [cos, cos], axis=1), self.add("Concat", [minus, sin], axis=1)

    def block(
        self, state: str, layer: Layer, number: int, mask: str, turns: tuple[str, str], new: list
    ) -> str:
        name = f"layer.{number}"
        normed = self.norm(state, layer.attention_norm, f"{name}.attention_norm")
        heard = self.attention(normed, layer, number, mask, turns, new)
        state = self.add("Add", [state, heard])
        normed = self.norm(state, layer.feed_forward_norm, f"{name}.feed_forward_norm")
        both = self.linear(normed, _joined(layer.gate, layer.up), f"{name}.gate_up")
        gate, up = self.split(both, [len(layer.gate.weight), len(layer.up.weight)], axis=-1)
        open_ = self.add("Mul", [gate, self.add("Sigmoid", [gate])])
        inner = self.add("Mul", [open_, up])
        return self.add("Add", [state, self.linear(inner, layer.down, f"{name}.down")])

    def attention(
        self, x: str, layer: Layer, number: int, mask: str, turns: tuple[str, str], new: list
    ) -> str:
        """softmax(q·kᵀ + mask)·v over the slots and the new tokens; 1/√d is in q's weights."""
        decoder, name = self.decoder, f"layer.{number}"
        heads, kv_heads, width = decoder.heads, decoder.kv_heads, decoder.head_width
        query, key, value = self.heads_of(x, layer, name, turns)
        new += [key, value]
        if heads != kv_heads:
            query = self.add("Reshape", [query, *self.numbers([0, kv_heads, -1, width])])
        past, fresh = (
            self.add("MatMul", [query, self.add("Transpose", [keys], perm=[0, 1, 3, 2])])
            for keys in (f"keys.{number}", key)
        )
        scores = self.add("Add", [self.add("Concat", [past, fresh], axis=3), mask])
        share = self.add("Softmax", [scores], axis=-1)
        parts = self.split(share, self.widths, axis=3)
        heard = self.add(
            "Add",
            [
                self.add("MatMul", [parts[0], f"values.{number}"]),
                self.add("MatMul", [parts[1], value]),
            ],
        )
        if heads != kv_heads:
            heard = self.add("Reshape", [heard, *self.numbers([0, heads, -1, width])])
        row = self.add("Transpose", [heard], perm=[0, 2, 1, 3])
        flat = self.add("Reshape", [row, *self.numbers([0, 0, heads * width])])
        return self.linear(flat, layer.output, f"{name}.output")

    def heads_of(
        self, x: str, layer: Layer, name: str, turns: tuple[str, str]
    ) -> tuple[str, str, str]:
        """Rotated queries and keys, and values: (B, heads, S, d) each, from one product."""
        decoder = self.decoder
        heads, kv_heads, width = decoder.heads, decoder.kv_heads, decoder.head_width
        scale = np.float32(width**-0.5)
        query_norm, key_norm = layer.query_norm, layer.key_norm
        asking = _scaled(layer.query, scale) if query_norm is None else layer.query
        product = self.linear(x, _joined(asking, layer.key, layer.value), f"{name}.qkv")
        sizes = [(heads + kv_heads) * width, kv_heads * width]
        turning, value = self.split(product, sizes, axis=-1)
        turning, value = self.apart(turning, heads + kv_heads), self.apart(value, kv_heads)
        if query_norm is not None and key_norm is not None:  # Qwen3: the scale goes into the norm
            query, key = self.split(turning, [heads, kv_heads], axis=1)
            query = self.norm(query, query_norm * scale, f"{name}.query_norm")
            key = self.norm(key, key_norm, f"{name}.key_norm")
            turning = self.add("Concat", [query, key], axis=1)
        query, key = self.split(self.turned(turning, turns), [heads, kv_heads], axis=1)
        return query, key, value

    def apart(self, x: str, heads: int) -> str:
        shape = self.numbers([0, 0, heads, self.decoder.head_width])
        return self.add("Transpose", [self.add("Reshape", [x, *shape])], perm=[0, 2, 1, 3])

    def turned(self, x: str, turns: tuple[str, str]) -> str:
        """Su et al. 2021: (a, b) becomes (a·cos − b·sin, b·cos + a·sin), halves of a head."""
        half = self.decoder.head_width // 2
        first, second = self.split(x, [half, half], axis=3)
        swapped = self.add("Concat", [second, first], axis=3)
        cos, sin = turns
        return self.add("Add", [self.add("Mul", [x, cos]), self.add("Mul", [swapped, sin])])

    def norm(self, x: str, weight: Any, name: str) -> str:
        """x / √(mean x² + ε) · weight, in the form that runtimes recognise and run as one."""
        square = self.add("Pow", [x, self.real(2.0)])
        mean = self.add("ReduceMean", [square, *self.numbers([-1])], keepdims=1)
        root = self.add("Sqrt", [self.add("Add", [mean, self.real(self.decoder.epsilon)])])
        return self.add("Mul", [self.add("Div", [x, root]), self.store(name, weight)])

    def linear(self, x: str, part: Linear, name: str) -> str:
        product = self.add("MatMul", [x, self.store(name, part.weight.T)])
        if part.bias is None:
            return product
        return self.add("Add", [product, self.store(f"{name}.bias", part.bias)])

    # Bookkeeping -------------------------------------------------------------------------------

    def add(self, kind: str, inputs: list[str], *, into: str = "", **settings: Any) -> str:
        into = into or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(self.make.make_node(kind, inputs, [into], name=into, **settings))
        return into

    def split(self, x: str, sizes: list[int] | str, axis: int) -> list[str]:
        where = sizes if isinstance(sizes, str) else self.numbers(sizes)[0]
        names = [f"split_{len(self.nodes)}_{part}" for part in range(2)]
        name = f"split_{len(self.nodes)}"
        self.nodes.append(self.make.make_node("Split", [x, where], names, name=name, axis=axis))
        return names

    def store(self, name: str, numbers: np.ndarray) -> str:
        """Keep numbers under a name; the same name twice is the same numbers."""
        self.stored.setdefault(name, np.ascontiguousarray(numbers))
        return name

    def numbers(self, *lists: list[int]) -> list[str]:
        return [
            self.store("ints_" + "_".join(map(str, each)), np.array(each, np.int64))
            for each in lists
        ]

    def number(self, value: int) -> str:
        return self.store(f"int_{value}", np.array(value, np.int64))

    def real(self, value: float) -> str:
        return self.store(f"real_{value}", np.array(value, np.float32))

    def value(self, name: str, shape: list[Any], kind: int | None = None) -> Any:
        kind = self.kinds.FLOAT if kind is None else kind
        return self.make.make_tensor_value_info(name, kind, shape)


def _joined(*parts: Linear) -> Linear:
    """Several products of the same input as one."""
    weight = np.concatenate([part.weight for part in parts])
    if all(part.bias is None for part in parts):
        return Linear(weight)
    biases = [
        np.zeros(len(part.weight), np.float32) if part.bias is None else part.bias for part in parts
    ]
    return Linear(weight, np.concatenate(biases))


def _scaled(part: Linear, scale: np.float32) -> Linear:
    return Linear(part.weight * scale, None if part.bias is None else part.bias * scale)
