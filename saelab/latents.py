"""What does each latent do? A first look: where it fires, and which tokens it pushes.

One streaming pass over the text keeps, for every latent and sign, how often it fires, a histogram
and the strongest contexts; the decoder directions give the promoted and suppressed tokens.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ConfigError, DataError
from saelab.fidelity import edited_positions, measured_norm_limit, recorded_norm_limit
from saelab.files import write_bytes
from saelab.latent_page import latent_page
from saelab.latent_tails import Tail, TailCollector, TokenWindow
from saelab.logit_effects import LogitEffects, logit_effects_of
from saelab.models import LanguageModel
from saelab.sae import SAE
from saelab.same_model import require_same_model
from saelab.store import ActivationStore
from saelab.tokens import Tokens

__all__ = ["FirstLook", "look"]

MAX_SHOWN_DENSITY = 0.1
"""Latents denser than this are not picked as examples: they rarely mean one thing."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class FirstLook:
    """What `look` found; needs no model to be read, printed or saved."""

    latents: Int[Tensor, " latent"]
    """Which latents were watched, ascending; the first axis of everything below."""
    tails: tuple[Tail, ...]
    """The positive side, and the negative one if the dictionary is signed."""
    ids: tuple[Int[Tensor, "latent n window"], ...]
    """Token ids around each tail's peaks; -1 outside the row or the document."""
    context: tuple[int, int]
    """Tokens shown before and after the peak."""
    documents: tuple[Int[Tensor, "latent n"], ...]
    """Document of each tail's peaks; -1 where there is none."""
    document_names: list[str]
    """What the documents are called."""
    strings: dict[int, str]
    """The text of every token id that appears."""
    effects: LogitEffects | None
    """Promoted and suppressed tokens; None if they are not known."""
    effects_missing: str
    """Why they are not."""
    n_tokens: int
    """Tokens measured: the denominator of every density."""
    about: dict[str, Any]
    """model, hook, dictionary, corpus and what was excluded, as text."""

    @property
    def signed(self) -> bool:
        """Whether latents can be below zero."""
        return len(self.tails) == 2

    @property
    def counts(self) -> Int[Tensor, " latent"]:
        """Tokens on which each latent is not zero."""
        return torch.stack([tail.count for tail in self.tails]).sum(0)

    @property
    def density(self) -> Float[Tensor, " latent"]:
        """Share of tokens on which each latent is not zero."""
        return self.counts.double() / self.n_tokens

    @property
    def strongest(self) -> Float[Tensor, " latent"]:
        """Largest |activation|; 0 for a dead latent."""
        return torch.stack([tail.strength[:, 0] for tail in self.tails]).amax(0)

    def pick(self, n: int = 5, seed: int = 0) -> list[int]:
        """A few latents worth printing: alive, not dense, spread evenly over the densities.

        Latents with a full list of examples come first; one is drawn from each of `n` equal parts
        of the latents ordered by density. The same seed gives the same latents.
        """
        alive = (self.counts > 0) & (self.density <= MAX_SHOWN_DENSITY)
        filled = torch.stack([(tail.strength > 0).sum(1) for tail in self.tails]).amax(0)
        full = alive & (filled == self.tails[0].strength.shape[1])
        candidates = (full if int(full.sum()) >= n else alive).nonzero().squeeze(1)
        candidates = candidates[torch.argsort(self.counts[candidates], stable=True)]
        generator = torch.Generator().manual_seed(seed)
        parts = torch.tensor_split(candidates, max(1, min(n, len(candidates))))
        chosen = [
            int(part[torch.randint(len(part), (1,), generator=generator)])
            for part in parts
            if len(part)
        ]
        return [int(self.latents[place]) for place in chosen]

    def describe(self, latent: int, n_examples: int = 3) -> str:
        """A latent as plain text for a terminal; the peak of each context is «marked».

        Raises:
            ConfigError: The latent was not watched.
        """
        place = self._place(latent)
        count = int(self.counts[place])
        if not count:
            return f"latent {latent}: never fired on {self.n_tokens:,} tokens"
        lines = [
            f"latent {latent}: fires on {one_in(count, self.n_tokens)} tokens, "
            f"strongest {float(self.strongest[place]):.3g}"
        ]
        for side, tail in enumerate(self.tails):
            mark = ("+", "-")[side] if self.signed else " "
            if self.effects is not None and int(tail.count[place]):
                up, down = self._pushed(place, negative=side == 1)
                lines.append(f"  {mark} promotes    {up}")
                lines.append(f"  {mark} suppresses  {down}")
            for rank in range(n_examples):
                if rank < tail.strength.shape[1] and float(tail.strength[place, rank]) > 0:
                    strength = float(tail.strength[place, rank]) * (-1 if side else 1)
                    lines.append(f"  {mark} {strength:8.3g}  {self._context(side, place, rank)}")
        return "\n".join(lines)

    def save_html(
        self,
        path: str | Path,
        *,
        latents: Sequence[int] | None = None,
        n_examples: int | None = None,
        max_bytes: int = 12_000_000,
    ) -> Path:
        """Write one self-contained page: a table of the latents and a card for each.

        Args:
            path: Where it goes.
            latents: Which to include; all that were watched by default.
            n_examples: Contexts per latent and sign; as many as fit into `max_bytes` by default,
                at least 2. What is left out is said on the page.
            max_bytes: About how large the examples may make the file.

        Raises:
            ConfigError: A latent was not watched.
            DiskFullError: No room; an older file is left as it was.
        """
        part = self if latents is None else self.only(latents)
        html = latent_page(
            latents=part.latents,
            tails=part.tails,
            ids=part.ids,
            documents=part.documents,
            document_names=part.document_names,
            strings=part.strings,
            effects=part.effects,
            effects_missing=part.effects_missing,
            n_tokens=part.n_tokens,
            before=part.context[0],
            about=part.about,
            n_examples=n_examples,
            max_bytes=max_bytes,
            opening=next(iter(part.pick(1)), int(part.latents[0])),
        )
        write_bytes(path, html.encode())
        return Path(path)

    def only(self, latents: Sequence[int]) -> "FirstLook":
        """The same look at fewer latents.

        Raises:
            ConfigError: A latent was not watched, or none is named.
        """
        if not latents:
            raise ConfigError("No latents were named; name at least one.")
        places = torch.tensor([self._place(latent) for latent in sorted(set(latents))])
        return dataclasses.replace(
            self,
            latents=self.latents[places],
            tails=tuple(tail[places] for tail in self.tails),
            ids=tuple(part[places] for part in self.ids),
            documents=tuple(part[places] for part in self.documents),
            effects=None if self.effects is None else self.effects[places],
        )

    def _place(self, latent: int) -> int:
        place = int(torch.searchsorted(self.latents, latent))
        if place == len(self.latents) or int(self.latents[place]) != latent:
            raise ConfigError(
                f"Latent {latent} was not looked at; {len(self.latents):,} were, from "
                f"{int(self.latents[0])} to {int(self.latents[-1])}."
            )
        return place

    def _pushed(self, place: int, negative: bool, n: int = 6) -> tuple[str, str]:
        assert self.effects is not None
        up, down = (
            "  ".join(plain(self.strings[int(token)]).strip() or "␣" for token in ids[place, :n])
            for ids in (self.effects.promoted, self.effects.suppressed)
        )
        return (down, up) if negative else (up, down)

    def _context(self, side: int, place: int, rank: int) -> str:
        pieces = []
        for offset, token in enumerate(self.ids[side][place, rank].tolist()):
            if token >= 0:
                text = plain(self.strings[token])
                word = text.lstrip(" ")
                peak = f"{text[: len(text) - len(word)]}«{word or text}»"
                pieces.append(peak if offset == self.context[0] else text)
        return "".join(pieces).strip()


