"""Groups of layers that can be named: of one kind, of one part of the network, or both."""

import dataclasses
from collections.abc import Mapping

from counterpoint.diagnostics.record import ConflictRecord

_MOST = 0.75  # of the conflicts, for a group to be named
_PART = 0.5  # of the layers, at most
_KINDS = (("Norm", "normalization"), ("Conv", "convolution"), ("Linear", "linear"), ("Embedding", "embedding"))


@dataclasses.dataclass(frozen=True)
class LayerGroup:
    """Layers of one kind, of one part of the network, or both.

    Attributes:
        kind: Such as ``"normalization"``; empty for all kinds.
        part: Beginning of the names; empty for all parts.
        layers: Names.
    """

    kind: str
    part: str
    layers: tuple[str, ...]


def family(kind: str) -> str:
    """Return the family of a class of layers, in words; empty if it is none of the usual ones."""
    return next((word for piece, word in _KINDS if piece in kind), "")


def find_group(record: ConflictRecord, scores: Mapping[str, int]) -> LayerGroup | None:
    """Return the smallest group, of at most half of the layers, that has at least three quarters of the conflicts.

    Of groups that hold the same layers the one with the fewest words is taken.
    """
    total = sum(scores.values())
    kinds = {name: family(record.kinds.get(name, "")) for name in record.layers}
    words = ["", *dict.fromkeys(kind for kind in kinds.values() if kind)]
    parts = ["", *dict.fromkeys(part for name in record.layers for part in _parts(name))]
    best: LayerGroup | None = None
    for kind in words:
        for part in parts:
            members = tuple(
                name
                for name in record.layers
                if kind in ("", kinds[name]) and (not part or name == part or name.startswith(f"{part}."))
            )
            enough = sum(scores[name] for name in members) >= _MOST * total
            if not members or not enough or len(members) > _PART * len(record.layers):
                continue
            if best is None or len(members) < len(best.layers):
                best = LayerGroup(kind, part, members)
    return best


def _parts(name: str) -> list[str]:
    """Return the parts of the network that a layer is in, from the outermost; not the layer itself."""
    pieces = name.split(".")
    return [".".join(pieces[:count]) for count in range(1, len(pieces))]


def describe(group: LayerGroup) -> str:
    """Return the name of a group in words."""
    place = f" of {group.part}" if group.part else ""
    return f"the {group.kind} layers{place}" if group.kind else f"the layers{place}"
