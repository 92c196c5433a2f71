"""Which nodes a reader pinned and grouped, as the address says it: groups=places:15_3_2,9_7_2."""

from collections.abc import Mapping, Sequence

from saelab.errors import ConfigError
from saelab.graphs import AttributionGraph

__all__ = ["MOST", "Groups", "grouped", "ids", "named", "parsed", "written"]

Groups = tuple[tuple[str, tuple[str, ...]], ...]
"""Names with the ids of their members."""

MOST = 60
"""Pinned nodes, and groups, at most: an address should fit in a message."""
_SEPARATORS = str.maketrans(dict.fromkeys(":,;", " "))


def ids(words: str) -> tuple[str, ...]:
    """Ids separated by commas.

    >>> ids("15_3_2,9_7_2")
    ('15_3_2', '9_7_2')

    Raises:
        ConfigError: They are too many.
    """
    found = tuple(dict.fromkeys(filter(None, words.split(","))))
    if len(found) > MOST:
        raise ConfigError(f"pin in the address names {len(found)} nodes; at most {MOST} do.")
    return found


def parsed(words: str) -> Groups:
    """Groups with their members; a node stays in the first that names it.

    >>> parsed("places:15_3_2,9_7_2;verbs:4_1_1")
    (('places', ('15_3_2', '9_7_2')), ('verbs', ('4_1_1',)))

    Raises:
        ConfigError: It is not a list of groups.
    """
    found: dict[str, tuple[str, ...]] = {}
    taken: set[str] = set()
    for part in filter(None, words.split(";")):
        name, colon, members = part.partition(":")
        if not colon or not name.strip() or len(found) >= MOST:
            raise ConfigError(
                f"groups={words[:80]!r} in the address must be up to {MOST} groups such as "
                "groups=places:15_3_2,9_7_2;verbs:4_1_1."
            )
        new = tuple(one for one in members.split(",") if one and one not in taken)
        found[name.strip()] = found.get(name.strip(), ()) + new
        taken |= set(new)
    return tuple((name, members) for name, members in found.items() if members)


def written(groups: Groups) -> str:
    """What `parsed` reads.

    >>> written((("places", ("15_3_2", "9_7_2")),))
    'places:15_3_2,9_7_2'
    """
    return ";".join(f"{name}:{','.join(members)}" for name, members in groups if members)


def named(name: str) -> str:
    """A reader's name without what separates names in an address.

    >>> named(" cities: old ")
    'cities  old'
    """
    return name.translate(_SEPARATORS).strip()[:40]


def grouped(graph: AttributionGraph, by_hand: Groups, alike: float) -> AttributionGraph:
    """The graph with groups by hand, and around them those of latents that play one role.

    Args:
        graph: As it is shown.
        by_hand: Groups of the address; ids that are not in the graph are passed over.
        alike: Mean cosine that automatic groups share at least; 0 for none.
    """
    there = {node.id for node in graph.nodes}
    mine: dict[str, Sequence[str]] = {
        name: [one for one in members if one in there] for name, members in by_hand
    }
    automatic: Mapping[str, Sequence[str]] = (
        graph.group_by_influence(alike).groups if alike > 0 else graph.groups
    )
    taken = {one for members in mine.values() for one in members}
    found = {name: members for name, members in mine.items() if members}
    for name, members in automatic.items():
        left = [one for one in members if one not in taken]
        if len(left) > 1:
            found[name if name not in found else f"{name} (2)"] = left
    return graph.group(found)
