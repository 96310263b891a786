"""Replays without a broker: of a journal, of the topics that it made, otherwise than it was, and unkindly."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.recording import RecordingError, Row, read_rows, transaction, write_recording
from coordinator import publisher
from coordinator.core import step
from coordinator.journal import fold_rows, open_journal, record, row_of_event
from coordinator.questions import TrainedAnchor, answer_to_bytes
from coordinator.recovery import restore
from coordinator.registry import Registry
from coordinator.replay.fuzzing import CHANCES, fuzz
from coordinator.replay.inside import replay_journal
from coordinator.replay.outside import replay_topics
from coordinator.replay.recorded import Cut, Selection, cut, is_journal, recorded_digests, select, version_rows, volumes
from coordinator.replay.source import NotReplayable, open_source
from coordinator.replay.what_if import Change, strategy_named, what_if
from coordinator.stages import AnchorStage
from coordinator.state import Answered, AskModel, CalibrationTerms, Event, FederationConfig, PublishVersion, Received
from coordinator.strategies import AlignFed, FedAsync, FedBuff, FedEx
from coordinator.summary import summary
from schemas.adapter import Adapter
from schemas.chunks import describe, split
from schemas.codec import encode
from schemas.messages import CoordinatorState, GlobalManifest, UpdateManifest, update_id
from schemas.topics import Address, CoordinatorStateOf, GlobalHead, UpdateChunk, UpdateManifestOf, route

SECOND = 1_000_000_000
TERMS = FedBuff(buffer_size=2, timeout_s=60)

MakeConfig = Callable[..., FederationConfig]
MakeMessage = Callable[..., Received]
MakeAdapter = Callable[..., Adapter]
MakeJournal = Callable[..., Path]


@pytest.fixture
def journal(tmp_path: Path, config: MakeConfig, adapter: MakeAdapter, message: MakeMessage) -> MakeJournal:
    """journal(strategy): three nodes in turn make versions of two updates each, the last node from an older version."""

    def make(strategy: object = TERMS, rounds: int = 6, answer: float | None = None, **terms: object) -> Path:
        path = tmp_path / "journal.db"
        with closing(open_journal(path)) as journal:
            registry = Registry(tmp_path / "adapters")
            state, effects = restore(journal, registry, config(strategy, **terms), adapter(0.5), SECOND)
            versions = [(state.head.version, state.head.digest)]
            for turn in range(2 * rounds):
                node = "abc"[turn % 3]
                version, digest = versions[max(0, len(versions) - 2)] if node == "c" else versions[-1]
                delta = adapter(0.1 * (turn + 1), -0.3)
                events: list[Event] = [message(node, delta, version, digest, turn, at_ns=(turn + 2) * SECOND)]
                while events:
                    for effect in effects:
                        if isinstance(effect, AskModel) and answer is not None:
                            said = TrainedAnchor(adapter(answer), 3.0, 2.0, 0.1)
                            events.append(Answered(events[0].at_ns, effect.question_id, answer_to_bytes(said)))
                    event = events.pop()
                    state, effects = step(state, event)
                    row = (
                        Row(event.at_ns, event.topic, event.payload)
                        if isinstance(event, Received)
                        else row_of_event(event)
                    )
                    with transaction(journal):
                        record(journal, row, effects)
                if state.head.version > versions[-1][0]:
                    versions.append((state.head.version, state.head.digest))
        return path

    return make


def topics_of(journal: Path, out: Path, config: FederationConfig) -> Path:
    """A recording of what was on the topics while a journal was written."""

    def rows() -> Iterator[Row]:
        birth = CoordinatorState(
            online=True,
            boot_id="b" * 32,
            epoch=1,
            base_model=config.base_model,
            base_model_name="tiny",
            lora=config.layout.lora,
            layout=config.layout.digest,
            strategy=config.strategy.name,
            one_update_per_version=False,
            codecs=config.codecs,
            node_ranks=config.node_ranks,
        )
        yield row_at(0, CoordinatorStateOf(), birth.to_bytes())
        for row, _, effects in fold_rows(journal):
            if not row.topic.startswith("$"):
                yield row
            for effect in effects:
                if isinstance(effect, PublishVersion):
                    yield from published(row.received_at_ns, effect)

    def row_at(at_ns: int, address: Address, payload: bytes) -> Row:
        made = publisher.publication("test", address, payload)
        return Row(at_ns, made.topic, made.payload, made.qos, made.retain)

    def published(at_ns: int, made: PublishVersion) -> Iterator[Row]:
        registry = Registry(out.with_name("published"))
        registry.add(made.manifest, made.adapter)
        pointer = publisher.head_pointer("test", made.manifest, publisher.Stamp(1))
        for publication in (*publisher.bodies("test", registry, [made.manifest]), pointer):
            yield Row(at_ns, publication.topic, publication.payload, publication.qos, publication.retain)

    write_recording(out, rows())
    return out


def digests(path: Path) -> list[str]:
    return [digest for digest, _ in recorded_digests(path).values()]


# --- as it was ---


def test_a_replay_names_the_rows_and_the_manifests_of_its_versions(journal: MakeJournal) -> None:
    replayed = replay_journal(journal())
    assert replayed.agrees and replayed.first_differing_row is None
    assert [(v.version, v.recorded_row == v.replayed_row) for v in replayed.versions] == [(n, True) for n in range(7)]
    last = replayed.versions[-1].manifest
    assert last is not None and {given.node for given in last.inputs} == {"b", "c"}


def test_a_replay_stops_at_a_version_with_the_state_of_then(journal: MakeJournal) -> None:
    path = journal()
    replayed = replay_journal(path, until=2)
    assert [version.version for version in replayed.versions] == [0, 1, 2]
    assert replayed.state is not None
    shown = summary(replayed.state)
    assert (shown["head"]["version"], shown["epoch"], shown["waiting"]) == (2, 1, [])
    assert shown["nodes"]["a"] == {"participation": 2, "in_versions": {1: 1, 2: 1}, "incomplete": [], "refused": []}


def test_the_first_differing_row_is_that_of_the_first_version_made_otherwise(journal: MakeJournal) -> None:
    path = journal()
    rows = recorded_digests(path)
    with closing(open_journal(path)) as connection, transaction(connection):
        connection.execute("DELETE FROM messages WHERE seq = ?", (rows[3][1] - 1,))  # an update of version 3
    replayed = replay_journal(path)
    assert [version.agrees for version in replayed.versions][:4] == [True, True, True, False]
    assert replayed.first_differing_row == rows[3][1]


# --- from the topics alone ---


def test_topics_with_the_terms_of_the_journal_make_the_same_versions(
    journal: MakeJournal, tmp_path: Path, config: MakeConfig
) -> None:
    path = journal()
    replayed = replay_topics(topics_of(path, tmp_path / "topics.rec", config(TERMS)), path)
    assert [(version.recorded, version.replayed) for version in replayed.versions] == [(d, d) for d in digests(path)]
    assert {version.reason for version in replayed.versions} == {"made again, bit for bit"}


def test_topics_alone_are_checked_by_the_published_weights(
    journal: MakeJournal, tmp_path: Path, config: MakeConfig
) -> None:
    recording = topics_of(journal(), tmp_path / "topics.rec", config(TERMS))
    replayed = replay_topics(recording)
    assert replayed.agrees
    assert "the defaults are assumed" in replayed.assumptions[0]
    assert replayed.versions[-1].replayed is None  # by default FedBuff waits for more updates
    assert "2 deltas in the recording, by the published weights" in replayed.versions[-1].reason


def test_what_ranks_and_codecs_were_taken_is_known_from_the_topics(
    journal: MakeJournal, tmp_path: Path, config: MakeConfig
) -> None:
    terms: dict[str, Any] = {"node_ranks": (4,), "codecs": ("int8", "fp32")}
    told = open_source(topics_of(journal(**terms), tmp_path / "topics.rec", config(TERMS, **terms))).config
    assert (told.node_ranks, set(told.codecs)) == ((4,), {"int8", "fp32"})


def test_a_published_version_that_its_inputs_do_not_make_is_found(
    journal: MakeJournal, tmp_path: Path, config: MakeConfig, adapter: MakeAdapter
) -> None:
    """Somebody has changed a delta, and its manifest so that the hash is right."""
    recording = topics_of(journal(), tmp_path / "topics.rec", config(TERMS))

    def changed() -> Iterator[Row]:
        for row in read_rows(recording):
            if row.topic.endswith("global/v/3/manifest"):
                manifest = GlobalManifest.from_bytes(row.payload)
                first, *others = manifest.inputs
                heavier = first.model_copy(update={"weight": first.weight * 1.001})
                row = replace(row, payload=manifest.model_copy(update={"inputs": (heavier, *others)}).to_bytes())
            yield row

    write_recording(tmp_path / "changed.rec", changed())
    replayed = replay_topics(tmp_path / "changed.rec")
    assert [v.verdict for v in replayed.versions] == ["agrees"] * 3 + ["differs"] + ["agrees"] * 3
    assert not replayed.agrees
    assert replayed.first_differing_row == replayed.versions[3].row


def test_a_recording_that_begins_late_is_checked_as_far_as_it_goes(
    journal: MakeJournal, tmp_path: Path, config: MakeConfig
) -> None:
    path = journal()
    recording = topics_of(path, tmp_path / "topics.rec", config(TERMS))
    assert cut(recording, tmp_path / "late.rec", Cut(first_version=4)) < sum(1 for _ in read_rows(recording))
    replayed = replay_topics(tmp_path / "late.rec", path)
    assert replayed.not_folded is not None and "begins at version 4" in replayed.not_folded
    verdicts = {version.version: (version.verdict, version.reason) for version in replayed.versions}
    assert verdicts.keys() == {4, 5, 6}
    assert verdicts[4] == ("unchecked", "the version before it is not in the recording")
    assert verdicts[6][0] == "agrees"


def test_what_the_base_model_has_moved_is_not_claimed_to_be_checked(
    journal: MakeJournal, tmp_path: Path, config: MakeConfig, calibration: CalibrationTerms
) -> None:
    strategy = FedBuff(buffer_size=2, anchor=AnchorStage())
    path = journal(strategy, answer=0.25, calibration=calibration)
    assert replay_journal(path).agrees
    replayed = replay_topics(topics_of(path, tmp_path / "topics.rec", config(strategy)))
    assert replayed.not_folded is not None and "its answers are on no topic" in replayed.not_folded
    assert {v.verdict for v in replayed.versions[1:]} == {"unchecked"}
    assert "the base model's own delta is in it" in replayed.versions[1].reason
    assert not replayed.agrees


def test_with_the_journals_answers_and_order_it_is_made_again_of_the_recorded_messages(
    journal: MakeJournal, tmp_path: Path, config: MakeConfig, calibration: CalibrationTerms
) -> None:
    strategy = FedBuff(buffer_size=2, anchor=AnchorStage())
    path = journal(strategy, answer=0.25, calibration=calibration)
    replayed = replay_topics(topics_of(path, tmp_path / "topics.rec", config(strategy)), path)
    assert [(version.recorded, version.replayed) for version in replayed.versions] == [(d, d) for d in digests(path)]
    assert replayed.agrees
    assert len(replayed.assumptions) == 1 and "answers and the order" in replayed.assumptions[0]


def test_a_message_that_the_recording_lacks_is_not_taken_from_the_journal(
    journal: MakeJournal, tmp_path: Path, config: MakeConfig, calibration: CalibrationTerms
) -> None:
    strategy = FedBuff(buffer_size=2, anchor=AnchorStage())
    path = journal(strategy, answer=0.25, calibration=calibration)
    recording = topics_of(path, tmp_path / "topics.rec", config(strategy))
    rows = list(read_rows(recording))
    last = max(row.seq for row in rows if "/update/" in row.topic)
    write_recording(tmp_path / "short.rec", [row for row in rows if row.seq != last])
    replayed = replay_topics(tmp_path / "short.rec", path)
    assert [version.verdict for version in replayed.versions] == ["agrees"] * 6 + ["unchecked"]
    assert "1 of the 12 messages" in replayed.assumptions[1]
    assert replay_topics(tmp_path / "short.rec", path, until=5).assumptions[1:] == ()


def test_a_strategy_that_does_not_add_up_needs_its_terms(
    journal: MakeJournal, tmp_path: Path, config: MakeConfig
) -> None:
    path = journal(FedEx(buffer_size=2))
    recording = topics_of(path, tmp_path / "topics.rec", config(FedEx(buffer_size=2)))
    assert "unchecked" in {version.verdict for version in replay_topics(recording).versions}
    assert {version.verdict for version in replay_topics(recording, path).versions} == {"agrees"}


def test_a_recording_of_nothing_of_ours_is_refused(tmp_path: Path) -> None:
    write_recording(tmp_path / "r", [Row(1, "weather", b"rain")])
    with pytest.raises(NotReplayable, match="has no version"):
        replay_topics(tmp_path / "r")


# --- otherwise than it was ---


def test_a_what_if_without_a_change_is_what_was_recorded(journal: MakeJournal) -> None:
    path = journal()
    assert [version.digest for version in what_if(open_source(path), Change()).versions] == digests(path)


def test_without_a_node_versions_are_made_of_the_others(journal: MakeJournal) -> None:
    path = journal()
    result = what_if(open_source(path), Change(without=("c",)))
    assert {node for version in result.versions for node in version.nodes} == {"a", "b"}
    assert len(result.versions) == 1 + 4  # eight updates remain
    assert result.receipts == {"accepted": 8, "aggregated": 8}
    assert [version.version for version in result.versions] == list(range(5))


def test_without_a_node_every_version_is_bit_for_bit_what_it_would_have_been_had_the_node_never_sent_anything(
    tmp_path: Path, config: MakeConfig, adapter: MakeAdapter, message: MakeMessage
) -> None:
    strategy = AlignFed(preset="unlabelled", buffer_size=2, timeout_s=None)

    def run(path: Path, nodes: str) -> list[str]:
        """Every node in turn trains from the newest head; the digests of the versions that are made."""
        with closing(open_journal(path)) as journal:
            state, _ = restore(journal, Registry(path.parent / nodes), config(strategy), adapter(0.5), SECOND)
            for turn in range(24):
                if (node := "abx"[turn % 3]) in nodes:
                    delta = adapter(0.1 * (turn % 5 + 1), -0.3) * (-50 if node == "x" else 1)
                    event = message(node, delta, state.head.version, state.head.digest, turn, at_ns=(turn + 2) * SECOND)
                    state, effects = step(state, event)
                    with transaction(journal):
                        record(journal, Row(event.at_ns, event.topic, event.payload), effects)
        return [digest for digest, _ in recorded_digests(path).values()]

    without = run(tmp_path / "without.db", "ab")
    spoilt = run(tmp_path / "with.db", "abx")
    result = what_if(open_source(tmp_path / "with.db"), Change(without=("x",)))
    assert [version.digest for version in result.versions] == without
    assert spoilt[: len(without)] != without


def test_updates_count_from_the_version_that_was_the_head_here(journal: MakeJournal) -> None:
    """Under FedAsync every update makes a version: 12 instead of 6, and nobody is told that his base is unknown."""
    path = journal()
    source = open_source(path)
    result = what_if(source, Change(strategy=strategy_named("fedasync", source.config)))
    assert len(result.versions) == 1 + 12
    assert set(result.receipts) == {"accepted", "aggregated"}
    assert max(version.mean_staleness for version in result.versions) > 1


def test_a_what_if_on_a_recording_of_topics_is_that_on_the_journal(
    journal: MakeJournal, tmp_path: Path, config: MakeConfig
) -> None:
    path, change = journal(), Change(without=("c",))
    recording = topics_of(path, tmp_path / "topics.rec", config(TERMS))
    there, here = what_if(open_source(path), change), what_if(open_source(recording, path), change)
    assert len(there.versions) > 1
    assert [version.digest for version in here.versions] == [version.digest for version in there.versions]
    assert here.receipts == there.receipts


def test_a_strategy_takes_over_the_pace_of_the_recorded_one(config: MakeConfig) -> None:
    strategy = strategy_named("fedex", config(FedBuff(buffer_size=7, timeout_s=3)))
    assert strategy == FedEx(buffer_size=7, timeout_s=3)
    assert strategy_named("fedasync", config(FedBuff(max_staleness=4))) == FedAsync(max_staleness=4)
    assert (
        strategy_named("fedasync", config(FedBuff(max_staleness=5000))) == FedAsync()
    )  # it may keep no more than 1000


@pytest.mark.parametrize(("name", "why"), [("fedfoo", "no strategy fedfoo"), ("calibration_only", "asks the base")])
def test_a_strategy_that_cannot_be_a_what_if_is_refused(config: MakeConfig, name: str, why: str) -> None:
    with pytest.raises(NotReplayable, match=why):
        strategy_named(name, config())


def test_updates_in_chunks_are_carried_over_with_their_chunks(
    tmp_path: Path, config: MakeConfig, adapter: MakeAdapter
) -> None:
    path = tmp_path / "journal.db"
    with closing(open_journal(path)) as journal:
        terms = config(FedBuff(buffer_size=1))
        state, _ = restore(journal, Registry(tmp_path / "adapters"), terms, adapter(0), SECOND)
        for turn, node in enumerate("abab"):
            head = state.head
            for at, (address, payload) in enumerate(in_chunks(node, turn, head.version, head.digest, adapter(1.0))):
                event = Received((10 * turn + at + 2) * SECOND, route("test", address).topic, payload)
                state, effects = step(state, event)
                with transaction(journal):
                    record(journal, Row(event.at_ns, event.topic, event.payload), effects)
    result = what_if(open_source(path), Change(without=("a",)))
    assert [version.nodes for version in result.versions] == [(), ("b",), ("b",)]
    assert result.state.head.adapter == adapter(2)


def in_chunks(node: str, turn: int, base: int, digest: str, delta: Adapter) -> Sequence[tuple[Address, bytes]]:
    """An update's chunks, then its manifest."""
    body = encode(delta, "fp32")
    manifest = UpdateManifest(
        node=node,
        boot_id="b" * 32,
        sequence=turn,
        base_version=base,
        base_digest=digest,
        base_model="ba5e" * 16,
        layout=delta.layout.digest,
        examples=1,
        steps=1,
        participation=0,
        loss=1.0,
        seconds=1.0,
        body=describe(body, "fp32", 3, inline=0),
    ).to_bytes()
    id_ = update_id(manifest)
    chunks = [(UpdateChunk(node, id_, k), chunk) for k, chunk in enumerate(split(body, 3))]
    return [*chunks, (UpdateManifestOf(node, id_), manifest)]


