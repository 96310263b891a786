"""The one console command. It wires the packages together and is imported by nobody.

Every command imports what it needs when it runs, so that `alignfed --help` answers at once.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

if TYPE_CHECKING:
    from configuration import Configuration
    from coordinator.registry import Registry

FAILED, USAGE = 1, 2
FAILURE = "1  failed; the last line says why"
REFUSED = "3  the federation cannot take this node, for instance for its base model"
DEBUG_VARIABLE = "ALIGNFED_DEBUG"
OWN_PACKAGES = {
    "base_model",
    "broker",
    "configuration",
    "coordinator",
    "edge_node",
    "examples",
    "schemas",
    "simulation",
}

Config = Annotated[Path | None, typer.Option(metavar="FILE", help="Settings file.  [default: alignfed.toml, if there]")]
Broker = Annotated[str | None, typer.Option("--broker", metavar="HOST:PORT", help="Broker to connect to.")]
Federation = Annotated[str | None, typer.Option(metavar="NAME", help="Federation to take part in.")]
DataDir = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where this process keeps its files.")]
LogLevel = Annotated[Literal["debug", "info", "warning", "error"], typer.Option(help="How much to log.")]
DemoStrategy = Literal[
    "alignfed", "fedbuff", "fedasync", "fedavg", "fedex", "flora", "ffa_lora", "calibration_only", "alignfed_literal"
]
Version = Annotated[str, typer.Argument(metavar="VERSION", help="A number, or `latest`.")]
TaskFolder = Annotated[
    Path | None, typer.Option("--data", metavar="FOLDER", help="Your own task instead of smart-home commands.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def _ending(example: str, *codes: str) -> str:
    """What follows the options in a command's help."""
    every = sorted(("0  done", "2  wrong usage or settings", *codes), key=lambda code: int(code.split()[0]))
    return "\b\nExample:\n  " + example + "\n\n\b\nExit codes:\n  " + "\n  ".join(every)


app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog=_ending("alignfed demo", FAILURE),
)
adapters = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at global adapters, export one.")
app.add_typer(adapters, name="adapters", epilog=_ending("alignfed adapters list", FAILURE))


def main() -> None:
    """Run the command line; every error is a sentence on standard error, with --debug also a traceback."""
    try:
        app(prog_name="alignfed")
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        _fail(_in_words(error), FAILED)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"alignfed {version('alignfed')}")
        raise typer.Exit


