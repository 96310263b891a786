"""The base model in ONNX Runtime: tokens in, logits and a longer key-value cache out. Any number of threads may ask.

It holds no adapter and no conversation: both come in with each call. It does not know requests or text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from base_model.architecture import read_architecture
from edge_node.serving.export import ServedModel

PIECE = 64  # tokens of a prompt that go through the model at once: bounds memory, and how long a stop has to wait
QUIET = 3  # ONNX Runtime's log level: without a warning for each of the hundreds of optional inputs


@dataclass(frozen=True)
class Past:
    """Keys and values of the tokens so far, by the graph's names; they hold for the adapter that made them."""

    tensors: dict[str, Any]
    length: int


class Session:
    """One loaded graph. `forward` is a function of its arguments."""

    def __init__(self, model: ServedModel, threads: int = 1) -> None:
        self.model = model
        self.architecture = read_architecture(model.resolved.path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = QUIET
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # an arena keeps what one long answer needed; without it the memory goes back, at the same speed
        options.enable_cpu_mem_arena = False
        # threads that wait by spinning would take the processor from the node's other work
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(model.graph, options, providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]

    @cached_property
    def factor_shapes(self) -> dict[str, tuple[int | None, int | None]]:
        """Shapes of the LoRA inputs that the graph takes, by name; None where the rank goes."""
        inputs = self._session.get_overridable_initializers()
        return {one.name: _with_free_rank(one.shape) for one in inputs}

    @cached_property
    def beginning(self) -> Past:
        """The cache of a conversation without any token."""
        a = self.architecture
        empty = np.zeros((1, a.kv_heads, 0, a.head_dim), np.float32)
        return Past({f"past.{layer}.{part}": empty for layer in range(a.layers) for part in ("key", "value")}, 0)

    def forward(
        self, tokens: Sequence[int], past: Past, rows: Sequence[int], options: Any = None
    ) -> tuple[NDArray[np.float32], Past]:
        """Logits (rows, vocabulary) at these positions of `tokens`, and the cache with them.

        `options` are the RunOptions of an adapter; None runs the base model. More tokens than the model's context hold
        raise ValueError.
        """
        length = past.length + len(tokens)
        if length > self.architecture.context:
            raise ValueError(f"{length} tokens are more than the {self.architecture.context} of the model's context")
        feeds = past.tensors | {
            "input_ids": np.array([tokens], np.int64),
            "seqlens_k": np.array([length - 1], np.int32),
            "total_sequence_length": np.array([length], np.int32),
            "rows": np.array(rows, np.int64),
        }
        logits, *present = self._session.run(None, feeds, options)
        names = (name.replace("present", "past") for name in self._outputs[1:])
        return logits[0], Past(dict(zip(names, present, strict=True)), length)


def _with_free_rank(shape: Sequence[int | str]) -> tuple[int | None, int | None]:
    first, second = (size if isinstance(size, int) and size > 0 else None for size in shape)
    return first, second
