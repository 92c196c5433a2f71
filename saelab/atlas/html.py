"""A few latents of an atlas as one self-contained page to send to someone."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saelab.atlas.cards import LatentCard, TailCard
from saelab.atlas.records import Example
from saelab.errors import ConfigError
from saelab.files import write_bytes
from saelab.latent_page import latent_page
from saelab.latent_tails import Tail
from saelab.logit_effects import LogitEffects

if TYPE_CHECKING:
    from saelab.atlas.opened import Atlas

__all__ = ["save_html"]


def save_html(
    atlas: "Atlas", path: str | Path, latents: Sequence[int], *, max_bytes: int = 12_000_000
) -> Path:
    """Write a table of the latents and a card for each; nothing is loaded from anywhere.

    Args:
        atlas: Where they are.
        path: Where the page goes.
        latents: Which latents.
        max_bytes: About how large the examples may make the file; what is left out is said.

    Raises:
        ConfigError: None is named, or one does not exist.
    """
    if not latents:
        raise ConfigError("No latents were named; name at least one.")
    cards = [atlas.latent(latent) for latent in sorted(set(map(int, latents)))]
    config = atlas.about["config"]
    width = (config["before"], config["after"])
    n = max(1, max(len(tail.top()) for card in cards for tail in card.tails))
    sources = _Numbers()
    sides = [[card.tails[side] for card in cards] for side in range(len(atlas.signs))]
    parts = [_tail(tails, n, width, sources) for tails in sides]
    effects = _effects(cards)
    used = {int(token) for _, ids, _ in parts for token in ids.unique() if token >= 0}
    if effects is not None:
        used |= set(torch.cat([effects.promoted, effects.suppressed]).flatten().tolist())
    tokens = sorted(used)
    html = latent_page(
        latents=torch.tensor([card.latent for card in cards]),
        tails=[tail for tail, _, _ in parts],
        ids=[ids for _, ids, _ in parts],
        documents=[documents for _, _, documents in parts],
        document_names=sources.names,
        strings=dict(zip(tokens, atlas.strings(tokens), strict=True)),
        effects=effects,
        effects_missing=str(atlas.about["effects_missing"]),
        n_tokens=atlas.n_tokens,
        before=width[0],
        about=atlas.about,
        n_examples=None,
        max_bytes=max_bytes,
        opening=cards[0].latent,
        names=[card.label for card in cards],
        details=[_details(card) for card in cards],
        kind="Atlas",
    )
    write_bytes(path, html.encode("utf-8", "replace"))
    return Path(path)


class _Numbers:
    """Numbers names in the order of their first use."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._known: dict[str, int] = {}

    def __call__(self, name: str) -> int:
        if name not in self._known:
            self._known[name] = len(self.names)
            self.names.append(name)
        return self._known[name]


def _tail(
    tails: Sequence[TailCard], n: int, width: tuple[int, int], sources: _Numbers
) -> tuple[Tail, Tensor, Tensor]:
    """The examples of one side as the tensors the page is made from; token ids; documents."""
    shape = (len(tails), n)
    strength, window = torch.zeros(shape), torch.zeros(*shape, sum(width) + 1)
    row, position, document = (torch.full(shape, -1) for _ in range(3))
    ids = torch.full((*shape, sum(width) + 1), -1)
    for place, tail in enumerate(tails):
        for rank, one in enumerate(tail.top()):
            strength[place, rank] = one.strength
            row[place, rank], position[place, rank] = one.row, one.position
            document[place, rank] = sources(one.document)
            shown = _shown(one, width[0])
            ids[place, rank, shown] = torch.tensor(one.token_ids)
            window[place, rank, shown] = torch.tensor(one.activations)
    counts = torch.tensor([tail.count for tail in tails])
    histogram = torch.tensor([tail.histogram.counts for tail in tails])
    top = torch.tensor([tail.max for tail in tails])
    return Tail(counts, strength, row, position, window, histogram, top), ids, document


def _shown(one: Example, before: int) -> slice:
    return slice(before - one.peak, before - one.peak + len(one.token_ids))


def _effects(cards: Sequence[LatentCard]) -> LogitEffects | None:
    if not cards[0].positive.promoted:
        return None
    columns = []
    for some in (
        [card.positive.promoted for card in cards],
        [card.positive.suppressed for card in cards],
    ):
        columns.append(torch.tensor([[one.token_id for one in row] for row in some]))
        columns.append(torch.tensor([[one.effect for one in row] for row in some]))
    return LogitEffects(*columns)


def _details(card: LatentCard) -> list[tuple[str, str]]:
    """Labels with their scores, notes, and related latents."""
    lines = [
        f"{_side(one.sign, card.signed)}{one.text} ({one.source}"
        + (f"; {one.score_name} {one.score:.2f})" if one.score is not None else ")")
        for one in card.labels
    ]
    notes = [one.note for one in card.annotations if one.note]
    near = [f"{one.latent} ({one.cosine:+.2f}) {one.label}" for one in card.neighbors[:5]]
    together = [
        f"{_side(tail.sign, card.signed)}{one.latent}{'+-'[one.sign < 0] if card.signed else ''} "
        f"(phi {one.phi:.2f}) {one.label}"
        for tail in card.tails
        for one in tail.cooccurring[:5]
    ]
    found = [
        ("Notes", notes),
        ("Labels", lines),
        ("Nearest decoder directions (cosine)", near),
        ("Fires on the same tokens", together),
    ]
    return [(what, "\n".join(some)) for what, some in found if some]


def _side(sign: int, signed: bool) -> str:
    return {1: "+ ", -1: "- ", 0: ""}[sign] if signed else ""
