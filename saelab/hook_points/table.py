"""What is one hook point, and which one does a name mean?"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, final

from saelab.errors import HookPointError

__all__ = ["HookPoint", "HookTable", "Place", "Side", "near_misses"]

Side = Literal["input", "output"]
Place = tuple[str, Side]
"""A module path and a side of it."""


@final
@dataclass(frozen=True, slots=True)
class HookPoint:
    """One place to read or write: one vector per token."""

    name: str
    """Canonical name: TransformerLens spelling if one exists, else "<module path>.input|output"."""
    module: str
    """Path of the torch module, from the root of the model."""
    side: Side
    """Which side of it: its first input or its (first) output."""
    layer: int | None
    """Which block it is in, from 0; None outside the blocks."""
    kind: str
    """resid_pre, attn_in, attn_z, attn_out, resid_mid, mlp_in, mlp_post, mlp_out, resid_post, embed
    or module."""
    width: int | None
    """Length of the vector; None where the module does not say."""


@final
class HookTable:
    """Every place of one model that can be read or written, under every spelling of it."""

    def __init__(
        self,
        model_name: str,
        points: Iterable[HookPoint],
        *,
        paths: Mapping[str, tuple[int | None, int | None]],
        synonyms: Mapping[str, Place] | None = None,
        base: str = "",
        n_layers: int = 0,
        parallel: bool = False,
    ) -> None:
        """Lay out the table.

        Args:
            model_name: For messages.
            points: The hook points with names of their own, in the order the model runs them.
            paths: Every other module that can be reached: path -> width of input and of output.
            synonyms: Further names of places.
            base: Path of the base model; a name may leave it out.
            n_layers: How many blocks; for messages.
            parallel: Whether blocks run attention and MLP side by side; for messages.
        """
        self.model_name = model_name
        self.points = list(points)
        self._by_name = {point.name: point for point in self.points}
        self._by_place = {(point.module, point.side): point for point in self.points}
        self.paths = dict(paths)
        self._synonyms = dict(synonyms or {})
        self._base = f"{base}." if base else ""
        self._n_layers = n_layers
        self._parallel = parallel

    def __iter__(self) -> Iterator[HookPoint]:
        return iter(self.points)

    def find(self, name: str) -> HookPoint:
        """The place that `name` means, in any accepted spelling.

        Raises:
            HookPointError: There is no such place; the message offers the nearest names.
        """
        if name in self._by_name:
            return self._by_name[name]
        place = self._synonyms.get(name) or self._path(name) or self._path(self._base + name)
        if place is None:
            raise HookPointError(self._message(name))
        return self._by_place.get(place) or self._module_point(place)

    def _path(self, name: str) -> Place | None:
        parent, _, last = name.rpartition(".")
        if last == "input" and parent in self.paths:
            return parent, "input"
        if last == "output" and parent in self.paths:
            return parent, "output"
        return (name, "output") if name in self.paths else None

    def _module_point(self, place: Place) -> HookPoint:
        path, side = place
        inside = [p for p in self.points if p.kind == "resid_post" and _within(path, p.module)]
        layer = inside[0].layer if inside else None
        width = self.paths[path][side == "output"] if path in self.paths else None
        return HookPoint(f"{path}.{side}", path, side, layer, "module", width)

    def _message(self, name: str) -> str:
        start = f"{self.model_name} has no hook point {name!r}. "
        layer = re.match(r"blocks\.(\d+)\.", name)
        if layer and self._n_layers and int(layer[1]) >= self._n_layers:
            return start + f"It has {self._n_layers} layers: 0 to {self._n_layers - 1}."
        if name.endswith("hook_resid_mid") and self._parallel:
            return start + (
                "Its blocks run attention and MLP in parallel, so no residual stream lies between "
                "them; use hook_resid_pre or hook_resid_post."
            )
        near = near_misses(name, [*self._by_name, *self._synonyms, *self.paths])
        return (
            start
            + (f"Did you mean {near}? " if near else "")
            + "hook_points() lists the named ones; any module path, with .input or .output, works."
        )


def near_misses(name: str, names: Iterable[str], n: int = 3) -> str:
    """The nearest of `names` as text for a message; empty when none is near.

    >>> near_misses("hook_resid_pst", ["hook_resid_post", "hook_embed", "hook_resid_pre"])
    "'hook_resid_post' or 'hook_resid_pre'"
    """
    close = [repr(match) for match in difflib.get_close_matches(name, list(names), n=n)]
    if len(close) < 2:
        return "".join(close)
    return f"{', '.join(close[:-1])} or {close[-1]}"


def _within(path: str, ancestor: str) -> bool:
    return path == ancestor or path.startswith(f"{ancestor}.")
