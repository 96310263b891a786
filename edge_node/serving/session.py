"""The base model in ONNX Runtime: tokens in, logits out, with what was read so far kept where it grows.

Any number of conversations may go on at once, each on a thread of its own. It does not know requests or text.
"""

import mmap
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidProtobuf, RuntimeException

from base_model.architecture import read_architecture
from edge_node.memory import let_go_of_file
from edge_node.serving.export import ServedModel

ONNX_FAULTS = (Fail, InvalidArgument, InvalidProtobuf, RuntimeException, RuntimeError)
PIECE = 32  # tokens of a prompt that go through the model at once: bounds memory, and how long a stop has to wait
QUIET = 3  # ONNX Runtime's log level: without a warning for each of the hundreds of optional inputs

Factors = Mapping[str, Any]
"""An adapter's factors as ONNX Runtime's own values, by the names of the graph's inputs."""

WITHOUT: Factors = {}


class Session:
    """One loaded graph."""

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
        let_go_of_file(model.graph.with_name(f"{model.graph.name}.data"))  # loading reads more than answering will

    @cached_property
    def factor_shapes(self) -> dict[str, tuple[int | None, int | None]]:
        """Shapes of the LoRA inputs that the graph takes, by name; None where the rank goes."""
        inputs = self._session.get_overridable_initializers()
        return {one.name: _with_free_rank(one.shape) for one in inputs}

    def begin(self, room: int, factors: Factors = WITHOUT) -> "Conversation":
        """A conversation of at most `room` tokens with one adapter from its first to its last, or with none.

        More than the model's context holds raise ValueError.
        """
        if room > (context := self.architecture.context):
            raise ValueError(f"{room} tokens are more than the {context} of the model's context")
        return Conversation(self, self._session.io_binding(), room, factors)

    def run(self, binding: Any) -> None:
        """Have ONNX Runtime do what is bound."""
        self._session.run_with_iobinding(binding)


class Conversation:
    """The tokens read so far, as their keys and values: written once where they stay, while room is only an address.

    ONNX Runtime would else copy all of them for each new token.
    """

    def __init__(self, session: Session, binding: Any, room: int, factors: Factors) -> None:
        self.length = 0
        self._session, self._binding, self._room, self._factors = session, binding, room, factors
        a = session.architecture
        shape = (1, a.kv_heads, room, a.head_dim)
        names = [f"{layer}.{part}" for layer in range(a.layers) for part in ("key", "value")]
        size = 4 * len(names) * int(np.prod(shape))
        memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # pages come as they are written
        for name, values in zip(names, np.frombuffer(memory, np.float32).reshape(-1, *shape), strict=True):
            tensor = onnxruntime.OrtValue.ortvalue_from_numpy(values)
            binding.bind_ortvalue_input(f"past.{name}", tensor)
            binding.bind_ortvalue_output(f"present.{name}", tensor)
        for name, factor in factors.items():
            binding.bind_ortvalue_input(name, factor)

    def read(self, tokens: Sequence[int], rows: Sequence[int]) -> NDArray[np.float32]:
        """Logits (rows, vocabulary) at these positions of `tokens`; more than there is room for raise ValueError."""
        length = self.length + len(tokens)
        if length > self._room:
            raise ValueError(f"{length} tokens are more than the {self._room} that there is room for")
        for name, values in (
            ("input_ids", np.array([tokens], np.int64)),
            ("seqlens_k", np.array([length - 1], np.int32)),
            ("total_sequence_length", np.array([length], np.int32)),
            ("rows", np.array(rows, np.int64)),
        ):
            self._binding.bind_cpu_input(name, values)
        logits = np.empty((1, len(rows), self._session.architecture.vocabulary), np.float32)
        self._binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._session.run(self._binding)
        self.length = length
        found: NDArray[np.float32] = logits[0]
        return found


def _with_free_rank(shape: Sequence[int | str]) -> tuple[int | None, int | None]:
    first, second = (size if isinstance(size, int) and size > 0 else None for size in shape)
    return first, second