# --- unkindly ---


@pytest.mark.parametrize("seed", range(8))
def test_the_core_keeps_its_promises_whatever_the_network_does(journal: MakeJournal, seed: int) -> None:
    fuzzed = fuzz(open_source(journal(rounds=40)), seed)
    assert fuzzed.violations == ()
    assert fuzzed.versions > 10


def test_the_same_seed_does_the_same_harm(journal: MakeJournal) -> None:
    source = open_source(journal())
    assert fuzz(source, 5) == fuzz(source, 5)


def test_every_kind_of_harm_is_done(journal: MakeJournal) -> None:
    assert fuzz(open_source(journal(rounds=100)), 0).harm.keys() == CHANCES.keys()


def test_a_core_that_raises_is_found_with_the_row(journal: MakeJournal) -> None:
    """A journal whose strategy steps by a word: no coordinator can be configured so."""
    path = journal(rounds=3)
    source = open_source(path)
    broken = source.config.model_copy(update={"strategy": FedBuff(buffer_size=1).model_copy(update={"step": "far"})})
    fuzzed = fuzz(replace(source, config=broken), 0)
    assert "raised ValueError in __mul__" in fuzzed.violations[0].promise


# --- looking into it ---


def test_the_contents_are_counted_by_kind_and_topic(journal: MakeJournal, tmp_path: Path, config: MakeConfig) -> None:
    path = journal()
    kinds, topics = volumes(path)
    assert {kind: volume.messages for kind, volume in kinds.items()} == {
        "journal/adapter": 1,
        "journal/config": 1,
        "journal/start": 1,
        "update/manifest": 12,
    }
    assert sum(volume.payload_bytes for volume in topics.values()) == sum(len(r.payload) for r in read_rows(path))
    recording = topics_of(path, tmp_path / "topics.rec", config(TERMS))
    assert volumes(recording)[0]["global/head"].messages == 7
    assert list(version_rows(recording)) == list(version_rows(path)) == list(range(7))


