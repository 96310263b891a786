"""What a node's disk does with the pieces of a version, for cores that are told things without one."""

from collections.abc import Iterable, Iterator
from hashlib import sha256

from edge_node.effects import DropPieces, Effect, KeepPieces, KeepVersion, VerifyArrived
from edge_node.events import VersionArrived
from schemas.adapter import Layout
from schemas.codec import CodecError, decode
from schemas.messages import GlobalPointer


class Pieces:
    """Keeps what it is asked to keep, by version and digest, and answers whether a whole is what it should be."""

    def __init__(self) -> None:
        self.kept: dict[tuple[int, str], bytes] = {}

    def answers(self, effects: Iterable[Effect], at: float) -> Iterator[VersionArrived]:
        """Do what concerns the pieces, and say what came of it."""
        for effect in effects:
            match effect:
                case KeepPieces(pointer, offset, pieces):
                    before = self.kept.get(_name(pointer), b"")
                    assert len(before) >= offset, "the node skips bytes"
                    self.kept[_name(pointer)] = before[:offset] + b"".join(pieces)
                case VerifyArrived(pointer, layout):
                    yield _verified(self.kept[_name(pointer)], pointer, layout, at)
                case KeepVersion(pointer):
                    del self.kept[_name(pointer)]
                case DropPieces(pointer):
                    self.kept.pop(_name(pointer), None)


def _verified(content: bytes, pointer: GlobalPointer, layout: Layout, at: float) -> VersionArrived:
    if sha256(content).hexdigest() != pointer.digest:
        return VersionArrived(at, pointer, None, "it is not what the pointer names")
    try:
        return VersionArrived(at, pointer, decode(content, layout, "safetensors"))
    except CodecError as fault:
        return VersionArrived(at, pointer, None, str(fault))


def _name(pointer: GlobalPointer) -> tuple[int, str]:
    return pointer.version, pointer.digest
