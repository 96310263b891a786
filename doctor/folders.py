"""Whether files and folders are as a process needs them: room, a local disk, whole, this federation's, and its own."""

import fcntl
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import psutil

from base_model.layout import layout_of
from base_model.reference import ResolvedModel
from base_model.wheel import BaseModelError
from broker.recording import RecordingError, reading
from configuration import Configuration
from coordinator.journal import read_terms
from coordinator.poison import MOST_DEATHS, set_aside
from coordinator.recovery import FederationDiffers, check_same_federation
from doctor.check import GIB, MIB, Check, size
from edge_node.outbox import read_mark
from schemas.messages import GlobalPointer, PublicKey

LITTLE_DISK, NO_DISK = GIB, 100 * MIB
REMOTE = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "fuse.rclone", "fuse.glusterfs", "9p", "afs", "ceph"}


def data_folders(configuration: Configuration) -> list[Path]:
    """Where this configuration writes."""
    folders = [configuration.base_model.cache, configuration.coordinator.data_dir]
    return folders + ([configuration.edge.data_dir] if configuration.edge else [])


def check_disk(folder: Path) -> Check:
    """Whether the folder, or what is there of its path, can be written to and has room."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    name = f"disk for {folder}"
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return Check(name, "fail", f"{existing} cannot be written to", "change its owner, or set another folder")
    free = shutil.disk_usage(existing).free
    if free >= LITTLE_DISK:
        return Check(name, "ok", f"{size(free)} free")
    return Check(name, "fail" if free < NO_DISK else "warn", f"only {size(free)} free", "make room on this disk")


def check_file_system(folder: Path) -> Check:
    """Whether the folder is on a local disk: over a network, SQLite's locks and flushes cannot be trusted."""
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    kind = next((mounts[path] for path in (folder.absolute(), *folder.absolute().parents) if path in mounts), "")
    name = f"file system of {folder}"
    if kind not in REMOTE:
        return Check(name, "ok", kind or "local")
    advice = "set a folder on a local disk: a crash may lose what was acknowledged"
    return Check(name, "fail", f"{kind} is a network file system", advice)


def check_lock(folder: Path, who: str) -> Iterator[Check]:
    """Whether another process works in the folder; there is nothing to say where none ever did."""
    lock = folder / "lock"
    try:
        descriptor = os.open(lock, os.O_RDWR)
    except OSError:  # none, or none of ours: what is wrong with the folder is said elsewhere
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        advice = f"if it should not, stop it, or give one of the two another data_dir; {SECOND[who]}"
        yield Check(f"{who}'s folder", "warn", f"a {who} works in {folder} now", advice)
    else:
        yield Check(f"{who}'s folder", "ok", f"nobody works in {folder}")
    finally:
        os.close(descriptor)


SECOND = {
    "coordinator": "a second one waits there as a standby",
    "node": "a second one ends at once",
}


def check_journal(path: Path) -> Iterator[Check]:
    """Whether the journal, if there is one, is whole."""
    if not path.exists():
        return
    try:
        with reading(path) as journal:
            [(rows,)] = journal.execute("SELECT count(*) FROM messages").fetchall()
    except RecordingError as fault:
        yield Check("journal", "fail", str(fault), "restore it from a copy; nodes send again what has no receipt yet")
        return
    yield Check("journal", "ok", f"{rows} rows in {path}, {size(path.stat().st_size)}")


def check_founding(journal: Path, configuration: Configuration, model: ResolvedModel, root: PublicKey | None) -> Check:
    """Whether a coordinator would go on with the journal that is there, or refuse it as another federation's."""
    name = "journal's federation"
    try:
        recorded = read_terms(journal)
        layout = layout_of(model, configuration.coordinator.lora)
        ours = {"federation": configuration.federation, "base_model": model.digest, "layout": layout, "root": root}
        check_same_federation(recorded, recorded.model_copy(update=ours))
    except FederationDiffers as difference:
        found, _, advice = str(difference).rpartition(": ")
        return Check(name, "fail", found, advice)
    except (RecordingError, BaseModelError) as fault:
        return Check(name, "fail", str(fault), "no coordinator would start on it: set coordinator.data_dir anew")
    return Check(name, "ok", f"it is {recorded.federation}'s, on this base model and LoRA layout")


def check_set_aside(folder: Path) -> Iterator[Check]:
    """Messages that the coordinator does not read any more, because it died of them."""
    if topics := set_aside(folder):
        found = f"the coordinator died {MOST_DEATHS} times of each of {len(topics)} messages, such as {topics[-1]}"
        advice = f"report them (`alignfed recording show`); once a release mends that, delete {folder / 'poison.json'}"
        yield Check("messages set aside", "warn", found, advice)


def check_outbox(folder: Path, head: GlobalPointer | None) -> Iterator[Check]:
    """Whether a node would follow the head that is on the broker: it takes nothing older than what it has held."""
    try:
        mark = read_mark(folder / "outbox.db")
    except sqlite3.Error as fault:
        advice = "start the node: it moves a damaged file aside, and goes on without the updates in it"
        yield Check("outbox", "fail", f"{folder / 'outbox.db'} cannot be read: {fault}", advice)
        return
    if mark is None or head is None:
        return
    if (head.epoch, head.version) >= mark:
        yield Check("outbox", "ok", f"{folder} has held versions up to {mark[1]} of epoch {mark[0]}")
        return
    now = f"the federation is at version {head.version} of epoch {head.epoch}"
    found = f"{folder} has held version {mark[1]} of epoch {mark[0]}, and takes nothing older; {now}"
    advice = (
        "if it was another federation's, give the node a data_dir of its own; else the coordinator runs on old data"
    )
    yield Check("outbox", "fail", found, advice)


def secrets(configuration: Configuration) -> list[Path]:
    """Files that nobody else should be able to read."""
    broker, token = configuration.broker, configuration.coordinator.http_token
    made = token if token is not None and token.exists() else None  # the coordinator makes it
    return [path for path in (broker.password_file, broker.key_file, made) if path is not None]


def check_secret(path: Path) -> Check:
    """Whether a secret can be read by us, and by nobody else."""
    name = f"secret {path}"
    if not os.access(path, os.R_OK):
        return Check(name, "fail", "it cannot be read", "check that it is there and who owns it")
    if path.stat().st_mode & 0o077:
        return Check(name, "warn", "others on this machine can read or write it", f"chmod 600 {path}")
    return Check(name, "ok", "only its owner can read it")
