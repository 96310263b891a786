"""`alignfed demo`: the whole system on this machine, on real data, from the base model's first byte to the report.

It puts the steps in order and gathers what came of them; each step is a module of its own.
"""

import shlex
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.text import Text

from base_model.examples import Example
from base_model.layout import initial_adapter, layout_of
from base_model.peft_folder import save_peft
from base_model.settings import BaseModelSettings
from base_model.wheel import BaseModelError
from broker.embedded import BrokerFailed, EmbeddedBroker
from broker.events import NetworkThreadDied
from broker.recording import RecordingError
from coordinator.journal import read_updates, read_versions
from coordinator.registry import Registry, RegistryError
from coordinator.strategies import AlignFedLiteral
from examples.smart_home.closing import show_closing
from examples.smart_home.federation import Ran, Stalled, federate, free_address, serving_node
from examples.smart_home.fleet import ProcessFailed
from examples.smart_home.memory import PeakMemory
from examples.smart_home.outcome import (
    BaseModelFacts,
    HeldOut,
    Interview,
    LiveAnswer,
    NodeFacts,
    Report,
    Sample,
    VersionLoss,
    accepted_by_node,
    count_of,
    node_outcomes,
    update_outcomes,
    version_outcomes,
    wire_of,
)
from examples.smart_home.plan import Plan, make_plan
from examples.smart_home.recipe import RECIPE, Recipe
from examples.smart_home.stages import line
from examples.smart_home.steps import (
    Data,
    fetch_base_model,
    load_model,
    make_data,
    make_keys,
    measure_versions,
    question,
)
from examples.smart_home.workplace import FEDERATION, Workplace, make_workplace
from simulation.scoring import intent_of

DONE, FAILED, INTERRUPTED = 0, 1, 130
EXPECTED = (
    BaseModelError,
    BrokerFailed,
    NetworkThreadDied,
    OSError,
    ProcessFailed,
    RecordingError,
    RegistryError,
    Stalled,
)


@dataclass(frozen=True)
class DemoOptions:
    """What a person can change; None leaves it to the recipe."""

    nodes: int = 4
    versions: int | None = None
    seed: int = 0
    strategy: str | None = None
    report: Path | None = None
    base_model: BaseModelSettings = field(default_factory=BaseModelSettings)
    runs: Path = Path("runs")
    recipe: Recipe = RECIPE
    http: str | None = None  # None: a free port of this machine


@dataclass(frozen=True)
class Learned:
    """What came of a run: the federation as it was seen, and the model's answers before and after."""

    ran: Ran
    broker: str
    base_model: BaseModelFacts
    held_out: HeldOut
    losses: tuple[VersionLoss, ...]
    samples: tuple[Sample, ...]


def run_demo(options: DemoOptions) -> int:
    """Run the demo and return its exit code: 0 only if the last version came out and every node had a part in it.

    Raises ValueError for options that make no sense. Call it from the main thread: it takes over the signals.
    """
    plan = make_plan(options.recipe, options.nodes, options.versions, options.seed, options.strategy)
    console, errors = Console(), Console(stderr=True)
    try:
        with _interruptible():
            report = _run(plan, options, console)
            show_closing(console, report)
    except KeyboardInterrupt:
        errors.print("\n stopped; no process is left running", style="yellow", highlight=False)
        return INTERRUPTED
    except EXPECTED as error:
        errors.print(Text(f"\n The demo cannot go on: {error}", style="red"), soft_wrap=True)
        return FAILED
    return FAILED if report.missing else DONE


def _run(plan: Plan, options: DemoOptions, console: Console) -> Report:
    started_at, started = datetime.now(UTC), time.monotonic()
    title = f"  {len(plan.nodes)} homes teach one adapter over MQTT  "
    console.print(Text.assemble((" alignfed demo", "bold"), title, (f"seed {plan.seed}", "dim")))
    if isinstance(plan.recipe.strategy, AlignFedLiteral):
        line(console, "note", "alignfed_literal cannot learn, and is here to show so: docs/paper.md says why")
    with PeakMemory() as memory:
        place = make_workplace(options.runs, datetime.now())
        data, learned = _learn(plan, options, place, console)
    updates = read_updates(place.journal)
    registry = Registry(place.adapters)
    versions = version_outcomes(read_versions(place.journal), registry.decisions(), plan.recipe.strategy)
    trained = {update_id: update.seconds for update_id, update in learned.ran.view.updates.items()}
    report = Report(
        held_out=learned.held_out,
        nodes=node_outcomes(_node_facts(plan, data, learned.ran), accepted_by_node(updates), versions),
        versions=versions,
        wire=wire_of(updates, learned.base_model.adapter_parameters),
        seconds=time.monotonic() - started,
        peak_rss_mb=memory.peak_mb,
        peak_memory_is=memory.measure,
        broker=learned.broker,
        strategy=plan.recipe.strategy.name,
        seed=plan.seed,
        journal=place.journal.resolve(),
        folder=place.root,
        command=_command(plan, options),
        created_at=started_at,
        base_model=learned.base_model,
        recipe=plan.recipe,
        losses=learned.losses,
        updates=update_outcomes(updates, trained, versions[0].published_at),
        samples=learned.samples,
        interview=_interview(plan, learned.ran, versions[0].published_at),
        restarts=dict(learned.ran.restarts),
        late=count_of(updates, "stale"),
        rejected=count_of(updates, "rejected"),
        release=registry.release(),
    )
    _write(report, place, options.report)
    return report


