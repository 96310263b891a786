"""What is worth a line when no live picture can be shown: the difference between two views of the fleet, in words.

Pure. It knows nothing of terminals; one event gives one line.
"""

from collections.abc import Iterator

from examples.smart_home.fleet_view import FleetView, NodeView, VersionView


def news(before: FleetView, after: FleetView) -> tuple[str, ...]:
    """One line for each thing that happened between two views; mere training progress is no news."""
    return (*_of_coordinator(before, after), *_of_nodes(before, after), *_of_versions(before, after))


def _of_coordinator(before: FleetView, after: FleetView) -> Iterator[str]:
    if after.coordinator_online and (not before.coordinator_online or before.epoch != after.epoch):
        yield f"coordinator online, epoch {after.epoch}"
    if before.coordinator_online and not after.coordinator_online:
        yield "coordinator offline"
    if after.refused > before.refused and (refusal := after.last_refusal) is not None:
        yield f"{refusal.node}: update {refusal.status}: {refusal.reason}"


def _of_nodes(before: FleetView, after: FleetView) -> Iterator[str]:
    for name, node in after.nodes.items():
        yield from _of_node(name, before.nodes[name], node, after)


def _of_node(name: str, was: NodeView, now: NodeView, view: FleetView) -> Iterator[str]:
    if now.online and not was.online:
        pace = "full speed" if now.slowdown == 1 else f"{100 / now.slowdown:.0f} % of full speed"
        newest = "no version is out yet" if view.head is None else f"the newest version is {view.head}"
        yield f"{name} joined ({pace}); {newest}"
    if was.online and not now.online:
        yield f"{name} left"
    if len(now.accepted) > len(was.accepted):
        update = view.updates.get(now.accepted[-1])
        origin = "" if update is None else f", trained from version {update.base_version}, loss {update.loss:.2f}"
        yield f"{name}: update {len(now.accepted)} accepted{origin}"


def _of_versions(before: FleetView, after: FleetView) -> Iterator[str]:
    if after.head is not None and after.head != before.head:
        version = next((v for v in after.versions if v.version == after.head), None)
        made_of = "" if version is None else f" {version.digest[:12]} {_made_of(version)}"
        yield f"version {after.head} of {after.final_version} published{made_of}"
    for number, variant in after.served.items():
        if number not in before.served:
            yield f"nodes serve the {variant} of version {number}"


def _made_of(version: VersionView) -> str:
    if not version.inputs:
        return "of no update" if version.version else "(the first adapter: no change to the model yet)"
    return f"from {inputs_in_words(version)}"


def inputs_in_words(version: VersionView) -> str:
    """The inputs of a version as `node@base version`, in the order they were used."""
    return " ".join(f"{node}@{base_version}" for node, base_version in version.inputs)
