"""`alignfed replay`: make versions again from what was recorded, as it was, otherwise, or through a broker."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands.console import (
    FAILED,
    USAGE,
    Config,
    Json,
    configuration,
    ending,
    fail,
    log,
    note,
    print_table,
    with_certificate,
)

if TYPE_CHECKING:
    from coordinator.replay.inside import Replayed, ReplayedVersion
    from coordinator.replay.outside import ReplayedTopic, ReplayedTopics
    from coordinator.replay.recomputing import Recomputed
    from coordinator.replay.source import Source
    from coordinator.state import FederationState

app = typer.Typer()


@app.command(
    epilog=ending(
        "alignfed replay alignfed-data/coordinator/journal.db",
        "1  a version differs, there is none, or the fuzzed core broke a promise",
    )
)
def replay(
    recording: Annotated[Path, typer.Argument(metavar="RECORDING", help="A coordinator's journal, or a recording.")],
    journal: Annotated[
        Path | None, typer.Option(metavar="FILE", help="For a recording: the journal that has the terms.")
    ] = None,
    until: Annotated[int | None, typer.Option(metavar="VERSION", min=0, help="Stop at this version.")] = None,
    without: Annotated[
        list[str] | None, typer.Option("--without", metavar="NODE", help="What if it had not been there? Repeatable.")
    ] = None,
    strategy: Annotated[str | None, typer.Option(metavar="NAME", help="What if this had been the strategy?")] = None,
    fuzz: Annotated[
        int | None, typer.Option(metavar="SEED", help="Duplicate, drop, reorder and cut messages short on the way.")
    ] = None,
    through: Annotated[
        str | None, typer.Option(metavar="HOST[:PORT]", help="Publish what nodes sent to this broker, each as itself.")
    ] = None,
    speed: Annotated[
        float | None, typer.Option(min=0.001, metavar="X", help="With --through: so many times as fast.")
    ] = None,
    lockstep: Annotated[
        bool, typer.Option("--lockstep", help="With --through: the next when the last is acknowledged.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--everything", help="With --through: also what the coordinator published.")
    ] = False,
    coordinator: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="With --lockstep: be the coordinator too, there, and compare."),
    ] = None,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Ask the base model again, and say how far its answers are.")
    ] = False,
    config: Config = None,
    state: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the coordinator's state at the end there, as JSON.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make every version again.

    From a coordinator's journal: exactly, with the base model's recorded answers; every digest is compared. From a
    recording of topics: each version is checked against the updates in it, and made again where the base model had no
    part in it; what cannot be checked is said.

    --without and --strategy show other versions, made without the base model: good for finding causes, not for results.
    --through HOST --lockstep --coordinator FOLDER lets a coordinator's service take in what is sent through the
    broker, while all else that happened, the base model's answers too, comes from the journal in its place.
    --fuzz checks that the coordinator's core never fails, whatever the network does.
    --recompute asks the base model of the coordinator's settings (--config) every recorded question again; from a
    recording of topics it makes the versions again with the answers of now.
    """
    what_if = bool(without) or strategy is not None
    if sum((what_if, fuzz is not None, through is not None, recompute)) > 1:
        fail("--without and --strategy, --fuzz, --through and --recompute exclude each other", USAGE)
    if config is not None and not recompute:
        fail("--config says which base model to --recompute with", USAGE)
    if recompute and (journal is not None or state is not None):
        fail("--recompute takes the journal itself and has no state to write: leave out --journal and --state", USAGE)
    if through is None and (speed is not None or lockstep or everything):
        fail("--speed, --lockstep and --everything say how to go --through a broker: name it", USAGE)
    if coordinator is not None and (not lockstep or everything):
        fail("--coordinator takes in what nodes sent --through a broker in --lockstep, and publishes the rest", USAGE)
    if through is not None and (journal is not None or state is not None or (until is not None and not coordinator)):
        fail("--through sends a recording as it is: leave out --until, --journal and --state", USAGE)
    if fuzz is not None and state is not None:
        fail("--fuzz has no state to write: leave out --state", USAGE)
    if speed is not None and lockstep:
        fail("--speed and --lockstep exclude each other", USAGE)
    if through is not None and coordinator is not None:
        _in_step(recording, through, coordinator, until, as_json)
    elif through is not None:
        _through(recording, through, None if lockstep else speed or 1.0, everything, as_json)
    elif what_if:
        _what_if(recording, journal, until, tuple(without or ()), strategy, state, as_json)
    elif fuzz is not None:
        _fuzz(recording, journal, until, fuzz, as_json)
    elif recompute:
        _recompute(recording, config, until, as_json)
    else:
        _as_it_was(recording, journal, until, state, as_json)