def test_messages_are_selected_by_node_version_kind_and_time(journal: MakeJournal) -> None:
    path = journal()
    assert {said.node for _, said in select(path, Selection(nodes=("a",)))} == {"a"}
    assert {said.version for _, said in select(path, Selection(kinds=("update",), version=2))} == {2}
    late = [row for row, _ in select(path, Selection(since_ns=5 * SECOND, until_ns=6 * SECOND))]
    assert [row.received_at_ns for row in late] == [5 * SECOND, 6 * SECOND]


def test_a_journal_that_is_cut_at_its_end_still_replays(journal: MakeJournal, tmp_path: Path) -> None:
    path, short = journal(), tmp_path / "short.db"
    cut(path, short, Cut(last_version=3))
    assert is_journal(short)
    assert replay_journal(short).agrees
    assert digests(short) == digests(path)[:4]


def test_a_journal_without_a_node_does_not_claim_to_be_the_same(journal: MakeJournal, tmp_path: Path) -> None:
    cut(journal(), tmp_path / "less.db", Cut(without=("a",)))
    assert recorded_digests(tmp_path / "less.db") == {}
    assert not replay_journal(tmp_path / "less.db").agrees


def test_a_cut_by_a_version_that_is_not_there_says_which_are(journal: MakeJournal, tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="no version 9; it has 0 to 6"):
        cut(journal(), tmp_path / "cut.db", Cut(last_version=9))
    assert not (tmp_path / "cut.db").exists()


def test_the_head_of_a_recording_is_where_its_pointer_came(
    journal: MakeJournal, tmp_path: Path, config: MakeConfig
) -> None:
    recording = topics_of(journal(), tmp_path / "topics.rec", config(TERMS))
    rows = {row.seq: row for row in read_rows(recording)}
    assert {rows[seq].topic for seq in version_rows(recording).values()} == {route("test", GlobalHead()).topic}
    assert np.all(np.diff(list(version_rows(recording).values())) > 0)