def _learn(plan: Plan, options: DemoOptions, place: Workplace, console: Console) -> tuple[Data, Learned]:
    resolved = fetch_base_model(options.base_model, console)
    data = make_data(plan, place, console)
    model = load_model(resolved, console)
    from examples.smart_home.measure import adapters_to_measure, samples_of, served_adapter  # PyTorch is here by now

    layout = layout_of(resolved, plan.recipe.lora)
    before, before_score = question("before", model, initial_adapter(layout, plan.seed), data.held_out, console)
    broker, ran = _federate(plan, options, place, data.held_out[: plan.recipe.asked_examples], console)
    registry = Registry(place.adapters)
    served = served_adapter(registry, layout, registry.release())
    save_peft(served, place.root / "adapter", str(resolved.path))
    after, after_score = question("after", model, served, data.held_out, console)
    versions = adapters_to_measure(registry, layout)
    losses = measure_versions(model, versions, data.held_out[: plan.recipe.loss_examples], console)
    return data, Learned(
        ran=ran,
        broker=broker,
        base_model=BaseModelFacts(name=resolved.name, digest=resolved.digest, adapter_parameters=layout.size),
        held_out=HeldOut(before=before_score, after=after_score),
        losses=losses,
        samples=samples_of(data.held_out, before, after),
    )


def _federate(
    plan: Plan, options: DemoOptions, place: Workplace, questions: Sequence[Example], console: Console
) -> tuple[str, Ran]:
    keys, http = make_keys(plan, place, console), options.http or free_address()
    with EmbeddedBroker("auto", place.broker, keys=keys) as broker:
        line(console, "broker", f"{broker.kind} on {broker.settings.address}, MQTT 5")
        for limit in broker.limits:
            line(console, "", limit)
        node = serving_node(plan)
        trusted = "" if keys is None else f"ALIGNFED_SECURITY__KEYS={keys / 'observer'} "
        chat = f"{trusted}alignfed chat --mqtt {node} --broker {broker.settings.address} --federation {FEDERATION}"
        line(console, "serving", f"{node} answers while it learns: {chat}")
        line(console, "page", f"http://{http} shows in a browser what goes on")
        console.print()
        ran = federate(plan, place, options.base_model, broker, keys, http, questions, console)
        console.print()
        return broker.kind, ran


def _node_facts(plan: Plan, data: Data, ran: Ran) -> list[NodeFacts]:
    return [
        NodeFacts(
            node=node.name,
            slowdown=node.slowdown,
            intents=dict(Counter(str(intent_of(e.completion)) for e in data.private[node.name]).most_common()),
            updates_sent=len(ran.view.nodes[node.name].sent),
        )
        for node in plan.nodes
    ]


def _interview(plan: Plan, ran: Ran, start: datetime) -> Interview:
    answers = tuple(
        LiveAnswer(
            version=heard.version,
            prompt=heard.example.prompt,
            expected=heard.example.completion,
            answer=heard.text.strip(),
            asked=heard.asked_at_ns / 1e9 - start.timestamp(),
            waited=heard.waited_s,
        )
        for heard in ran.heard
    )
    return Interview(node=serving_node(plan), answers=answers, unanswered=ran.unanswered)


def _command(plan: Plan, options: DemoOptions) -> str:
    """The command that makes this run again, with every choice spelled out."""
    words = ["alignfed", "demo", "--nodes", str(len(plan.nodes)), "--versions", str(plan.recipe.versions)]
    words += ["--seed", str(plan.seed)]
    words += ["--strategy", options.strategy] if options.strategy else []
    return shlex.join(words)


def _write(report: Report, place: Workplace, copy: Path | None) -> None:
    from examples.smart_home.report import write_page

    text = report.model_dump_json(indent=2) + "\n"
    (place.root / "report.json").write_text(text, encoding="utf-8")
    write_page(report, place.root / "report.html")
    if copy is not None:
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text, encoding="utf-8")


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and a closed terminal end the demo as Ctrl-C does: by KeyboardInterrupt, which puts everything away."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
