"""The matrices of an exported graph in fewer bits, as ONNX Runtime's kernels read them.

ONNX Runtime's own tools write the same operations. They would store a table that is embedding and
head twice, once for each reader, or leave the embedding in float32; here it stays one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from distillkit.errors import UserError
from distillkit.export.needed import needed
from distillkit.export.onnx_graph import TABLE

ONNX_KINDS = {"int8": 8, "int8_weights": 8, "int4_weights": 4}
_MICROSOFT = "com.microsoft"  # the domain of ONNX Runtime's own operations

Stored = dict[str, np.ndarray]
Rewrite = Callable[[Any, Stored, Stored], Iterator[Any]]  # a node, numbers old and new -> nodes


def rounded(model: Any, kind: str, block: int) -> Any:
    """The same graph with rounded matrices. The model that is passed is not used afterwards."""
    onnx = needed("onnx")
    graph = model.graph
    old = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    matrices = {
        node.input[1] for node in graph.node if node.op_type == "MatMul" and node.input[1] in old
    }
    if not matrices:
        raise UserError("found no matrix in float32 to round: pass a folder of export_onnx")
    rounder: Any = _Dynamic(onnx) if kind == "int8" else _Blocks(onnx, ONNX_KINDS[kind], block)
    new: Stored = {name: numbers for name, numbers in old.items() if name not in matrices}
    new.pop(TABLE, None)
    nodes: list[Any] = []
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in matrices:
            nodes += rounder.product(node, old[node.input[1]], new)
        elif node.op_type == "Gather" and node.input[0] == TABLE:
            nodes += rounder.look_up(node, old[TABLE], new)
        else:
            nodes.append(node)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in new.items())
    if kind != "int8":
        model.opset_import.append(onnx.helper.make_opsetid(_MICROSOFT, 1))
    return model


class _Dynamic:
    """Matrices (K, N) in int8 with a scale a column; inputs are rounded to uint8 at run time.

    x·W ≈ s_x·s_W·(x̂ − z)·Ŵ with Ŵ = round(W / s_W) in −127 … 127, s_W = max |W| / 127 a column.
    """

    def __init__(self, onnx: Any) -> None:
        self.node, self.kinds = onnx.helper.make_node, onnx.TensorProto

    def product(self, node: Any, matrix: np.ndarray, new: Stored) -> Iterator[Any]:
        name, out = node.input[1], node.output[0]
        self.store(name, matrix, new)
        x, scale, zero = (f"{out}.{part}" for part in ("rounded", "scale", "zero"))
        whole, real, both = (f"{out}.{part}" for part in ("whole", "real", "scales"))
        yield self.node("DynamicQuantizeLinear", [node.input[0]], [x, scale, zero], name=x)
        yield self.node("MatMulInteger", [x, f"{name}.int8", zero], [whole], name=whole)
        yield self.node("Cast", [whole], [real], name=real, to=self.kinds.FLOAT)
        yield self.node("Mul", [scale, f"{name}.scale"], [both], name=both)
        yield self.node("Mul", [real, both], [out], name=out)

    def look_up(self, node: Any, table: np.ndarray, new: Stored) -> Iterator[Any]:
        (name, ids), out = node.input, node.output[0]
        self.store(name, table, new)
        column, real, scale = (f"{out}.{part}" for part in ("column", "real", "scale"))
        yield self.node("Gather", [f"{name}.int8", ids], [column], name=column, axis=1)
        yield self.node("Cast", [column], [real], name=real, to=self.kinds.FLOAT)
        yield self.node("Gather", [f"{name}.scale", ids], [scale], name=scale, axis=0)
        yield self.node("Mul", [real, scale], [out], name=out)

    @staticmethod
    def store(name: str, matrix: np.ndarray, new: Stored) -> None:
        largest = np.abs(matrix).max(0)
        scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
        new[f"{name}.int8"] = np.rint(matrix / scale).astype(np.int8)
        new[f"{name}.scale"] = scale


class _Blocks:
    """Matrices in blocks along what is summed over, a scale a block; inputs too, at run time.

    A block's number of largest size, with its sign, becomes the lowest whole number: with b bits
    s = w_max / −2^(b−1) and ŵ = clip(round(w / s), −2^(b−1), 2^(b−1) − 1), stored above zero.
    """

    def __init__(self, onnx: Any, bits: int, block: int) -> None:
        self.node, self.bits, self.block = onnx.helper.make_node, bits, block

    def product(self, node: Any, matrix: np.ndarray, new: Stored) -> Iterator[Any]:
        name, out = node.input[1], node.output[0]
        packed, scale = self.store(name, matrix, new)
        yield self.node(
            "MatMulNBits",
            [node.input[0], packed, scale],
            [out],
            name=out,
            domain=_MICROSOFT,
            K=matrix.shape[0],
            N=matrix.shape[1],
            bits=self.bits,
            block_size=self.block,
            accuracy_level=4,  # inputs in 8 bits: without it an 8-bit step took 5 times as long
        )

    def look_up(self, node: Any, table: np.ndarray, new: Stored) -> Iterator[Any]:
        (name, ids), out = node.input, node.output[0]
        if table.shape[0] % self.block:
            raise UserError(
                f"the table is {table.shape[0]} wide, which blocks of {self.block} do not divide: "
                "take a smaller block (16), or kind='int8'"
            )
        packed, scale = self.store(name, table, new)
        flat, row = f"{out}.flat", f"{out}.row"
        shape = f"{packed}.shape"
        new[shape] = np.array([table.shape[1], -1], np.int64)
        yield self.node("Reshape", [packed, shape], [flat], name=flat)
        yield self.node(
            "GatherBlockQuantized",
            [flat, ids, scale],
            [row],
            name=row,
            domain=_MICROSOFT,
            bits=self.bits,
            block_size=self.block,
            gather_axis=0,
            quantize_axis=1,
        )
        yield self.node("Transpose", [row], [out], name=out, perm=[2, 0, 1])

    def store(self, name: str, matrix: np.ndarray, new: Stored) -> tuple[str, str]:
        packed, scale = f"{name}.int{self.bits}", f"{name}.scale"
        if packed not in new:
            new[packed], new[scale] = self.packed(matrix.T)
        return packed, scale

    def packed(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, K) -> (N, blocks, bytes of a block) and (N, blocks)."""
        half, short = 2 ** (self.bits - 1), -rows.shape[1] % self.block
        blocks = np.pad(rows, ((0, 0), (0, short))).reshape(len(rows), -1, self.block)
        at = np.abs(blocks).argmax(-1, keepdims=True)
        largest = np.take_along_axis(blocks, at, -1)
        scale = np.where(largest == 0, 1, largest / -half).astype(np.float32)
        whole = np.clip(np.rint(blocks / scale), -half, half - 1) + half
        whole = whole.astype(np.uint8)
        if self.bits == 4:
            whole = whole[..., 0::2] | whole[..., 1::2] << 4
        return whole, scale[..., 0]
