"""Back to an earlier version by the operator's word: a new entry of the release, and of the head when asked. Pure.

Nothing is taken back: the sequence goes on, what it names is older, and a higher epoch puts it above all before.
"""

from dataclasses import replace

from coordinator.aggregation import advance, manifest, refuse_outdated, take_back
from coordinator.background import keeps_average, serve
from coordinator.intake import Step, drop
from coordinator.state import FederationState, PublishVersion, RolledBack
from coordinator.updates import GlobalAdapter, Served
from schemas.adapter import Adapter, InvalidAdapter
from schemas.messages import ReleaseReport


def roll_back(state: FederationState, event: RolledBack) -> Step:
    """Have nodes serve an earlier adapter from now on, and, for the head, train from it too."""
    if event.number is not None:
        if event.number <= state.orders:
            return drop(state, "order that was taken already", str(event.number))
        state = replace(state, orders=event.number)
    try:
        adapter = Adapter.from_safetensors(state.config.layout, event.body)
    except InvalidAdapter as error:
        return drop(state, "rollback to no adapter", str(error))
    if event.version > state.head.version:
        return drop(state, "rollback to no version", f"{event.version}, the newest is {state.head.version}")
    # what the base model is being asked concerns versions that nobody wants any more
    state = replace(state, epoch=state.epoch + 1, background=None, turned_down=0)
    if event.scope == "head":
        return _of_head(state, event, adapter)
    served = Served(event.version, event.variant, adapter)
    # all up to the head counts as judged, or the gate would at once decide on what was just given up
    report = ReleaseReport(version=event.version, variant=event.variant, judged=state.head.version)
    return serve(state, served, report)


def _of_head(state: FederationState, event: RolledBack, adapter: Adapter) -> Step:
    """The older adapter is the next version, and is served."""
    state = take_back(state)
    parent, head = state.head.digest, GlobalAdapter(state.head.version + 1, adapter)
    state = replace(advance(state, head, ()), anchor=None)
    # an average goes on from here, or what was given up would come back with it
    state = replace(state, average=adapter if keeps_average(state) else None)
    served = Served(head.version, "head", adapter)
    state, released = serve(state, served, ReleaseReport(version=head.version, variant="head", judged=head.version))
    said = manifest(state, event.at_ns, parent=parent).model_copy(update={"rolled_back_to": event.version})
    state, refusals = refuse_outdated(state)
    return state, (PublishVersion(said, adapter), *released, *refusals)
