"""A Llama-like model as an ONNX graph with a key-value cache, whose every LoRA factor is an optional input of any rank.

A factor is a graph input and also an initialiser of rank 0, so that the graph runs without an adapter too. Inputs:
`input_ids` (1, tokens), `seqlens_k` (1,) int32 and `total_sequence_length` (1,) int32 as GroupQueryAttention wants
them, `rows` (rows,) the positions whose logits are wanted, `past.{layer}.key|value`. Outputs: `logits` (1, rows,
vocabulary), `present.{layer}.key|value`, each (1, kv_heads, tokens so far, head_dim).

It is written tensor by tensor, so a model never is in memory as a whole. It does not know where weights come from.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from base_model.architecture import Architecture
from base_model.gguf_blocks import BLOCK
from base_model.wheel import BaseModelError
from edge_node.serving.graph_inputs import factor_names
from edge_node.serving.weights import MIDDLE_8, Q41, Q80, Dense, ReadWeight, Weight

MICROSOFT = "com.microsoft"
INLINE_BYTES = 1024
ALIGNMENT = 4096  # of a tensor in the data file, so that it can be memory-mapped
INT8_ACTIVATIONS = 4  # MatMulNBits' accuracy_level: its fast kernels


def write_graph(architecture: Architecture, read: ReadWeight, path: Path) -> None:
    """Write the graph to `path` and its weights to a file beside it, with `.data` added to the name."""
    data = path.with_name(f"{path.name}.data")
    with data.open("wb") as file:
        model = _Builder(architecture, read, file, data.name).model()
    path.write_bytes(model.SerializeToString())


class _Builder:
    """The graph as far as it is built; every method adds nodes and returns the name of what they compute."""

    def __init__(self, architecture: Architecture, read: ReadWeight, data: BinaryIO, data_name: str) -> None:
        self._architecture, self._read, self._data, self._data_name = architecture, read, data, data_name
        self._nodes: list[NodeProto] = []
        self._initialisers: dict[str, TensorProto] = {}
        self._inputs: list[ValueInfoProto] = []
        self._outputs: list[ValueInfoProto] = []
        self._block_sums: dict[str, str] = {}  # of which input -> their name

    def model(self) -> ModelProto:
        """The whole network."""
        a = self._architecture
        self._input("input_ids", TensorProto.INT64, [1, "tokens"])
        self._input("seqlens_k", TensorProto.INT32, [1])
        self._input("total_sequence_length", TensorProto.INT32, [1])
        self._input("rows", TensorProto.INT64, ["rows"])
        self._outputs.append(_value("logits", TensorProto.FLOAT, [1, "rows", a.vocabulary]))
        self._rotations()
        embedding = self._weight("model.embed_tokens.weight")
        stream = self._embedded(embedding)
        normed = self._node(
            "SimplifiedLayerNormalization",
            [stream, self._norm("model.layers.0.input_layernorm")],
            "normed.0",
            axis=-1,
            epsilon=a.epsilon,
            stash_type=1,
        )
        for layer in range(a.layers):
            stream, normed = self._layer(layer, stream, normed)
        wanted = self._node("Gather", [normed, "rows"], "wanted", axis=1)
        self._head(wanted, embedding)
        graph = helper.make_graph(
            self._nodes, "alignfed", self._inputs, self._outputs, list(self._initialisers.values())
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    # --- the network ---

    def _layer(self, layer: int, stream: str, normed: str) -> tuple[str, str]:
        """One decoder layer: the residual stream after it, and that normed for what comes next."""
        name = f"model.layers.{layer}"
        attended = self._linear(f"{name}.self_attn.o_proj", self._attention(layer, normed))
        stream, normed = self._add_and_norm(f"{name}.post_attention_layernorm", stream, attended)
        gate = self._linear(f"{name}.mlp.gate_proj", normed)
        up = self._linear(f"{name}.mlp.up_proj", normed)
        gate = self._node("Mul", [gate, self._node("Sigmoid", [gate], f"{name}.sigmoid")], f"{name}.silu")
        down = self._linear(f"{name}.mlp.down_proj", self._node("Mul", [gate, up], f"{name}.gated"))
        last = layer + 1 == self._architecture.layers
        following = "model.norm" if last else f"model.layers.{layer + 1}.input_layernorm"
        return self._add_and_norm(following, stream, down)

    def _attention(self, layer: int, normed: str) -> str:
        a, name = self._architecture, f"model.layers.{layer}.self_attn"
        projected = [self._linear(f"{name}.{part}_proj", normed) for part in "qkv"]
        past = [f"past.{layer}.{part}" for part in ("key", "value")]
        present = [f"present.{layer}.{part}" for part in ("key", "value")]
        for old, new in zip(past, present, strict=True):
            self._input(old, TensorProto.FLOAT, [1, a.kv_heads, "past", a.head_dim])
            self._outputs.append(_value(new, TensorProto.FLOAT, [1, a.kv_heads, "total", a.head_dim]))
        inputs = [*projected, *past, "seqlens_k", "total_sequence_length", "cosines", "sines"]
        self._nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                inputs,
                [f"{name}.attended", *present],
                name=f"{name}.attended",
                domain=MICROSOFT,
                num_heads=a.heads,
                kv_num_heads=a.kv_heads,
                scale=a.head_dim**-0.5,
                do_rotary=1,
                rotary_interleaved=0,
            )
        )
        return f"{name}.attended"

    def _add_and_norm(self, norm: str, stream: str, added: str) -> tuple[str, str]:
        outputs = [f"{norm}.normed", "", "", f"{norm}.stream"]
        inputs = [stream, added, self._norm(norm)]
        epsilon = self._architecture.epsilon
        self._nodes.append(
            helper.make_node(
                "SkipSimplifiedLayerNormalization", inputs, outputs, name=norm, domain=MICROSOFT, epsilon=epsilon
            )
        )
        return f"{norm}.stream", f"{norm}.normed"

    def _linear(self, module: str, x: str) -> str:
        """x W^T, plus the bias if the model has one, plus what the adapter adds: (x A^T) (scaled B)^T."""
        weight = self._weight(f"{module}.weight")
        out_features, in_features = _shape(weight)
        y = self._product(module, weight, x)
        if (bias := self._read(f"{module}.bias")) is not None:
            y = self._node("Add", [y, self._dense(f"{module}.bias", bias)], f"{module}.biased")
        a, b = factor_names(module)
        for name, shape, rank_at in ((a, [in_features, 0], 1), (b, [0, out_features], 0)):
            self._constant(name, np.zeros(shape, np.float32))
            sizes: list[int | str] = list(shape)
            sizes[rank_at] = f"{module}.rank"
            self._input(name, TensorProto.FLOAT, sizes)
        inner = self._node("MatMul", [x, a], f"{module}.x_a")
        added = self._node("MatMul", [inner, b], f"{module}.x_a_b")
        return self._node("Add", [y, added], f"{module}.adapted")

    def _product(self, name: str, weight: Weight, x: str) -> str:
        match weight:
            case Dense(values):
                return self._node("MatMul", [x, self._constant(f"{name}.weight", values.T)], f"{name}.product")
            case Q41(packed, scale, offset):
                inputs = [x, self._constant(f"{name}.packed", packed), self._constant(f"{name}.scale", scale)]
                centred = self._blocked(inputs, f"{name}.centred", weight, 4)
                # the offset of a block meets the sum of the block's inputs
                sums = [self._sums(x), self._constant(f"{name}.offset", offset.T)]
                shift = self._node("MatMul", sums, f"{name}.shift")
                return self._node("Add", [centred, shift], f"{name}.product")
            case Q80(shifted, scale):
                inputs = [x, self._constant(f"{name}.shifted", shifted), self._constant(f"{name}.scale", scale)]
                return self._blocked(inputs, f"{name}.product", weight, 8)

    def _blocked(self, inputs: list[str], output: str, weight: Weight, bits: int) -> str:
        out_features, in_features = _shape(weight)
        sizes = {"N": out_features, "K": in_features, "bits": bits, "block_size": BLOCK}
        return self._node("MatMulNBits", inputs, output, domain=MICROSOFT, **sizes, accuracy_level=INT8_ACTIVATIONS)

    def _sums(self, x: str) -> str:
        """x summed over each block of 32, once for all modules that read it."""
        if x not in self._block_sums:
            shape = self._constant("by_block", np.array([0, 0, -1, BLOCK], np.int64))
            blocks = self._node("Reshape", [x, shape], f"{x}.blocks")
            last = self._constant("last_axis", np.array([-1], np.int64))
            self._block_sums[x] = self._node("ReduceSum", [blocks, last], f"{x}.sums", keepdims=0)
        return self._block_sums[x]

    def _embedded(self, embedding: Weight) -> str:
        match embedding:
            case Dense(values):
                return self._node("Gather", [self._constant("embedding", values), "input_ids"], "embedded")
            case Q80(shifted, scale):
                rows = self._node("Gather", [self._constant("embedding", shifted), "input_ids"], "embedded.rows")
                signed = self._node("Cast", [rows], "embedded.cast", to=TensorProto.FLOAT)
                middle = self._constant("middle", np.array(MIDDLE_8, np.float32))
                signed = self._node("Sub", [signed, middle], "embedded.signed")
                scales = [self._constant("embedding.scale", scale), "input_ids"]
                last = self._constant("last_axis", np.array([-1], np.int64))
                scaled = self._node(
                    "Unsqueeze", [self._node("Gather", scales, "embedded.scale"), last], "embedded.scales"
                )
                blocks = self._node("Mul", [signed, scaled], "embedded.blocks")
                flat = self._constant("flat", np.array([0, 0, self._architecture.hidden], np.int64))
                return self._node("Reshape", [blocks, flat], "embedded")
        raise BaseModelError("the embedding is Q4_1, which is not served; use the precision fp32")

    def _head(self, x: str, embedding: Weight) -> None:
        """Logits of the wanted rows, by the output layer or, where they are tied, by the embedding again."""
        if not self._architecture.tied:
            product = self._product("lm_head", self._weight("lm_head.weight"), x)
            self._node("Identity", [product], "logits")
        elif isinstance(embedding, Q80):
            self._blocked([x, "embedding", "embedding.scale"], "logits", embedding, 8)
        else:
            self._node("FusedMatMul", [x, "embedding"], "logits", domain=MICROSOFT, transB=1)

    def _rotations(self) -> None:
        a = self._architecture
        frequencies = a.rope_theta ** (-np.arange(0, a.head_dim, 2, dtype=np.float32) / a.head_dim)
        angles = np.arange(a.context, dtype=np.float32)[:, None] * frequencies.astype(np.float32)
        self._constant("cosines", np.cos(angles))
        self._constant("sines", np.sin(angles))

    # --- nodes and tensors ---

    def _weight(self, name: str) -> Weight:
        weight = self._read(name)
        if weight is None:
            raise BaseModelError(f"the weight files lack {name}: this model is not like Llama inside")
        return weight

    def _norm(self, name: str) -> str:
        return self._dense(f"{name}.weight", self._weight(f"{name}.weight"))

    def _dense(self, name: str, weight: Weight) -> str:
        if not isinstance(weight, Dense):
            raise BaseModelError(f"{name} is quantised, which is not served; use the precision fp32")
        return self._constant(name, weight.values)

    def _node(self, kind: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: Any) -> str:
        self._nodes.append(helper.make_node(kind, inputs, [output], name=output, domain=domain, **attributes))
        return output

    def _input(self, name: str, kind: int, shape: Sequence[int | str]) -> None:
        self._inputs.append(_value(name, kind, shape))

    def _constant(self, name: str, values: NDArray[Any]) -> str:
        """A tensor of the model; large ones go into the data file at once."""
        if name not in self._initialisers:
            values = np.ascontiguousarray(values)
            small = values.nbytes < INLINE_BYTES
            self._initialisers[name] = numpy_helper.from_array(values, name) if small else self._stored(name, values)
        return name

    def _stored(self, name: str, values: NDArray[Any]) -> TensorProto:
        self._data.seek(math.ceil(self._data.tell() / ALIGNMENT) * ALIGNMENT)
        place = {"location": self._data_name, "offset": self._data.tell(), "length": values.nbytes}
        self._data.write(values.data)
        tensor = TensorProto(
            name=name,
            dims=values.shape,
            data_type=helper.np_dtype_to_tensor_dtype(values.dtype),
            data_location=TensorProto.EXTERNAL,
        )
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        return tensor


def _shape(weight: Weight) -> tuple[int, int]:
    match weight:
        case Dense(values):
            return values.shape[0], values.shape[1]
        case Q41(_, scale, _) | Q80(_, scale):
            return scale.shape[0], scale.shape[1] * BLOCK


def _value(name: str, kind: int, shape: Sequence[int | str]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)