def look(
    sae: SAE,
    model: LanguageModel,
    tokens: Tokens,
    *,
    latents: Sequence[int] | None = None,
    n_examples: int = 8,
    context: tuple[int, int] = (12, 8),
    store: ActivationStore | None = None,
    max_tokens: int | None = None,
    rows_per_batch: int = 16,
    outlier_factor: float | None = 4.0,
    allow_other_model: bool = False,
    progress: Callable[..., None] | None = None,
) -> FirstLook:
    """Look at every latent once.

    Args:
        sae: The dictionary; `sae.hook` says where it reads.
        model: The model.
        tokens: The text; a context shown is at most one per row and latent.
        latents: Which latents to watch; all by default.
        n_examples: Strongest contexts kept per latent and sign.
        context: Tokens shown before and after the peak, within its document.
        store: If it recorded a norm limit, that limit is used to exclude outliers.
        max_tokens: Rows are visited until this many positions are; all by default.
        rows_per_batch: Rows in one forward pass.
        outlier_factor: Without a recorded limit: positions with a norm above this many times the
            median of the first batch are excluded. None keeps all.
        allow_other_model: Look even with other weights than the dictionary was trained on.
        progress: Called with (done, in all, what).

    Raises:
        ConfigError: The dictionary has no hook point, or a latent does not exist.
        DataError: Every position is excluded.
        ModelError: The dictionary was trained on other weights.
    """
    if not allow_other_model:
        require_same_model(sae, model.identity.to_json())
    watched = _watched(sae, latents)
    if sae.hook is None:
        raise ConfigError(
            "The dictionary does not say which hook point it belongs to. Set sae.hook, for "
            "example sae.hook = 'blocks.15.hook_resid_post'."
        )
    if max_tokens is not None:
        tokens = tokens[: math.ceil(max_tokens / tokens.length)]
    limit = recorded_norm_limit(store.at(sae.hook)) if store is not None else None
    if limit is None:
        limit = measured_norm_limit(model, tokens, sae.hook, outlier_factor, rows_per_batch)
    collectors = [
        TailCollector(watched, sae.d_sae, sign=sign, n_examples=n_examples, context=context)
        for sign in ((1, -1) if sae.activation.signed else (1,))
    ]
    n_tokens = _stream(sae, model, tokens, limit, rows_per_batch, collectors, progress)
    tails = tuple(collector.result() for collector in collectors)
    effects, missing = logit_effects_of(sae, model, watched)
    ids = tuple(_shown_ids(tail, tokens, context) for tail in tails)
    return FirstLook(
        latents=watched,
        tails=tails,
        ids=ids,
        context=context,
        documents=tuple(_documents(tail, tokens) for tail in tails),
        document_names=list(tokens.document_names),
        strings=_strings(model, ids, effects),
        effects=effects,
        effects_missing=missing,
        n_tokens=n_tokens,
        about=_about(sae, model, tokens, limit),
    )


