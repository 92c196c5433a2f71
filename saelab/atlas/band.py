"""A band of latents, and what several of its tables need."""

from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.atlas.codes import CodeShards
from saelab.atlas.config import AtlasConfig
from saelab.atlas.cooccurrence import FiringMatrix
from saelab.atlas.corpus import Corpus, Windows, priorities
from saelab.atlas.corpus_windows import CorpusWindows
from saelab.atlas.directions import LogitShape, heads_of, logit_shapes, nearest, written
from saelab.atlas.profiles import FamilyCounts, families_of
from saelab.atlas.spelling import Spelling
from saelab.atlas.tail_pairs import Chosen, TailPairs, choose_examples
from saelab.models import LanguageModel
from saelab.sae import SAE

__all__ = ["Band", "BandSources"]

NEAR_TOKENS, NEAR_PLACES = 3, 8
"""A tail's commonest tokens, and places of each, looked at for near misses."""


@final
class BandSources:
    """What every band is made from.

    Args:
        sae: The dictionary.
        model: The model.
        corpus: The tokens.
        shards: Their codes.
        config: How.
    """

    def __init__(
        self,
        sae: SAE,
        model: LanguageModel,
        corpus: Corpus,
        shards: CodeShards,
        config: AtlasConfig,
    ) -> None:
        self.sae, self.model, self.corpus = sae, model, corpus
        self.shards, self.config = shards, config
        self.sides = 2 if sae.activation.signed else 1
        self.n_measured = corpus.n_measured
        self.directions = written(sae)
        self.unit = torch.nn.functional.normalize(self.directions, dim=1)
        self.families = families_of(corpus)
        self.spelling = Spelling.of(model, corpus.ids)
        self.windows = CorpusWindows.of(corpus, config)
        self.firing = FiringMatrix.of(
            shards, corpus, self.sides, config.cooccurrence_tokens, config.seed
        )
        self.n_heads = heads_of(sae, model, config.n_heads)

    def band(self, first: int, stop: int) -> "Band":
        """The latents `first` to `stop - 1`."""
        return Band(self, TailPairs.of(self.shards.pairs(first, stop), first, stop, self.sides))


@final
@dataclass(frozen=True, eq=False)
class Band:
    """One band; each property is computed once, when it is first asked for."""

    sources: BandSources
    """What it is made from."""
    tails: TailPairs
    """Its pairs."""

    @property
    def latents(self) -> Int[Tensor, " latent"]:
        """Its latents."""
        return torch.arange(self.tails.first, self.tails.first + self.tails.n_latents)

    @cached_property
    def count(self) -> Int[Tensor, " tail"]:
        """Tokens on which each tail fires."""
        return self.tails.count()

    @cached_property
    def sum(self) -> Float[Tensor, " tail"]:
        """Sum of |activation| of each tail."""
        return self.tails.sum()

    @cached_property
    def chosen(self) -> Chosen:
        """Pairs that become examples."""
        return choose_examples(self.tails, self.sources.corpus, self.sources.config)

    @cached_property
    def example_windows(self) -> Windows:
        """What stands around them."""
        config = self.sources.config
        center = self.tails.token[self.chosen.pair]
        return self.sources.corpus.windows(center, config.before, config.after)

    @cached_property
    def key_counts(self) -> list[FamilyCounts]:
        """Keys on which its tails fire, by family."""
        return [FamilyCounts.of(family, self.tails) for family in self.sources.families]

    @cached_property
    def logit_shape(self) -> LogitShape | None:
        """Logit effects; None where they are not known."""
        sources = self.sources
        directions = sources.directions[self.latents]
        return logit_shapes(sources.sae, sources.model, directions, sources.config.logits)[0]

    @cached_property
    def nearest(self) -> tuple[Int[Tensor, "latent n"], Float[Tensor, "latent n"]]:
        """Nearest decoder directions and their cosines."""
        n = self.sources.config.neighbors
        return nearest(self.sources.unit, self.latents, n, by_size=self.tails.sides == 2)

    @cached_property
    def documents(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(tail, document, tokens) of every document a tail fires in, most tokens first."""
        document = self.sources.corpus.document[self.tails.token].numpy()
        span = int(document.max(initial=0)) + 1
        flat, count = np.unique(self.tails.tail.numpy() * span + document, return_counts=True)
        tail, document = flat // span, flat % span
        order = np.lexsort((document, -count, tail))
        return tail[order], document[order], count[order]

    @cached_property
    def silent(self) -> tuple[np.ndarray, Int[Tensor, " place"]]:
        """Tail and place of near misses: its commonest tokens, without the latent."""
        one = self.key_counts[0]
        near = np.flatnonzero(one.ranked(one.fires.astype(float)) < NEAR_TOKENS)
        tail = np.repeat(one.tail[near], NEAR_PLACES)
        token = np.repeat(one.family.tokens[one.key[near], 0], NEAR_PLACES)
        found = self.sources.windows.places_of(token, np.tile(np.arange(NEAR_PLACES), len(near)))
        tail, place = tail[found >= 0], torch.from_numpy(found[found >= 0])
        latent = torch.from_numpy(tail // self.tails.sides)
        silent = self.tails.values_at(latent, place[:, None]).squeeze(1) == 0
        tail, place = tail[silent.numpy()], place[silent]
        order = np.lexsort((priorities(place, self.sources.config.seed), tail))
        return tail[order], place[torch.from_numpy(order)]

    def keys(self, tail: np.ndarray) -> dict[str, np.ndarray]:
        """The columns latent and sign of some tails."""
        sides = self.tails.sides
        return {
            "latent": self.tails.first + tail // sides,
            "sign": np.where(tail % sides, -1, 1),
        }
