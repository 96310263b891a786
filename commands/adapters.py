"""`alignfed adapters`: the global versions that a coordinator has made."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands.console import (
    FAILED,
    FAILURE,
    UNANSWERED,
    USAGE,
    Config,
    DataDir,
    Json,
    Wait,
    configuration,
    ending,
    fail,
    note,
    print_table,
)
from commands.figures import measured_loss, to_the_second

if TYPE_CHECKING:
    from coordinator.registry import Registry
    from schemas.messages import ReleaseReport

Version = Annotated[str, typer.Argument(metavar="VERSION", help="A number, or `latest`.")]

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Look at global adapters, export one, verify all, go back."
)


@app.command("list", epilog=ending("alignfed adapters list --data-dir alignfed-data/coordinator", FAILURE))
def list_adapters(config: Config = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """List every global version.

    In the column `use`, nodes train from the head and serve the version that is marked served; where it says average,
    they serve the running average that was made with it.
    """
    registry = _registry(config, data_dir)
    manifests, release = registry.versions(), registry.release()
    newest = manifests[-1].version
    uses = {manifest.version: _use(manifest.version, newest, release) for manifest in manifests}
    if as_json:
        print(json.dumps([{**_manifest_as_json(m), "use": uses[m.version]} for m in manifests], indent=2))
        return
    rows = [
        [
            str(m.version),
            m.digest[:12],
            to_the_second(m.created_at_ns),
            str(len(m.inputs)),
            ", ".join(uses[m.version]),
            _nodes(m),
        ]
        for m in manifests
    ]
    print_table(["version", "digest", "created", "updates", "use", "nodes"], rows)


@app.command("show", epilog=ending("alignfed adapters show 3", "1  there is no such version"))
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
    print(f"created     {to_the_second(manifest.created_at_ns)}")
    print(f"digest      {manifest.digest} ({manifest.body.size} bytes)")
    print(f"parent      {manifest.parent or 'none: the first version'}")
    print(f"base model  {manifest.base_model}")
    for name, fact in _how_it_was_made(manifest, registry.decision(manifest.version)):
        print(f"{name:<12}{fact}")
    rows = [[i.node, i.update_id, str(i.base_version), str(i.examples), f"{i.weight:.4g}"] for i in manifest.inputs]
    if rows:
        print_table(["node", "update", "base version", "examples", "weight"], rows)


@app.command("export", epilog=ending("alignfed adapters export latest my-adapter", "1  there is no such version"))
def export_adapter(
    version: Version,
    folder: Path,
    head: Annotated[bool, typer.Option("--head", help="The version itself, from which nodes trained.")] = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Write an adapter as a PEFT folder.

    It is what nodes served once it was decided on that version: `latest` gives what they serve now.
    PeftModel.from_pretrained loads it.
    """
    from base_model.peft_folder import save_peft
    from coordinator.journal import fold

    registry = _registry(config, data_dir)
    federation = next(fold(registry.folder.parent / "journal.db"))[0].config
    manifest = registry.manifest(_number(registry, version))
    release = registry.release() if version == "latest" else registry.decision(manifest.version) or manifest.release
    chosen = release.model_copy(update={"version": manifest.version, "variant": "head"}) if head else release
    save_peft(registry.adapter(chosen.version, federation.layout, chosen.variant), folder, federation.base_model_name)
    note(f"the {chosen.variant} of version {chosen.version} is in {folder}")


