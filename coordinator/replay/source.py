"""What a replay can start from: a federation's terms, its first adapter, what came in, and which versions it made.

A coordinator's journal has all of it. A recording of topics has the messages, and version 0 if it began early enough;
what it lacks (the strategy's settings, the limits, the base model's answers) is taken from a journal, or assumed and
said. Where that cannot be honest, NotReplayable says why.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from broker.recording import RecordingError, Row, read_rows
from coordinator.journal import START, founding
from coordinator.replay.recorded import is_journal, recorded_digests
from coordinator.state import FederationConfig
from coordinator.strategies import Strategy
from coordinator.trust.opened import FOUNDING_ROWS, opened_rows
from schemas.adapter import Adapter, InvalidAdapter, Layout, LoraConfig
from schemas.chunks import CorruptChunk, verify
from schemas.codec import UPDATE_CODECS
from schemas.faults import printable
from schemas.messages import CoordinatorState, GlobalManifest, InvalidMessage
from schemas.reading import address_of, message_on
from schemas.signing import unsigned
from schemas.topics import (
    Address,
    CoordinatorStateOf,
    GlobalChunk,
    GlobalHead,
    GlobalManifestOf,
    UpdateChunk,
    UpdateManifestOf,
)


class NotReplayable(RecordingError):
    """A recording lacks what a replay of its versions needs; says what, and what to do."""


class ModelWasAsked(NotReplayable):
    """The base model has moved a version of a recording, and what it answered is on no topic."""


@dataclass(frozen=True)
class Source:
    """The input of a replay. `recorded` has each version's digest and the row with which it was there."""

    path: Path
    config: FederationConfig
    adapter: Adapter
    founded_at_ns: int
    recorded: Mapping[int, tuple[str, int]]
    assumptions: tuple[str, ...] = ()
    is_journal: bool = True
    is_opened: bool = False

    def rows(self) -> Iterator[Row]:
        """Every row after the founding that a coordinator takes in, in order."""
        if self.is_journal:
            return opened_rows(self.path) if self.is_opened else read_rows(self.path, after_seq=FOUNDING_ROWS)
        return _as_coordinator_rows(self.path)

    def opened(self) -> "Source":
        """The same without signatures, which are checked first: for who changes updates."""
        return replace(self, config=self.config.model_copy(update={"root": None}), is_opened=True)


@dataclass
class Heard:
    """What a recording of topics says of its federation."""

    federation: str
    birth: CoordinatorState | None = None
    finished: bool = False
    manifest: GlobalManifest | None = None  # of version 0
    chunks: dict[int, bytes] = field(default_factory=dict)  # of version 0
    founded_at_ns: int = 0
    heads: dict[int, tuple[str, int]] = field(default_factory=dict)
    anchored: int | None = None  # the first version that the base model has moved


def open_source(path: Path, journal: Path | None = None) -> Source:
    """Open a journal, or a recording of topics with the terms from `journal`, else assumed. Raises RecordingError."""
    if is_journal(path):
        rows = read_rows(path)
        first, second = next(rows), next(rows, None)
        if second is None:
            raise NotReplayable(f"{path} ends before the federation begins")
        config, adapter = founding(path, first, second)
        return Source(path, config, adapter, second.received_at_ns, recorded_digests(path))
    return _from_topics(path, journal)


def open_topics(path: Path, config: FederationConfig) -> Source:
    """Open a recording of topics under these terms, for who can answer as the base model. Raises RecordingError."""
    heard = listen(path)
    layout, body = _first_adapter(path, heard)
    if (config.federation, config.layout.digest) != (heard.federation, layout.digest):
        raise NotReplayable(f"{path} is of another federation, or has adapters of another shape, than the settings say")
    config = config.model_copy(update={"root": None})
    adapter = Adapter.from_safetensors(layout, body)
    return Source(path, config, adapter, heard.founded_at_ns, heard.heads, is_journal=False)


def _from_topics(path: Path, journal: Path | None) -> Source:
    heard = listen(path)
    layout, body = _first_adapter(path, heard)
    if heard.anchored is not None:
        raise ModelWasAsked(
            f"{path}: the base model moved version {heard.anchored}, and its answers are on no topic: replay the "
            "coordinator's journal, name it by --journal, or ask the model again by --recompute"
        )
    if journal is not None:
        config = open_source(journal).config.model_copy(update={"calibration": None, "root": None})
        assumptions: tuple[str, ...] = (f"the terms are those of {journal}",)
    else:
        config, assumptions = _assumed_terms(heard, layout)
    if (config.federation, config.layout.digest) != (heard.federation, layout.digest):
        raise NotReplayable(f"{journal} is of another federation than {path}")
    adapter = Adapter.from_safetensors(layout, body)
    return Source(path, config, adapter, heard.founded_at_ns, heard.heads, assumptions, is_journal=False)