@app.callback()
def _alignfed(
    debug: Annotated[bool, typer.Option("--debug", help=f"Show tracebacks; also by {DEBUG_VARIABLE}=1.")] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Federated LoRA fine-tuning over MQTT: nodes learn from private data and never wait for each other."""
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"


@app.command(epilog=_ending("alignfed demo --nodes 6 --report report.json", FAILURE, "130  interrupted"))
def demo(
    nodes: Annotated[int, typer.Option(min=2, help="Edge nodes.")] = 4,
    versions: Annotated[
        int | None, typer.Option(min=1, help="Versions to make.  [default: as many as use the recipe's updates]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of data, speeds and the first adapter.")] = 0,
    strategy: Annotated[DemoStrategy, typer.Option(help="When to aggregate and how.")] = "alignfed",
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report here too, as JSON.")] = None,
) -> None:
    """Run the whole system on this machine.

    A broker, a coordinator and edge nodes of unequal speed teach SmolLM2 smart-home commands, each node from data of
    its own. Ends with what was learned, on commands that no node has seen.
    """
    from examples.smart_home.demo import DemoOptions, run_demo
    from examples.smart_home.plan import ImpossiblePlan

    options = DemoOptions(nodes=nodes, versions=versions, seed=seed, strategy=strategy, report=report)
    try:
        raise typer.Exit(run_demo(options))
    except ImpossiblePlan as error:
        _fail(str(error), USAGE)


@app.command(epilog=_ending("alignfed broker --port 1884", "1  the broker could not start, or ended by itself"))
def broker(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Loopback port; 0 takes a free one.")] = 1883,
    data_dir: Annotated[Path, typer.Option(metavar="FOLDER", help="Where mosquitto keeps messages.")] = Path(
        "alignfed-data/broker"
    ),
    kind: Annotated[
        Literal["auto", "mosquitto", "iotcore"], typer.Option(help="auto: mosquitto where it is installed.")
    ] = "auto",
) -> None:
    """Run a broker for this machine.

    It listens on loopback only, and runs until Ctrl-C or SIGTERM.
    """
    from broker import service

    raise typer.Exit(service.run(kind, data_dir, port))


@app.command(epilog=_ending("alignfed coordinator --config alignfed.toml", FAILURE))
def coordinator(
    config: Config = None,
    broker: Broker = None,
    federation: Federation = None,
    data_dir: DataDir = None,
    log_level: LogLevel = "info",
) -> None:
    """Run the coordinator of a federation.

    It runs until Ctrl-C or SIGTERM. Started again with the same folder, it continues the federation.
    """
    settings = _configuration(config, federation, broker, coordinator={"data_dir": data_dir})
    _log(log_level)
    from coordinator import service

    raise typer.Exit(service.run(settings.federation, settings.base_model, settings.broker, settings.coordinator))


@app.command(epilog=_ending("alignfed edge --node kitchen --data kitchen.jsonl", FAILURE, REFUSED))
def edge(
    config: Config = None,
    node: Annotated[str | None, typer.Option(metavar="NAME", help="This node's name.")] = None,
    data: Annotated[Path | None, typer.Option(metavar="FILE", help="Its private examples, JSON lines.")] = None,
    broker: Broker = None,
    federation: Federation = None,
    data_dir: DataDir = None,
    log_level: LogLevel = "info",
) -> None:
    """Run an edge node on its private examples.

    It runs until Ctrl-C or SIGTERM. A broker that is away is waited for; updates wait on disk meanwhile.
    """
    settings = _configuration(config, federation, broker, edge={"node": node, "data": data, "data_dir": data_dir})
    if settings.edge is None:
        _fail("no node is configured: pass --node and --data, or set them in [edge] of the settings file", USAGE)
    _log(log_level)
    from edge_node import service

    service.run(settings.federation, settings.base_model, settings.broker, settings.edge)


@app.command(
    epilog=_ending("alignfed simulate --method fedbuff_2 --nodes 16 --updates 60", FAILURE, "130  interrupted")
)
def simulate(
    method: Annotated[str, typer.Option(metavar="NAME", help="One of the methods in docs/simulation.md.")] = "alignfed",
    data: TaskFolder = None,
    nodes: Annotated[int, typer.Option(min=2, help="Homes, without --data.")] = 16,
    updates: Annotated[int, typer.Option(min=1, help="Updates of nodes after which the run ends.")] = 120,
    seed: Annotated[int, typer.Option(min=0, max=2**48 - 1, help="Of data, schedule and training.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the whole record here, as JSON.")] = None,
) -> None:
    """Simulate one federation.

    Many nodes train for real, in virtual time, and the coordinator's own core decides: one process, no broker.
    """
    from rich.console import Console

    from examples.smart_home.tasks import make_simulated_task
    from simulation.command import run_simulate
    from simulation.comparison.regimes import TaskSpec
    from simulation.methods import METHODS, strategy_of
    from simulation.settings import SimulationConfig
    from simulation.task import read_task

    if method not in METHODS:
        _fail(f"there is no method {method}; there are {', '.join(METHODS)}", USAGE)
    task = read_task(data) if data else make_simulated_task(TaskSpec(homes=nodes, seed=seed))
    strategy = strategy_of(method, len(task.nodes))
    config = SimulationConfig(method=method, strategy=strategy, updates=updates, seed=seed)
    raise typer.Exit(run_simulate(config, task, out, Console()))


@app.command(
    epilog=_ending(
        "alignfed compare --preset ci --out runs/compare", "1  a run failed", "130  interrupted: go on later"
    )
)
def compare(
    preset: Annotated[Literal["ci", "full"], typer.Option(help="How much is compared.")] = "ci",
    methods: Annotated[str | None, typer.Option(metavar="A,B", help="Only these.  [default: the preset's]")] = None,
    seeds: Annotated[str | None, typer.Option(metavar="10,11", help="Only these.  [default: the preset's]")] = None,
    regimes: Annotated[str | None, typer.Option(metavar="R,S", help="Only these.  [default: the preset's]")] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="For runs, figures and the report.")] = Path(
        "runs/compare"
    ),
    data: TaskFolder = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Runs at once.  [default: one for each core]")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print what would be run and how long it takes.")] = False,
    results: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what is in FOLDER as a document, and run nothing.")
    ] = None,
) -> None:
    """Compare methods over conditions and seeds.

    Every run is kept in FOLDER: stopped and started again, it goes on. At the end there are tables, figures, and a
    verdict on every claim.
    """
    from rich.console import Console

    from examples.smart_home.tasks import make_simulated_task
    from simulation.comparison import command
    from simulation.comparison.matrix import ImpossibleComparison
    from simulation.comparison.results import write_results

    options = command.CompareOptions(
        out=out,
        preset=preset,
        methods=_listed(methods),
        seeds=_numbers(seeds),
        regimes=_listed(regimes),
        data=data,
        workers=workers or os.cpu_count() or 1,
        command=" ".join(["alignfed", *sys.argv[1:]]),
    )
    try:
        if results is not None:
            write_results(out, results)
        elif plan:
            command.show(options, Console())
        else:
            raise typer.Exit(command.compare(options, make_simulated_task, Console()))
    except ImpossibleComparison as error:
        _fail(str(error), USAGE)


def _listed(text: str | None) -> tuple[str, ...] | None:
    return tuple(word.strip() for word in text.split(",") if word.strip()) if text is not None else None


def _numbers(text: str | None) -> tuple[int, ...] | None:
    words = _listed(text)
    if words is not None and not all(word.isdecimal() for word in words):
        _fail(f"--seeds takes numbers with commas between them, not {text}", USAGE)
    return tuple(map(int, words)) if words is not None else None


@adapters.command("list", epilog=_ending("alignfed adapters list --data-dir alignfed-data/coordinator", FAILURE))
def list_adapters(config: Config = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """List every global version.

    In the column `use`, nodes train from the head and serve the version that is marked served; where it says average,
    they serve the running average that was made with it.
    """
    manifests = _registry(config, data_dir).versions()
    now = manifests[-1]
    if as_json:
        print(json.dumps([{**_manifest_as_json(m), "use": _use(m, now)} for m in manifests], indent=2))
        return
    rows = [
        [str(m.version), m.digest[:12], _time(m.created_at_ns), str(len(m.inputs)), ", ".join(_use(m, now)), _nodes(m)]
        for m in manifests
    ]
    _print_table(["version", "digest", "created", "updates", "use", "nodes"], rows)


@adapters.command("show", epilog=_ending("alignfed adapters show 3", "1  there is no such version"))
def show_adapter(version: Version, config: Config = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Show what one version was made of.

    Its parent, every update in it with its base version and its weight, what the coordinator's own examples added, and
    what nodes serve since.
    """
    registry = _registry(config, data_dir)
    manifest = registry.manifest(_number(registry, version))
    if as_json:
        print(json.dumps(_manifest_as_json(manifest), indent=2))
        return
    print(f"version     {manifest.version}, epoch {manifest.epoch}, by {manifest.strategy}")
    print(f"created     {_time(manifest.created_at_ns)}")
    print(f"digest      {manifest.digest} ({manifest.body.size} bytes)")
    print(f"parent      {manifest.parent or 'none: the first version'}")
    print(f"base model  {manifest.base_model}")
    for name, fact in _how_it_was_made(manifest):
        print(f"{name:<12}{fact}")
    rows = [[i.node, i.update_id, str(i.base_version), str(i.examples), f"{i.weight:.4g}"] for i in manifest.inputs]
    if rows:
        _print_table(["node", "update", "base version", "examples", "weight"], rows)


@adapters.command("export", epilog=_ending("alignfed adapters export latest my-adapter", "1  there is no such version"))
def export_adapter(
    version: Version,
    folder: Path,
    head: Annotated[bool, typer.Option("--head", help="The version itself, from which nodes trained.")] = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Write an adapter as a PEFT folder.

    It is what nodes served while that version was the newest: `latest` gives what they serve now.
    PeftModel.from_pretrained loads it.
    """
    from base_model.peft_folder import save_peft
    from coordinator.journal import fold

    registry = _registry(config, data_dir)
    federation = next(fold(registry.folder.parent / "journal.db"))[0].config
    manifest = registry.manifest(_number(registry, version))
    release = manifest.release
    chosen = release.model_copy(update={"version": manifest.version, "variant": "head"}) if head else release
    save_peft(registry.adapter(chosen.version, federation.layout, chosen.variant), folder, federation.base_model_name)
    _note(f"the {chosen.variant} of version {chosen.version} is in {folder}")


@app.command(
    epilog=_ending(
        "alignfed replay alignfed-data/coordinator/journal.db", "1  a digest differs, or there is no version"
    )
)
def replay(journal: Path, as_json: Json = False) -> None:
    """Make every version again, from a journal.

    Prints one line per version: the recorded digest, the replayed one, and whether they agree.
    """
    from coordinator.replay import replay as replay_journal

    versions = []
    for one in replay_journal(journal):
        versions.append({**vars(one), "agrees": one.agrees})
        if not as_json:
            verdict = "ok" if one.agrees else "differs"
            print(f"version {one.version}  recorded {one.recorded}  replayed {one.replayed}  {verdict}", flush=True)
    if as_json:
        print(json.dumps(versions, indent=2))
    if not versions:
        _fail(f"{journal} holds no version", FAILED)
    differing = sum(not version["agrees"] for version in versions)
    if differing:
        _fail(f"{differing} of {len(versions)} versions differ", FAILED)


@app.command(epilog=_ending("alignfed doctor --broker gateway.local:1883", "1  a check failed"))
def doctor(config: Config = None, broker: Broker = None, federation: Federation = None, as_json: Json = False) -> None:
    """Check this machine and the broker.

    Tries what the broker must be able to do, and looks at clock, disk, memory and libraries. Fetches the base model if
    it is not here yet. Says what to do about whatever is wrong.
    """
    settings = _configuration(config, federation, broker)
    from doctor import examine

    checks = []
    for check in examine(settings):
        checks.append(check)
        if not as_json:
            advice = f"\n      {check.advice}" if check.advice else ""
            print(f"{check.status:<4}  {check.name}: {check.found}{advice}", flush=True)
    if as_json:
        print(json.dumps([check._asdict() for check in checks], indent=2))
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(FAILED)


# --- what several commands do ---


def _configuration(
    file: Path | None, federation: str | None = None, broker: str | None = None, **sections: dict[str, Any]
) -> "Configuration":
    """The settings; what is wrong with them ends the process with a sentence."""
    from configuration import ConfigurationError, from_flags, load

    try:
        return load(file, from_flags(federation, broker, **sections))
    except ConfigurationError as error:
        _fail(str(error), USAGE)


def _registry(config: Path | None, data_dir: Path | None) -> "Registry":
    from coordinator.registry import Registry

    folder = (data_dir or _configuration(config).coordinator.data_dir) / "adapters"
    if not folder.is_dir():
        _fail(f"there are no adapters: {folder} does not exist; name the coordinator's folder by --data-dir", FAILED)
    if not any((folder / "manifests").glob("*.json")):
        _fail(f"there is no version in {folder} yet", FAILED)
    return Registry(folder)


def _log(level: str) -> None:
    import logging

    logging.basicConfig(
        stream=sys.stderr, level=level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )


def _manifest_as_json(manifest: Any) -> dict[str, Any]:
    return {"digest": manifest.digest, **manifest.model_dump(mode="json")}


def _number(registry: "Registry", version: str) -> int:
    """A version as people name it."""
    if version == "latest":
        return registry.versions()[-1].version
    if not version.isdecimal():
        _fail(f"{version} is no version: give a number, or `latest`", USAGE)
    return int(version)


def _use(manifest: Any, newest: Any) -> list[str]:
    """What nodes do with a version now."""
    use = ["head"] if manifest.version == newest.version else []
    if manifest.version == newest.release.version:
        use.append("served" if newest.release.variant == "head" else "average")
    return use


def _how_it_was_made(manifest: Any) -> Iterator[tuple[str, str]]:
    """What there is to say of groups, anchor, release and cost, as (name, fact)."""
    for group in manifest.groups:
        cosine = "" if group.cosine is None else f", cosine to their mean {group.cosine:.2f}"
        residual = (
            ""
            if group.residual_before is None
            else f", residual {group.residual_before:.3g} before alignment, {group.residual_after:.3g} after"
        )
        yield "group", f"{group.updates} from version {group.base_version}{cosine}{residual}"
    if (anchor := manifest.anchor) is not None:
        yield "anchor", f"weight {anchor.weight:.4g}, loss {_loss(anchor.loss_before)} -> {_loss(anchor.loss_after)}"
    release = manifest.release
    yield "served", f"the {release.variant} of version {release.version}"
    if any(loss is not None for loss in (release.head, release.average, release.before)):
        losses = [f"{name} {_loss(getattr(release, name))}" for name in ("head", "average", "before")]
        yield "gate", f"loss of {', '.join(losses)}"
    seconds = manifest.model_seconds
    yield "model", f"align {seconds.align:.1f} s, anchor {seconds.anchor:.1f} s, gate {seconds.gate:.1f} s"


def _loss(loss: float | None) -> str:
    return "infinite" if loss is None else f"{loss:.3f}"


def _nodes(manifest: Any) -> str:
    return ", ".join(sorted({update.node for update in manifest.inputs}))


def _time(ns: int) -> str:
    """Local time, to the second."""
    from datetime import datetime

    return datetime.fromtimestamp(ns / 1e9).isoformat(sep=" ", timespec="seconds")


def _print_table(header: list[str], rows: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for name in header:
        table.add_column(name, no_wrap=name != "nodes")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _note(*lines: str) -> None:
    print(*lines, sep="\n", file=sys.stderr, flush=True)


def _fail(message: str, code: int) -> NoReturn:
    """End the process with a message on standard error."""
    _note(*(f"alignfed: {line}" for line in message.splitlines()))
    sys.exit(code)


def _in_words(error: Exception) -> str:
    if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in OWN_PACKAGES:
        return str(error)
    return (
        f"unexpected {type(error).__name__}: {error}\nRun it again as `alignfed --debug ...` to see where it happened."
    )


if __name__ == "__main__":
    main()