def one_in(count: int, total: int) -> str:
    """A density one can picture: "1 in 840"; "never" for zero."""
    if not count:
        return "never"
    each = total / count
    return f"1 in {each:,.1f}" if each < 10 else f"1 in {each:,.0f}"


def plain(text: str) -> str:
    """A token as one line of a terminal: line breaks shown, control characters replaced."""
    text = text.replace("\r\n", "↵").replace("\n", "↵").replace("\r", "↵").replace("\t", "⇥")
    return "".join(one if one.isprintable() else "�" for one in text)


def _watched(sae: SAE, latents: Sequence[int] | None) -> Int[Tensor, " latent"]:
    if latents is None:
        return torch.arange(sae.d_sae)
    wrong = [latent for latent in latents if not 0 <= latent < sae.d_sae]
    if wrong or not latents:
        raise ConfigError(
            f"latents={list(wrong)[:5]} are not in the dictionary, which has 0 to {sae.d_sae - 1}."
            if wrong
            else "No latents were named; leave `latents` out to look at all."
        )
    return torch.tensor(sorted(set(latents)))


def _stream(
    sae: SAE,
    model: LanguageModel,
    tokens: Tokens,
    limit: float | None,
    rows_per_batch: int,
    collectors: Sequence[TailCollector],
    progress: Callable[..., None] | None,
) -> int:
    hook, n_tokens = str(sae.hook), 0
    for start in range(0, tokens.n_rows, rows_per_batch):
        part = tokens[start : start + rows_per_batch]
        ids = part.ids.to(model.device, torch.int64)
        found = model.activations(ids, [hook], part.mask if part.padded else None)[hook]
        measured = edited_positions(found, part.kept, limit)
        codes = sae.encode(found[measured].to(sae.device).float()).to("cpu")
        window = TokenWindow(measured.cpu(), part.document, start)
        for collector in collectors:
            collector.update(codes, window)
        n_tokens += codes.n_tokens
        if progress is not None:
            progress(start * tokens.length + part.n_tokens, tokens.n_tokens, "contexts")
    if not n_tokens:
        raise DataError(
            f"All {tokens.n_tokens:,} token positions are excluded (first positions, special "
            "tokens, padding, norm outliers), so there is nothing to look at. Use other text."
        )
    return n_tokens


def _shown_ids(tail: Tail, tokens: Tokens, context: tuple[int, int]) -> Int[Tensor, "a b window"]:
    steps = torch.arange(-context[0], context[1] + 1)
    row, position = tail.row.long().clamp_min(0)[..., None], tail.position.long()[..., None]
    places = position + steps
    inside = (places >= 0) & (places < tokens.length) & (position >= 0)
    places = places.clamp(0, tokens.length - 1)
    same = tokens.document[row, places] == tokens.document[row, position.clamp_min(0)]
    return torch.where(inside & same, tokens.ids[row, places], -1)


def _documents(tail: Tail, tokens: Tokens) -> Int[Tensor, "latent n"]:
    found = tokens.document[tail.row.long().clamp_min(0), tail.position.long().clamp_min(0)]
    return torch.where(tail.row >= 0, found, -1)


def _strings(
    model: LanguageModel, ids: Sequence[Tensor], effects: LogitEffects | None
) -> dict[int, str]:
    parts = [part.flatten().long() for part in ids]
    if effects is not None:
        parts += [effects.promoted.flatten(), effects.suppressed.flatten()]
    unique = [token for token in torch.cat(parts).unique().tolist() if token >= 0]
    return dict(zip(unique, model.token_strings(unique), strict=True))


def _about(sae: SAE, model: LanguageModel, tokens: Tokens, limit: float | None) -> dict[str, Any]:
    outliers = f", positions whose norm exceeds {limit:,.1f}" if limit is not None else ""
    return {
        "model": model.name,
        "hook": sae.hook,
        "dictionary": f"{sae.d_sae:,} latents of {sae.activation!r}",
        "d_sae": sae.d_sae,
        "corpus": str(tokens.corpus.get("name") or "an unnamed corpus"),
        "excluded": f"Left out: the first position of each row, special tokens, padding{outliers}.",
    }
