"""All checks in their order: cheap and likely causes first, each given as soon as it is made.

Nothing that is wrong ends the examination, settings and keys included: it is one more answer.
"""

import time
from collections.abc import Generator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import psutil

from base_model.reference import ResolvedModel
from broker.access import COORDINATOR, OBSERVER
from broker.bundle import Bundle
from configuration import Configuration, ConfigurationError, from_flags, load
from doctor import folders, keys, learning, machine, retained
from doctor.broker import address_to_try, check_broker
from doctor.check import Check
from doctor.retained import Kept
from schemas.topics import route


def examine(
    file: Path | None, federation: str | None, broker: str | None, node: str | None, data: Path | None
) -> Iterator[Check]:
    """Every check of what a process with this settings file and these flags needs. The base model is fetched."""
    try:
        configuration = load(file, from_flags(federation, broker, edge={"node": node, "data": data}))
    except ConfigurationError as error:
        for line in str(error).splitlines():
            yield Check("settings", "fail", line, "docs/configuration.md has every setting")
        return
    bundle = yield from _keys(configuration)
    if bundle is not None:
        configuration = configuration.model_copy(update={"broker": bundle.reaches(configuration.broker)})
    kept = Kept()
    if configuration.security.keys is None or bundle is not None:  # else it is no use to knock
        kept = yield from _broker(configuration, bundle)
    yield from _machine(configuration)
    model = yield from _learning(configuration, kept)
    yield from _folders(configuration, bundle, kept, model)
    yield machine.check_torch()
    yield machine.check_onnxruntime()


def _keys(configuration: Configuration) -> Generator[Check, None, Bundle | None]:
    """Checks of the keys; the bundle, if it can be read."""
    folder, edge, broker, bundle = configuration.security.keys, configuration.edge, configuration.broker, None
    if folder is None:
        yield keys.check_without_keys(configuration.security, broker)
    else:
        check, bundle = keys.check_bundle(folder, configuration.federation, edge.node if edge else None)
        yield check
    now, reached = datetime.now(UTC), bundle.reaches(broker) if bundle is not None else broker
    if reached.cert_file is not None:
        yield keys.check_certificate(reached.cert_file, bundle, now)
    if bundle is not None and bundle.name == COORDINATOR:
        yield keys.check_own_signing_key(bundle, now)
    return bundle


def _broker(configuration: Configuration, bundle: Bundle | None) -> Generator[Check, None, Kept]:
    """Checks of the broker and of what it keeps; that."""
    node = _node(configuration, bundle)
    topic = route(configuration.federation, address_to_try(node, bundle)).topic
    broker_checks = list(check_broker(configuration.broker, topic))
    yield from broker_checks
    if broker_checks[0].status != "ok":
        return Kept()
    kept, checks = retained.look_around(configuration.broker, configuration.federation, node)
    yield from checks
    if any(check.name == "coordinator" for check in checks):  # there was no looking
        return kept
    yield retained.check_coordinator(kept.coordinator, configuration.federation)
    if bundle is not None:
        yield keys.check_federations_key(kept.key, bundle, datetime.now(UTC))
    if node is not None:
        yield retained.check_node_name(kept.node, node)
    return kept


def _machine(configuration: Configuration) -> Iterator[Check]:
    yield machine.check_clock(time.time())
    for folder in folders.data_folders(configuration):
        yield folders.check_disk(folder)
        yield folders.check_file_system(folder)
    for name, http in machine.addresses(configuration).items():
        yield machine.check_port(name, http)
    for path in folders.secrets(configuration):
        yield folders.check_secret(path)
    yield machine.check_memory(psutil.virtual_memory().available)


def _learning(configuration: Configuration, kept: Kept) -> Generator[Check, None, ResolvedModel | None]:
    """Checks of what is learned from; the base model, if it is here."""
    if configuration.edge is not None:
        yield learning.check_examples(configuration.edge)
    if (calibration := configuration.coordinator.calibration) is not None:
        yield learning.check_calibration(calibration)
    check, model = learning.check_base_model(configuration.base_model.name, configuration.base_model.cache)
    yield check
    if model is not None and (announced := retained.announced(kept)) is not None:
        yield retained.check_same_model(model, announced)
    return model


def _folders(
    configuration: Configuration, bundle: Bundle | None, kept: Kept, model: ResolvedModel | None
) -> Iterator[Check]:
    """What earlier processes have left in the folders."""
    coordinators = configuration.coordinator.data_dir
    yield from folders.check_lock(coordinators, "coordinator")
    journal = list(folders.check_journal(coordinators / "journal.db"))
    yield from journal
    if model is not None and [check.status for check in journal] == ["ok"]:
        yield folders.check_founding(
            coordinators / "journal.db", configuration, model, bundle.root if bundle is not None else None
        )
    yield from folders.check_set_aside(coordinators)
    if configuration.edge is not None:
        yield from folders.check_lock(configuration.edge.data_dir, "node")
        yield from folders.check_outbox(configuration.edge.data_dir, retained.head_of(kept))


def _node(configuration: Configuration, bundle: Bundle | None) -> str | None:
    """The node that would run here, if one would."""
    if configuration.edge is not None:
        return configuration.edge.node
    return bundle.name if bundle is not None and bundle.name not in (COORDINATOR, OBSERVER) else None
