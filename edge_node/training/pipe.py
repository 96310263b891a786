"""What the node and its training process say to each other over two pipes: a job in, progress and a result out.

Each message is one line of JSON, which says how many raw bytes follow it. A pipe that ends too early is a message that
was never said: nothing half is ever used, and nothing is left on disk. It does not know processes or training.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Literal, NewType

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from base_model.examples import Example
from base_model.settings import TrainingConfig
from schemas.adapter import Adapter, InvalidAdapter, Layout
from schemas.faults import first_fault

MAX_LINE = 16 << 20  # bytes: a layout of the most tensors is shorter
Activations = Literal["auto", "float32", "bfloat16"]


class CutShort(ValueError):
    """The other side stopped in the midst of a message, or said something else than one."""


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Order(_Line):
    """A job: how to train, on which weights, and how many bytes of adapter and examples follow.

    Without examples to train on, the start is measured and the job is over.
    """

    layout: Layout
    config: TrainingConfig
    model: Path  # folder of the converted model
    blocks: Path | None  # the GGUF file it was made from, if training may use its blocks
    activations: Activations
    threads: int
    slowdown: float
    examples_bytes: int = Field(ge=0)
    held_out_bytes: int = Field(default=0, ge=0)


class Loaded(_Line):
    """The process is ready to train."""

    kind: Literal["loaded"] = "loaded"
    weights: str  # what it trains on, in words
    seconds: float


class Measured(_Line):
    """How well the adapter that the job starts from does on the held-out examples."""

    kind: Literal["measured"] = "measured"
    examples: int
    loss: float


class Step(_Line):
    """One step is done."""

    kind: Literal["step"] = "step"
    step: int
    loss: float


class Finished(_Line):
    """The job is done; the adapter's values follow."""

    kind: Literal["finished"] = "finished"
    examples: int
    steps: int
    loss: float
    sha256: str  # of the values
    peak_mb: float  # the most memory that the process had resident, in MiB


Report = Annotated[Loaded | Measured | Step | Finished, Field(discriminator="kind")]
_REPORT: TypeAdapter[Loaded | Measured | Step | Finished] = TypeAdapter(Report)
JobExamples = NewType("JobExamples", bytes)


@dataclass(frozen=True)
class Job:
    """An order with what follows it."""

    order: Order
    start: Adapter
    examples: tuple[Example, ...]
    held_out: tuple[Example, ...]  # to measure the start by; perhaps none


def packed(examples: Sequence[Example]) -> JobExamples:
    """Examples as the bytes that follow an order."""
    return JobExamples("\n".join(example.model_dump_json() for example in examples).encode())


def write_job(pipe: IO[bytes], order: Order, start: Adapter, examples: JobExamples, held_out: JobExamples) -> None:
    """Say a job. Raises BrokenPipeError when nobody listens any more."""
    pipe.write(order.model_dump_json().encode() + b"\n")
    pipe.write(start.values.data)
    pipe.write(examples)
    pipe.write(held_out)
    pipe.flush()


def read_job(pipe: IO[bytes]) -> Job:
    """Wait for a job. Raises CutShort when it does not come whole."""
    try:
        order = Order.model_validate_json(_line(pipe))
        start = _adapter(pipe, order.layout)
        return Job(order, start, _examples(pipe, order.examples_bytes), _examples(pipe, order.held_out_bytes))
    except ValidationError as error:
        raise CutShort(first_fault(error).text) from None


def write_report(pipe: IO[bytes], report: Loaded | Measured | Step) -> None:
    """Say how far the job is."""
    _say(pipe, report)


def write_result(pipe: IO[bytes], adapter: Adapter, examples: int, steps: int, loss: float, peak_mb: float) -> None:
    """Say what was learnt."""
    digest = hashlib.sha256(adapter.values.data).hexdigest()
    _say(pipe, Finished(examples=examples, steps=steps, loss=loss, sha256=digest, peak_mb=peak_mb))
    pipe.write(adapter.values.data)
    pipe.flush()


def read_report(pipe: IO[bytes], layout: Layout) -> Loaded | Measured | Step | tuple[Finished, Adapter]:
    """The next report, with the adapter after the last one. Raises CutShort when the process has ended before."""
    try:
        report = _REPORT.validate_python(
            json.loads(_line(pipe))
        )  # json: a diverged loss is NaN, which pydantic's is not
    except ValidationError as error:
        raise CutShort(first_fault(error).text) from None
    except ValueError as fault:
        raise CutShort(str(fault)) from None
    if not isinstance(report, Finished):
        return report
    adapter = _adapter(pipe, layout)
    if hashlib.sha256(adapter.values.data).hexdigest() != report.sha256:
        raise CutShort("the result's bytes are not the ones that its line announces")
    return report, adapter


def _say(pipe: IO[bytes], line: Loaded | Measured | Step | Finished) -> None:
    pipe.write(json.dumps(line.model_dump()).encode() + b"\n")
    pipe.flush()


def _line(pipe: IO[bytes]) -> bytes:
    line = pipe.readline(MAX_LINE)
    if not line.endswith(b"\n"):
        raise CutShort("the pipe ended")
    return line


def _exactly(pipe: IO[bytes], count: int) -> bytes:
    content = pipe.read(count)
    if len(content) != count:
        raise CutShort("the pipe ended")
    return content


def _examples(pipe: IO[bytes], count: int) -> tuple[Example, ...]:
    return tuple(Example.model_validate_json(line) for line in _exactly(pipe, count).splitlines())


def _adapter(pipe: IO[bytes], layout: Layout) -> Adapter:
    values = np.frombuffer(_exactly(pipe, layout.size * 4), dtype=np.float32)
    try:
        return Adapter(layout, values)
    except InvalidAdapter as fault:
        raise CutShort(str(fault)) from None