def listen(path: Path) -> Heard:
    """Go through a recording of topics. Raises NotReplayable for one of no federation, or of several."""
    all_heard: dict[str, Heard] = {}
    for row in read_rows(path):
        if (found := address_of(row.topic)) is not None:
            federation, address = found
            _hear(all_heard.setdefault(federation, Heard(federation)), row, address)
    if len(all_heard) != 1:
        names = ", ".join(sorted(all_heard)) or "none"
        raise NotReplayable(f"{path} should hold the topics of one federation; it holds {names}")
    return all_heard.popitem()[1]


def _hear(heard: Heard, row: Row, address: Address) -> None:
    try:
        match address:
            case CoordinatorStateOf():
                state = message_on(address, row.payload)
                heard.birth = heard.birth or state
                heard.finished = heard.finished or state.finished
            case GlobalHead():
                pointer = message_on(address, row.payload)
                heard.heads.setdefault(pointer.version, (pointer.digest, row.seq))
            case GlobalManifestOf():
                _hear_of_version(heard, message_on(address, row.payload))
            case GlobalChunk(0, index) if row.payload:
                heard.chunks[index] = row.payload
    except InvalidMessage:
        return  # a deletion, or what no node could read either


def _hear_of_version(heard: Heard, manifest: GlobalManifest) -> None:
    moved = manifest.anchor is not None or any(g.residual_after is not None for g in manifest.groups)
    if moved and heard.anchored is None:
        heard.anchored = manifest.version
    if manifest.version == 0:
        heard.manifest, heard.founded_at_ns = manifest, manifest.created_at_ns


def _first_adapter(path: Path, heard: Heard) -> tuple[Layout, bytes]:
    """Version 0's layout and body, checked against what its manifest names."""
    manifest, chunks = heard.manifest, heard.chunks
    if manifest is None or heard.birth is None:
        oldest = f"begins at version {min(heard.heads)}" if heard.heads else "has no version"
        raise NotReplayable(f"{path} {oldest}: to make versions again, version 0 and all updates since must be in it")
    if missing := set(range(len(manifest.body.chunks))) - chunks.keys():
        raise NotReplayable(f"{path}: {len(missing)} chunks of version 0 are missing")
    body = b"".join(chunks[index] for index in range(len(manifest.body.chunks)))
    try:
        return layout_of_body(manifest.lora, manifest.layout, verify(body, manifest.body)), body
    except CorruptChunk as error:
        raise NotReplayable(f"{path}: version 0 is damaged: {error}") from None


def layout_of_body(lora: LoraConfig, digest: str, body: bytes) -> Layout:
    """The layout of a safetensors body; NotReplayable if it is not the one of that digest."""
    try:
        shapes = {name: tensor.shape for name, tensor in load_safetensors(body).items()}
        layout = Layout(lora=lora, tensors=tuple((name, (a, b)) for name, (a, b) in sorted(shapes.items())))
    except (SafetensorError, ValidationError, InvalidAdapter, ValueError) as error:
        raise NotReplayable(f"the adapter in the recording cannot be read: {printable(str(error), 200)}") from None
    if layout.digest != digest:
        raise NotReplayable("the adapter in the recording is not of the layout that its manifest names")
    return layout


def _assumed_terms(heard: Heard, layout: Layout) -> tuple[FederationConfig, tuple[str, ...]]:
    birth = heard.birth
    assert birth is not None
    if birth.clip_norm is not None:
        raise NotReplayable("these versions were made with noise that is on no topic: name the journal by --journal")
    try:
        strategy = TypeAdapter[Strategy](Strategy).validate_python({"name": birth.strategy})
    except ValidationError:
        raise NotReplayable(f"this program knows no strategy {birth.strategy}") from None
    config = FederationConfig(
        federation=heard.federation,
        base_model=birth.base_model,
        base_model_name=birth.base_model_name,
        layout=layout,
        strategy=strategy,
        node_ranks=birth.node_ranks or (),
        codecs=tuple(codec for codec in UPDATE_CODECS if codec in birth.codecs) or UPDATE_CODECS,
        final_version=max(heard.heads) if heard.finished and heard.heads else None,
    )
    return config, (
        f"the settings of {birth.strategy} and the limits are on no topic: the defaults are assumed; name the "
        "coordinator's journal by --journal",
    )


def _as_coordinator_rows(path: Path) -> Iterator[Row]:
    """What a coordinator would have journalled of a recording of topics: updates, and its own starts."""
    epoch = 0
    for row in read_rows(path):
        match address_of(row.topic):
            case (_, UpdateManifestOf()):
                yield replace(row, payload=unsigned(row.payload))  # the terms that are assumed ask for no signature
            case (_, UpdateChunk()):
                yield row
            case (_, CoordinatorStateOf() as address) if (announced := _epoch(address, row)) > epoch:
                epoch = announced
                yield Row(row.received_at_ns, START, b"", seq=row.seq)


def _epoch(address: CoordinatorStateOf, row: Row) -> int:
    try:
        return message_on(address, row.payload).epoch
    except InvalidMessage:
        return 0  # no start of a coordinator
