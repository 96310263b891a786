"""From what is on disk to a running federation: fold the journal from its last checkpoint on, mend the registry, take
over.
"""

import sqlite3
import time
from typing import NamedTuple

from broker.recording import path_of, transaction
from coordinator import checkpoint
from coordinator.core import step
from coordinator.intake import Step
from coordinator.journal import fold_history, record, record_founding, record_nodes, row_of_event
from coordinator.registry import Registry
from coordinator.state import (
    AskModel,
    Configured,
    Effect,
    FederationConfig,
    FederationState,
    KeysChanged,
    NoiseKeyDrawn,
    PublishRelease,
    PublishVersion,
    Started,
)
from coordinator.watch.history import History, observe
from schemas.adapter import Adapter
from schemas.trust import KeyRing


class FederationDiffers(RuntimeError):
    """The journal belongs to another federation than the one that was configured."""


class Restored(NamedTuple):
    """A federation that goes on: its state, what is to be done now, and what has happened so far.

    `folding_s` is the processor time that it took to make it of the journal.
    """

    state: FederationState
    questions: tuple[Effect, ...]
    history: History
    folding_s: float = 0.0


def restore(
    journal: sqlite3.Connection,
    registry: Registry,
    config: FederationConfig,
    adapter: Adapter,
    at_ns: int,
    ring: KeyRing | None = None,
    noise_key: bytes | None = None,
) -> Step:
    """The state after everything recorded, and what is to be done now; see `restore_with_history`."""
    return restore_with_history(journal, registry, config, adapter, at_ns, ring, noise_key)[:2]


def restore_with_history(
    journal: sqlite3.Connection,
    registry: Registry,
    config: FederationConfig,
    adapter: Adapter,
    at_ns: int,
    ring: KeyRing | None = None,
    noise_key: bytes | None = None,
) -> Restored:
    """The state after everything recorded, under the terms of `config`, in a new epoch.

    `ring` is the key ring of today; one that is older than the recorded one changes nothing. `noise_key` is a fresh
    secret, where the terms promise noise.

    An empty journal founds the federation with `adapter` as version 0. A version that a crash kept out of the registry
    is put there. Raises FederationDiffers when the journal is that of another federation.
    """
    begun = time.thread_time()
    state, history = _folded(journal, registry)
    if state is None:
        with transaction(journal):
            record_founding(journal, config, adapter, at_ns)
        state, history = _folded(journal, registry)
        assert state is not None
    folding_s = time.thread_time() - begun
    check_same_federation(state.config, config)
    events: list[Configured | KeysChanged | NoiseKeyDrawn | Started] = (
        [] if state.config == config else [Configured(at_ns, config)]
    )
    if ring is not None and ring.number >= state.ring.number and ring != state.ring:
        events.append(KeysChanged(at_ns, ring))
    if noise_key is not None:
        events.append(NoiseKeyDrawn(at_ns, noise_key))
    for event in (*events, Started(at_ns)):
        state, more = step(state, event)
        with transaction(journal):
            record(journal, row_of_event(event), more)
        keep(registry, more)
        history = observe(history, event, more, at_ns)
    with transaction(journal):
        record_nodes(journal, None, state)
    # versions and decisions are in the registry, and all that is retained is published when the broker is there; a
    # receipt that is missed here is given again when its update comes again. A start asks again what is open
    questions = tuple(effect for effect in more if isinstance(effect, AskModel))
    return Restored(state, questions, history, folding_s)


def _folded(journal: sqlite3.Connection, registry: Registry) -> tuple[FederationState | None, History]:
    path = path_of(journal)
    since = checkpoint.load(path, registry)
    last: tuple[FederationState | None, History] = (None, History()) if since is None else (since.state, since.history)
    for state, history, effects in fold_history(path, since):
        keep(registry, effects)
        last = state, history
    return last


def keep(registry: Registry, effects: tuple[Effect, ...]) -> None:
    """Put into the registry what these effects say and what is not there yet."""
    for effect in effects:
        if isinstance(effect, PublishVersion) and not registry.has(effect.manifest):
            registry.add(effect.manifest, effect.adapter)
        # a rollback decides anew on a version: the last word counts
        if isinstance(effect, PublishRelease) and registry.decision(effect.report.judged) != effect.report:
            registry.set_release(effect.report, effect.adapter)


def check_same_federation(recorded: FederationConfig, wanted: FederationConfig) -> None:
    """Raise FederationDiffers where these are the terms of two federations, not of one that has changed."""
    for what, before, now in (
        ("federation", recorded.federation, wanted.federation),
        ("base model", recorded.base_model, wanted.base_model),
        ("adapter layout", recorded.layout.digest, wanted.layout.digest),
    ):
        if before != now:
            raise FederationDiffers(
                f"this data directory belongs to a federation whose {what} is {before}, not {now}: "
                "configure the same, or give the new federation a data_dir of its own"
            )
    if recorded.root is not None and recorded.root != wanted.root:
        now = "none are set" if wanted.root is None else f"those of root {wanted.root[:12]} are"
        raise FederationDiffers(
            f"this federation has the keys of root {recorded.root[:12]}, and {now}: set security.keys to its "
            "coordinator's bundle, or give a new federation a data_dir of its own"
        )