def _as_it_was(recording: Path, journal: Path | None, until: int | None, state: Path | None, as_json: bool) -> None:
    from coordinator.replay.recorded import is_journal

    if not is_journal(recording):
        _topics_as_they_were(recording, journal, until, state, as_json)
        return
    if journal is not None:
        fail(f"{recording} is a journal itself: it needs no --journal", USAGE)
    from coordinator.replay.inside import replay_journal

    replayed = replay_journal(recording, until, (lambda _: None) if as_json else _print_version)
    _write_state(state, replayed.state)
    _judge(recording, replayed, as_json)


def _judge(recording: Path, replayed: "Replayed", as_json: bool) -> None:
    """Say what programs want to know, and end the process if a version is another one."""
    versions = replayed.versions
    if as_json:
        print(json.dumps([_version_as_json(version) for version in versions], indent=2))
    if not versions:
        fail(f"{recording} holds no version", FAILED)
    if all(version.recorded is None for version in versions):
        fail(f"{recording} has no table of versions to compare with: only a coordinator's own journal has it", FAILED)
    if not replayed.agrees:
        differing = sum(not version.agrees for version in versions)
        row = replayed.first_differing_row
        fail(f"{differing} of {len(versions)} versions differ; the first differing row is {row}", FAILED)


def _topics_as_they_were(
    recording: Path, journal: Path | None, until: int | None, state: Path | None, as_json: bool
) -> None:
    from coordinator.replay.outside import replay_topics

    replayed = replay_topics(recording, journal, until)
    _write_state(state, replayed.state)
    _judge_topics(recording, replayed, as_json)


def _judge_topics(recording: Path, replayed: "ReplayedTopics", as_json: bool) -> None:
    """Say what was found of each version, and end the process if one is not what its inputs make."""
    if as_json:
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
        fail(f"{recording} is not confirmed: {where}", FAILED)


def _what_if(
    recording: Path,
    journal: Path | None,
    until: int | None,
    without: tuple[str, ...],
    name: str | None,
    state: Path | None,
    as_json: bool,
) -> None:
    from coordinator.replay.what_if import Change, strategy_named, what_if

    source = _source(recording, journal)
    change = Change(without, strategy_named(name, source.config) if name else None)
    result = what_if(source, change, until)
    _write_state(state, result.state)
    recorded = {version: digest for version, (digest, _) in source.recorded.items()}
    if as_json:
        versions = [{**vars(v), "manifest": v.manifest.model_dump(mode="json")} for v in result.versions]
        print(json.dumps({"versions": versions, "receipts": result.receipts}, indent=2))
        return
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


def _fuzz(recording: Path, journal: Path | None, until: int | None, seed: int, as_json: bool) -> None:
    from coordinator.replay.fuzzing import fuzz

    result = fuzz(_source(recording, journal), seed, until)
    if as_json:
        print(json.dumps({**vars(result), "violations": [vars(v) for v in result.violations]}, indent=2))
    else:
        print(f"{result.rows} rows from seed {seed}: {_counts(result.harm)}")
        print(f"versions up to {result.versions}; receipts: {_counts(result.receipts)}")
        print(f"dropped by the coordinator: {_counts(result.dropped)}")
        for violation in result.violations:
            print(f"row {violation.row}: {violation.promise}")
    if result.violations:
        fail(f"{len(result.violations)} promises broken, the first at row {result.violations[0].row}", FAILED)


