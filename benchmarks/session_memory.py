"""What a bare session needs in memory while it answers, as JSON: ours, or ONNX Runtime's defaults. Started by edge.py.

    python benchmarks/session_memory.py GRAPH MODEL_FOLDER ours|defaults

No node is around it: an import of ONNX Runtime, the graph, prompts of PROMPT tokens and answers of ANSWER.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnxruntime
from gateway import Watch

from base_model.architecture import read_architecture
from base_model.reference import ResolvedModel
from edge_node.memory import give_back_memory, share_one_heap
from edge_node.serving.export import ServedModel
from edge_node.serving.session import QUIET, Session

PROMPT, ANSWER, TIMES = 128, 64, 3


def ours(graph: Path, folder: Path) -> Iterator[None]:
    """The session that a node has, and what it does after each answer."""
    share_one_heap()
    session = Session(ServedModel(ResolvedModel("", folder, ""), "q41x", graph))
    give_back_memory()
    yield
    for _ in range(TIMES):
        conversation = session.begin(PROMPT + ANSWER)
        conversation.read(range(PROMPT), [PROMPT - 1])
        for token in range(ANSWER - 1):
            conversation.read([token], [0])
        del conversation
        give_back_memory()
        yield


def defaults(graph: Path, folder: Path) -> Iterator[None]:
    """Arena, one call for the prompt, keys and values in and out with each token."""
    options, a = onnxruntime.SessionOptions(), read_architecture(folder)
    options.log_severity_level, options.intra_op_num_threads = QUIET, 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    yield
    for _ in range(TIMES):
        empty = np.zeros((1, a.kv_heads, 0, a.head_dim), np.float32)
        past, length = {name.replace("present", "past"): empty for name in outputs[1:]}, 0
        for tokens in ([list(range(PROMPT))], *([[token]] for token in range(ANSWER - 1))):
            length += len(tokens[0])
            feeds = {
                "input_ids": np.array(tokens, np.int64),
                "seqlens_k": np.array([length - 1], np.int32),
                "total_sequence_length": np.array([length], np.int32),
                "rows": np.array([len(tokens[0]) - 1], np.int64),
            }
            _, *present = session.run(None, feeds | past)
            past = dict(zip(past, present, strict=True))
        yield


def main() -> None:
    """Load, answer, and print the most that was seen while it did."""
    graph, folder, way = sys.argv[1:]
    with Watch() as watch:
        answers = {"ours": ours, "defaults": defaults}[way](Path(graph), Path(folder))
        next(answers)
        watch.forget()  # what loading took
        for _ in answers:
            pass
    print(json.dumps(asdict(watch.node)))


if __name__ == "__main__":
    main()