@app.command(
    "verify", epilog=ending("alignfed adapters verify --keys alignfed-keys/coordinator", "1  a fault was found")
)
def verify_adapters(
    keys: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The coordinator's bundle.  [default: security.keys]")
    ] = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Check the whole chain of versions.

    The signature of every manifest and of the decision on it from the federation's root down, its place in the order,
    and every adapter's bytes; where the coordinator's journal lies beside them, that no version is missing at the end.
    Needs no broker. Without keys only order and bytes are checked, which is said.
    """
    from coordinator.journal import read_versions
    from coordinator.trust.verification import read_certified, verify_chain

    registry = _registry(config, data_dir)
    journal = registry.folder.parent / "journal.db"
    recorded = read_versions(journal) if journal.exists() else ()
    bundle = keys or configuration(config).security.keys
    certified = read_certified(bundle) if bundle is not None else None
    versions = list(verify_chain(registry, certified, recorded))
    faults = [version for version in versions if version.fault is not None]
    if as_json:
        root = certified.member.root if certified else None
        found = {"ok": not faults, "root": root, "versions": [vars(version) for version in versions]}
        print(json.dumps(found, indent=2))
    else:
        rows = [
            [str(v.version), (v.digest or "")[:12], v.signed_by or "", "ok" if v.fault is None else v.fault]
            for v in versions
        ]
        print_table(["version", "digest", "signed by", "verdict"], rows)
        if certified is None:
            note("No keys are set: order and bytes were checked, signatures were not. Name the bundle by --keys.")
        if not journal.exists():
            note(f"There is no {journal}: whether newer versions are missing cannot be told.")
    if faults:
        fail(f"{len(faults)} of {len(versions)} versions are not as they should be", FAILED)


@app.command(
    "rollback",
    epilog=ending("alignfed adapters rollback 3", "1  it was refused", "3  nobody has answered; the order waits"),
)
def roll_back_adapters(
    version: Version,
    head: Annotated[bool, typer.Option("--head", help="Have nodes train from it too, as a new version.")] = False,
    wait: Wait = 10,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Go back to an earlier version.

    Nodes serve what that version was served as, from the next moment on. It is a new entry with a higher epoch, never
    an old one again, and is recorded. A coordinator that does not run does it when it starts; with --json `answered` is
    false then.
    """
    from coordinator.operations.order_file import answer_of, give
    from coordinator.operations.orders import OrderAnswer, RollBack

    registry = _registry(config, data_dir)
    manifest = registry.manifest(_number(registry, version))
    folder = registry.folder.parent
    order = give(folder, RollBack(version=manifest.version, scope="head" if head else "release"))
    answer = answer_of(folder, order, wait)
    if as_json:
        said = dict.fromkeys(OrderAnswer.model_fields) if answer is None else answer.model_dump()
        print(json.dumps({"order": order, "answered": answer is not None, **said}, indent=2))
    if answer is None:
        fail(f"no answer in {wait:g} s: a coordinator of {folder} does it as soon as it runs", UNANSWERED)
    if answer.refused is not None:
        fail(answer.refused, FAILED)
    if not as_json:
        print(f"nodes serve the {answer.variant} of version {answer.release}, epoch {answer.epoch}")
        print(f"nodes train from version {answer.head}")


def _registry(config: Path | None, data_dir: Path | None) -> "Registry":
    from coordinator.registry import Registry

    folder = (data_dir or configuration(config).coordinator.data_dir) / "adapters"
    if not folder.is_dir():
        fail(f"there are no adapters: {folder} does not exist; name the coordinator's folder by --data-dir", FAILED)
    if not any((folder / "manifests").glob("*.json")):
        fail(f"there is no version in {folder} yet", FAILED)
    return Registry(folder)


def _manifest_as_json(manifest: Any) -> dict[str, Any]:
    return {"digest": manifest.digest, **manifest.model_dump(mode="json")}


def _number(registry: "Registry", version: str) -> int:
    """A version as people name it."""
    if version == "latest":
        return registry.versions()[-1].version
    if not version.isdecimal():
        fail(f"{version} is no version: give a number, or `latest`", USAGE)
    return int(version)


def _use(version: int, newest: int, release: "ReleaseReport") -> list[str]:
    """What nodes do with a version now."""
    use = ["head"] if version == newest else []
    if version == release.version:
        use.append("served" if release.variant == "head" else "average")
    return use


def _how_it_was_made(manifest: Any, decision: "ReleaseReport | None") -> Iterator[tuple[str, str]]:
    """What there is to say of groups and anchor, and of what was decided on it, as (name, fact)."""
    for group in manifest.groups:
        cosine = "" if group.cosine is None else f", cosine to their mean {group.cosine:.2f}"
        residual = (
            ""
            if group.residual_before is None
            else f", residual {group.residual_before:.3g} before alignment, {group.residual_after:.3g} after"
        )
        took = f", {group.seconds:.1f} s" if group.seconds else ""
        yield "group", f"{group.updates} from version {group.base_version}{cosine}{residual}{took}"
    if (returned := manifest.returned) is not None:
        since, before = measured_loss(returned.candidate), measured_loss(returned.before)
        losses = f"loss of the average made since {since}, before {before}"
        yield "returned", f"to the {returned.variant} of version {returned.version}, {losses}"
    if (anchor := manifest.anchor) is not None:
        losses = f"loss {measured_loss(anchor.loss_before)} -> {measured_loss(anchor.loss_after)}"
        yield (
            "anchor",
            f"from version {anchor.base_version}, weight {anchor.weight:.4g}, {losses}, {anchor.seconds:.1f} s",
        )
    if decision is None:
        yield "served", "passed over: a newer version was judged in its place"
        return
    yield "served", f"the {decision.variant} of version {decision.version}"
    if decision.before is not None or decision.candidate is not None:
        losses = f"loss {measured_loss(decision.candidate)}, before {measured_loss(decision.before)}"
        yield "gate", f"{losses}, {decision.seconds:.1f} s"


def _nodes(manifest: Any) -> str:
    return ", ".join(sorted({update.node for update in manifest.inputs}))
