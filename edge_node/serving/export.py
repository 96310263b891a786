"""From a resolved base model to the graph that serves it: made once per base model, kept in the cache under its digest.

Both steps run in child processes that need several times the memory of serving and give it back by ending:
`python -m edge_node.serving.export graph ...` writes the portable graph; `... prepack ...` lets ONNX Runtime write it
once more with the weights as this very processor wants them, so that serving maps them from the file.
"""

import hashlib
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from base_model.cache import fault_of, locked, work_folder
from base_model.digest import is_intact, record_files, sha256_of
from base_model.progress import Progress, silent
from base_model.reference import ResolvedModel, comes_from_gguf, gguf_of
from base_model.wheel import BaseModelError
from edge_node.child_process import die_with_the_parent

Precision = Literal["q41x", "fp32"]
"""q41x: the 4-bit and 8-bit blocks of a GGUF file, exactly; fp32: float32, from any weight files."""

GRAPH_VERSION = 1  # rises with every change of the graph, so that older ones in the cache are not used
GRAPH, RECORD = "model.onnx", "files.json"
STAGES = {"graph": "export", "prepack": "prepack"}  # what a person is told of each step


@dataclass(frozen=True)
class ServedModel:
    """A base model ready to be served: the graph's file, and where config and tokenizer are."""

    resolved: ResolvedModel
    precision: Precision
    graph: Path


def usual_precision(resolved: ResolvedModel) -> Precision:
    """The precision that serves exactly what the model's own files hold: q41x for a GGUF file, else fp32."""
    return "q41x" if comes_from_gguf(resolved) else "fp32"


def export(resolved: ResolvedModel, cache: Path, precision: Precision, progress: Progress = silent) -> ServedModel:
    """Find or make the portable graph of a base model; the first call takes seconds, later ones a moment.

    Raises BaseModelError, with what to do, for a model that this precision or the graph cannot serve.
    """
    folder = cache / "onnx" / f"{resolved.digest}-{precision}-{GRAPH_VERSION}"
    source = gguf_of(resolved, cache) if precision == "q41x" else resolved.path
    arguments = ["graph", str(source), str(resolved.path), resolved.digest, precision]
    _made(folder, cache, progress, arguments)
    return ServedModel(resolved, precision, folder / GRAPH)


def prepack(model: ServedModel, cache: Path, progress: Progress = silent) -> ServedModel:
    """The same model with weights in this processor's own order: bigger on disk, and far less memory while serving.

    Raises BaseModelError when the copy does not answer as the portable graph does; that one can be served still.
    """
    folder = cache / "onnx" / f"{model.graph.parent.name}-{_processor()}"
    arguments = ["prepack", str(model.graph), str(model.resolved.path)]
    _made(folder, cache, progress, arguments)
    return ServedModel(model.resolved, model.precision, folder / GRAPH)


def _made(folder: Path, cache: Path, progress: Progress, arguments: list[str]) -> None:
    """See to it that the folder is there and intact: made by a child process, complete or not at all."""
    step = arguments[0]
    with locked(cache, folder.name, progress):
        if is_intact(folder, folder / RECORD):
            return
        progress(STAGES[step], 0, None)
        with work_folder(cache, folder.name) as work:
            if (fault := fault_of("edge_node.serving.export", [*arguments, str(work / GRAPH)])) is not None:
                raise BaseModelError(f"could not make the graph that serves this base model: {fault}")
            record_files(sorted(work.iterdir()), work / RECORD)
            _to_disk(work)
            shutil.rmtree(folder, ignore_errors=True)
            folder.parent.mkdir(parents=True, exist_ok=True)
            work.rename(folder)  # atomic: readers see no folder, or all of it


def _processor() -> str:
    """What the order of prepacked weights depends on: the processor's abilities and ONNX Runtime's version."""
    facts = [version("onnxruntime"), platform.machine(), platform.processor()]
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        facts += sorted({line for line in lines if line.lower().startswith(("flags", "features", "model name"))})
    except OSError:  # no such file: not Linux
        pass
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]


def _to_disk(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- in the child process ---


def _write_graph(source: Path, folder: Path, digest: str, precision: str, graph: Path) -> None:
    from base_model.architecture import read_architecture
    from edge_node.serving.graph import write_graph
    from edge_node.serving.weights import dense_weights, gguf_weights

    architecture = read_architecture(folder)
    if precision == "q41x" and sha256_of(source) != digest:
        raise BaseModelError(f"{source} is not the file that this base model was made from")
    read = gguf_weights(source, architecture) if precision == "q41x" else dense_weights(folder)
    write_graph(architecture, read, graph)


def _write_prepacked(source: Path, folder: Path, graph: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(graph)
    for key, value in (
        ("optimized_model_external_initializers_file_name", f"{graph.name}.data"),
        # all but shapes and axes, which must stay in the graph, has to be in the file: prepacked weights in the graph
        # crash the process that reads them
        ("optimized_model_external_initializers_min_size_in_bytes", "64"),
        ("save_external_prepacked_constant_initializers", "1"),
    ):
        options.add_session_config_entry(f"session.{key}", value)
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    if _first_logits(graph, folder) != _first_logits(source, folder):
        raise BaseModelError("prepacked weights give other answers than portable ones")


def _first_logits(graph: Path, folder: Path) -> bytes:
    from edge_node.serving.session import Session

    conversation = Session(ServedModel(ResolvedModel("", folder, ""), "fp32", graph)).begin(2)
    return conversation.read([0], [0]).tobytes() + conversation.read([1], [0]).tobytes()


def _main(step: str, *arguments: str) -> None:
    die_with_the_parent()
    try:
        if step == "graph":
            source, folder, digest, precision, graph = arguments
            _write_graph(Path(source), Path(folder), digest, precision, Path(graph))
        else:
            _write_prepacked(*map(Path, arguments))
    except BaseModelError as fault:
        sys.exit(str(fault))


if __name__ == "__main__":
    _main(*sys.argv[1:])