def _recompute(recording: Path, config: Path | None, until: int | None, as_json: bool) -> None:
    from base_model.reference import resolve
    from coordinator.calibration import CalibrationSet
    from coordinator.replay.recomputing import Recomputed, recompute
    from coordinator.replay.recorded import is_journal

    settings = configuration(config)
    calibration = settings.coordinator.calibration
    if calibration is None:
        fail("the settings have no [coordinator.calibration]: give the coordinator's own with --config", USAGE)
    resolved = resolve(settings.base_model.name, settings.base_model.cache)
    examples = CalibrationSet.load(calibration.data, calibration.anchor_examples, calibration.gate_examples)
    if not is_journal(recording):
        from coordinator.model_process import ModelJob
        from coordinator.process import terms
        from coordinator.replay.asking import replay_asking

        own, _ = terms(settings.federation, settings.base_model.name, resolved, settings.coordinator, examples)
        assert own.calibration is not None  # there are examples
        model = ModelJob(resolved, examples, calibration.model_copy(update={"training": own.calibration.training}))
        _judge_topics(recording, replay_asking(recording, own, model, until), as_json)
        return
    answers = list[Recomputed]()
    for answer in recompute(recording, resolved, examples, calibration, until):
        answers.append(answer)
        if not as_json:
            print(_recomputed(answer), flush=True)
    if as_json:
        print(json.dumps([vars(answer) for answer in answers], indent=2))
    if not answers:
        fail(f"{recording} has no answer of a base model in it", FAILED)


def _recomputed(answer: "Recomputed") -> str:
    delta = "" if answer.relative_error is None else f", delta by {100 * answer.relative_error:.3g} %"
    return (
        f"row {answer.row}  version {answer.version}  {answer.question}  loss differs by "
        f"{answer.largest_difference:.3g}{delta}  ({answer.seconds:.1f} s, recorded {answer.recorded_seconds:.1f} s)"
    )


def _through(recording: Path, address: str, speed: float | None, everything: bool, as_json: bool) -> None:
    import sys

    from broker.recording import read_rows
    from broker.replayer import Sent, replay_through
    from coordinator.replay.recorded import is_of_a_node, is_published, sender_of

    broker = with_certificate(configuration(None, broker=address, option="--through")).broker
    wanted = is_published if everything else is_of_a_node
    sent = Sent()
    for sent in replay_through(broker, filter(wanted, read_rows(recording)), sender_of, speed):
        if sys.stderr.isatty():
            print(f"\r\033[K{sent.messages:,} messages", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    if as_json:
        print(json.dumps(vars(sent), indent=2))
    else:
        print(
            f"{sent.messages:,} messages of {sent.senders} senders; nobody was subscribed to {sent.unheard:,} of them"
        )
    if sent.messages == 0:
        fail(f"{recording} has no message of a node; --everything takes all that was published", FAILED)


def _in_step(recording: Path, address: str, folder: Path, until: int | None, as_json: bool) -> None:
    from coordinator.replay.lockstep import replay_in_step

    log("error")
    broker = with_certificate(configuration(None, broker=address, option="--through")).broker
    source = _source(recording, None)
    report = (lambda _: None) if as_json else _print_version
    _judge(recording, replay_in_step(source, broker, folder, until, report), as_json)


def _write_state(file: Path | None, state: "FederationState | None") -> None:
    from coordinator.summary import summary

    if file is not None:
        if state is None:
            fail("there is no state to write: the versions could not be made again", FAILED)
        file.write_text(json.dumps(summary(state), indent=2) + "\n", encoding="utf-8")


def _source(recording: Path, journal: Path | None) -> "Source":
    from coordinator.replay.source import open_source

    return open_source(recording, journal)


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


def _counts(counted: "Any") -> str:
    return ", ".join(f"{count} {name}" for name, count in counted.items()) or "none"
