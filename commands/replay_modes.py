"""What each way of `alignfed replay` does and says: as it was, otherwise, fuzzed, asked again, through a broker."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commands.console import FAILED, USAGE, configuration, fail, log, note, print_table, with_certificate

if TYPE_CHECKING:
    from base_model.reference import ResolvedModel
    from broker.settings import BrokerSettings
    from configuration import Configuration
    from coordinator.calibration import CalibrationSet
    from coordinator.replay.inside import Replayed, ReplayedVersion
    from coordinator.replay.outside import ReplayedTopic, ReplayedTopics
    from coordinator.replay.recomputing import Recomputed
    from coordinator.replay.source import Source
    from coordinator.replay.what_if import WhatIf
    from coordinator.settings import CalibrationSettings
    from coordinator.state import FederationState


@dataclass(frozen=True)
class Options:
    """What was asked for on the command line; None, False and () are options that were not given."""

    recording: Path
    journal: Path | None
    until: int | None
    without: tuple[str, ...]
    strategy: str | None
    fuzz: int | None
    through: str | None
    speed: float | None
    lockstep: bool
    everything: bool
    coordinator: Path | None
    recompute: bool
    config: Path | None
    state: Path | None
    as_json: bool


def as_it_was(options: Options) -> None:
    """Every version again, from a journal or from topics."""
    from coordinator.replay.recorded import is_journal

    if not is_journal(options.recording):
        _topics_as_they_were(options)
        return
    if options.journal is not None:
        fail(f"{options.recording} is a journal itself: it needs no --journal", USAGE)
    from coordinator.replay.inside import replay_journal

    replayed = replay_journal(options.recording, options.until, _report(options))
    _write_state(options.state, replayed.state)
    _judge(options, replayed)


def _judge(options: Options, replayed: "Replayed") -> None:
    """Say what programs want to know, and end the process if a version is another one."""
    versions, recording = replayed.versions, options.recording
    if options.as_json:
        print(json.dumps([_version_as_json(version) for version in versions], indent=2))
    if not versions:
        fail(f"{recording} holds no version", FAILED)
    if all(version.recorded is None for version in versions):
        fail(f"{recording} has no table of versions to compare with: only a coordinator's own journal has it", FAILED)
    if not replayed.agrees:
        differing = sum(not version.agrees for version in versions)
        row = replayed.first_differing_row
        fail(f"{differing} of {len(versions)} versions differ; the first differing row is {row}", FAILED)


def _topics_as_they_were(options: Options) -> None:
    from coordinator.replay.outside import replay_topics

    replayed = replay_topics(options.recording, options.journal, options.until)
    _write_state(options.state, replayed.state)
    _judge_topics(options, replayed)


def _judge_topics(options: Options, replayed: "ReplayedTopics") -> None:
    """Say what was found of each version, and end the process if one is not what its inputs make."""
    if options.as_json:
        print(json.dumps([vars(version) for version in replayed.versions], indent=2))
    else:
        for version in replayed.versions:
            _print_topic(version)
    not_folded = (f"the versions were not made again: {replayed.not_folded}",) if replayed.not_folded else ()
    for line in (*replayed.assumptions, *not_folded):
        note(line)
    if not replayed.agrees:
        row = replayed.first_differing_row
        where = "no version could be checked" if row is None else f"the first that differs became the head at row {row}"
        fail(f"{options.recording} is not confirmed: {where}", FAILED)


def what_if(options: Options) -> None:
    """Other versions, without some nodes or under another strategy."""
    from coordinator.replay import what_if as otherwise

    source = _source(options)
    strategy = otherwise.strategy_named(options.strategy, source.config) if options.strategy else None
    result = otherwise.what_if(source, otherwise.Change(options.without, strategy), options.until)
    _write_state(options.state, result.state)
    if options.as_json:
        versions = [{**vars(v), "manifest": v.manifest.model_dump(mode="json")} for v in result.versions]
        print(json.dumps({"versions": versions, "receipts": result.receipts}, indent=2))
        return
    _print_what_if(source, result)


def _print_what_if(source: "Source", result: "WhatIf") -> None:
    recorded = {version: digest for version, (digest, _) in source.recorded.items()}
    rows = [
        [
            str(v.version),
            v.digest[:12],
            _same(recorded.get(v.version), v.digest),
            str(v.row),
            str(v.updates),
            f"{v.mean_staleness:.2f}",
            f"{v.step:.4g}",
            ", ".join(v.nodes),
        ]
        for v in result.versions
    ]
    print_table(["version", "digest", "recorded", "row", "updates", "staleness", "step", "nodes"], rows)
    print("receipts: " + ", ".join(f"{count} {status}" for status, count in result.receipts.items()))
    note(
        "A what-if: nodes learnt from the recorded versions, and the base model is not asked (no anchor, no gate).",
        *source.assumptions,
    )


def fuzz(options: Options) -> None:
    """The same input as an unkind network would bring it; a promise that does not hold ends the process."""
    from coordinator.replay import fuzzing

    assert options.fuzz is not None  # it asks for this
    result = fuzzing.fuzz(_source(options), options.fuzz, options.until)
    if options.as_json:
        print(json.dumps({**vars(result), "violations": [vars(v) for v in result.violations]}, indent=2))
    else:
        print(f"{result.rows} rows from seed {options.fuzz}: {_counts(result.harm)}")
        print(f"versions up to {result.versions}; receipts: {_counts(result.receipts)}")
        print(f"dropped by the coordinator: {_counts(result.dropped)}")
        for violation in result.violations:
            print(f"row {violation.row}: {violation.promise}")
    if result.violations:
        fail(f"{len(result.violations)} promises broken, the first at row {result.violations[0].row}", FAILED)


def recompute(options: Options) -> None:
    """Ask the base model of the settings again what it was asked."""
    from base_model.reference import resolve
    from coordinator.calibration import CalibrationSet
    from coordinator.replay.recorded import is_journal

    settings = configuration(options.config)
    calibration = settings.coordinator.calibration
    if calibration is None:
        fail("the settings have no [coordinator.calibration]: give the coordinator's own with --config", USAGE)
    resolved = resolve(settings.base_model.name, settings.base_model.cache)
    examples = CalibrationSet.load(calibration.data, calibration.anchor_examples, calibration.gate_examples)
    if is_journal(options.recording):
        _recompute_answers(options, resolved, examples, calibration)
    else:
        _recompute_versions(options, settings, resolved, examples, calibration)


def _recompute_answers(
    options: Options, resolved: "ResolvedModel", examples: "CalibrationSet", calibration: "CalibrationSettings"
) -> None:
    """Every recorded answer of a journal, and how far that of now is from it."""
    from coordinator.replay import recomputing

    answers = list[recomputing.Recomputed]()
    for answer in recomputing.recompute(options.recording, resolved, examples, calibration, options.until):
        answers.append(answer)
        if not options.as_json:
            print(_recomputed(answer), flush=True)
    if options.as_json:
        print(json.dumps([vars(answer) for answer in answers], indent=2))
    if not answers:
        fail(f"{options.recording} has no answer of a base model in it", FAILED)


def _recompute_versions(
    options: Options,
    settings: "Configuration",
    resolved: "ResolvedModel",
    examples: "CalibrationSet",
    calibration: "CalibrationSettings",
) -> None:
    """The versions of a recording of topics, made again with the answers of now."""
    from coordinator.model_process import ModelJob
    from coordinator.process import terms
    from coordinator.replay.asking import replay_asking

    own, _ = terms(settings.federation, settings.base_model.name, resolved, settings.coordinator, examples)
    assert own.calibration is not None  # there are examples
    model = ModelJob(resolved, examples, calibration.model_copy(update={"training": own.calibration.training}))
    _judge_topics(options, replay_asking(options.recording, own, model, options.until))


def _recomputed(answer: "Recomputed") -> str:
    delta = "" if answer.relative_error is None else f", delta by {100 * answer.relative_error:.3g} %"
    return (
        f"row {answer.row}  version {answer.version}  {answer.question}  loss differs by "
        f"{answer.largest_difference:.3g}{delta}  ({answer.seconds:.1f} s, recorded {answer.recorded_seconds:.1f} s)"
    )


def through(options: Options) -> None:
    """Publish what was recorded, at a pace or in lock-step."""
    from broker.recording import read_rows
    from broker.replayer import Sent, replay_through
    from coordinator.replay.recorded import is_of_a_node, is_published, sender_of

    rows = filter(is_published if options.everything else is_of_a_node, read_rows(options.recording))
    speed = None if options.lockstep else options.speed or 1.0
    sent = Sent()
    for sent in replay_through(_broker(options), rows, sender_of, speed):
        _count(f"{sent.messages:,} messages")
    _count("")
    if options.as_json:
        print(json.dumps(vars(sent), indent=2))
    else:
        print(
            f"{sent.messages:,} messages of {sent.senders} senders; nobody was subscribed to {sent.unheard:,} of them"
        )
    if sent.messages == 0:
        fail(f"{options.recording} has no message of a node; --everything takes all that was published", FAILED)


def in_step(options: Options) -> None:
    """Publish what nodes sent of a journal, and be the coordinator that takes it in."""
    from coordinator.replay.lockstep import replay_in_step

    assert options.coordinator is not None  # it asks for this
    log("error")
    broker, source = _broker(options), _source(options)
    _judge(options, replay_in_step(source, broker, options.coordinator, options.until, _report(options)))


def _broker(options: Options) -> "BrokerSettings":
    settings = configuration(options.config, broker=options.through, option="--through")
    return with_certificate(settings).broker


def _count(text: str) -> None:
    """One line that is written over, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _write_state(file: Path | None, state: "FederationState | None") -> None:
    from coordinator.summary import summary

    if file is not None:
        if state is None:
            fail("there is no state to write: the versions could not be made again", FAILED)
        file.write_text(json.dumps(summary(state), indent=2) + "\n", encoding="utf-8")


def _source(options: Options) -> "Source":
    from coordinator.replay.source import open_source

    return open_source(options.recording, options.journal)


def _report(options: Options) -> "Callable[[ReplayedVersion], None]":
    """What becomes of a version as soon as it is made."""
    return (lambda _: None) if options.as_json else _print_version


def _print_version(version: "ReplayedVersion") -> None:
    verdict = "ok" if version.agrees else "differs"
    print(f"version {version.version}  recorded {version.recorded}  replayed {version.replayed}  {verdict}", flush=True)


def _print_topic(version: "ReplayedTopic") -> None:
    verdict = "ok" if version.verdict == "agrees" else version.verdict
    print(f"version {version.version}  recorded {version.recorded}  {verdict}: {version.reason}", flush=True)


def _version_as_json(version: "ReplayedVersion") -> dict[str, Any]:
    kept = {name: value for name, value in vars(version).items() if name != "manifest"}
    return {**kept, "agrees": version.agrees, "first_differing_row": version.first_differing_row}


def _same(recorded: str | None, digest: str) -> str:
    return "-" if recorded is None else "same" if recorded == digest else "other"


def _counts(counted: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counted.items()) or "none"
