"""Targets for what people and programs of the site send: HTTP bodies, lines of examples, orders, settings."""

from base_model.examples import Example, InvalidExamples, load_examples, save_examples
from configuration import ConfigurationError, load
from coordinator.calibration import CalibrationSet
from coordinator.operations.orders import order_from_bytes
from edge_node.data.example_lines import NotAnExample, parse_line
from edge_node.data.example_requests import parse_examples
from edge_node.http_body import RequestRefused
from edge_node.serving.http_messages import parse_request
from fuzz.mutators import in_json, in_lines
from fuzz.target import Target, hold, sayable, written
from schemas.messages import InvalidMessage


def check_chat(data: bytes) -> None:
    """A request for an answer is refused with a status, or becomes a question."""
    try:
        request = parse_request(data)
    except RequestRefused as refusal:
        sayable(refusal)
        hold(400 <= refusal.status < 500, f"status {refusal.status} for what the sender has done")
        return
    question = request.question(usual_tokens=64)
    hold(1 <= question.sampling.max_tokens <= 4096 and bool(question.turns), "a question that cannot be answered")


def check_example_request(data: bytes) -> None:
    """Examples over HTTP are refused with a status, or are examples that a line can hold."""
    try:
        examples = parse_examples(data)
    except RequestRefused as refusal:
        sayable(refusal)
        hold(400 <= refusal.status < 500, f"status {refusal.status} for what the sender has done")
        return
    for example in examples:
        hold(parse_line(example.model_dump_json().encode()) == example, "it is read again as another example")


def check_example_line(data: bytes) -> None:
    """A line is no example for one of a few reasons, or is an example that is written and read again."""
    try:
        example = parse_line(data)
    except NotAnExample as refusal:
        sayable(refusal, 100)
        return
    hold(parse_line(example.model_dump_json().encode()) == example, "it is read again as another example")


def check_example_file(data: bytes) -> None:
    """A file of examples, a calibration set's too, is refused in words, or read as what can be written."""
    path = written(data, "examples.jsonl")
    try:
        examples = load_examples(path)
        CalibrationSet.load(path, 1, 1)
    except InvalidExamples as refusal:
        sayable(refusal)
        return
    hold(all(isinstance(example, Example) for example in examples), "something else than examples")
    save_examples(examples, path)
    hold(load_examples(path) == examples, "they are read again as others")


def check_order(data: bytes) -> None:
    """An operator's order is refused, or read as one that is written and read again."""
    try:
        order = order_from_bytes(data)
    except InvalidMessage as refusal:
        sayable(refusal)
        return
    hold(order_from_bytes(order.to_bytes()) == order, "it is read again as another order")


def check_settings(data: bytes) -> None:
    """A file of settings is refused in words that say what is wrong, or is a configuration."""
    try:
        load(written(data, "alignfed.toml"), {})
    except ConfigurationError as refusal:
        hold(bool(str(refusal)), "refused without a word")


TARGETS = (
    Target("chat", check_chat, 30, in_json, largest=3000),
    Target("example-request", check_example_request, 25, in_json, largest=3000),
    Target("example-line", check_example_line, 25, in_json, largest=2000),
    Target("example-file", check_example_file, 6, in_lines, largest=3000),
    Target("order", check_order, 20, in_json, largest=600),
    Target("settings", check_settings, 8, in_lines, largest=3000),
)
