"""How is one point of a steering sweep measured, and kept so that a stopped sweep goes on?"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import CheckpointError, ConfigError
from saelab.fidelity import next_token_kl, next_token_loss
from saelab.files import read_json, write_json
from saelab.models import LanguageModel
from saelab.steering.active import intervene
from saelab.steering.concepts import Concept, Continuation
from saelab.steering.contrasts import token_rows
from saelab.steering.directions import Direction
from saelab.steering.interventions import PushAlong
from saelab.steering.results import Measured, PromptOutcome

__all__ = ["Kept", "Setting", "repetition"]

ROWS = 16
"""Rows in one forward pass."""


@final
class Setting:
    """What stays the same over all directions and strengths."""

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[str],
        concept: Concept,
        held_out: Sequence[str],
        max_new_tokens: int,
    ) -> None:
        self.model, self.concept, self.max_new_tokens = model, concept, max_new_tokens
        self.prompts, self.held_out = list(prompts), list(held_out)
        self.prompt_rows = token_rows(model, self.prompts)
        self.held_out_rows = token_rows(model, self.held_out)
        # The clean predictions of the held-out text are kept: one token is d_vocab floats.
        self.clean_logits = self._held_out_logits()
        self.first = 0 if model.bos_token_id is None else 1
        self.n_predictions = sum(len(row) - 1 for row in self.held_out_rows)
        if not self.n_predictions:
            raise ConfigError(
                "The held-out texts have one token each: there is nothing to predict."
            )

    def key(self) -> str:
        """A hash of all of it."""
        known = {
            "model": self.model.identity.to_json(),
            "prompts": self.prompts,
            "held_out": self.held_out,
            "concept": self.concept.to_json(),
            "max_new_tokens": self.max_new_tokens,
        }
        return _hash(json.dumps(known, sort_keys=True, default=str).encode())

    def measured(self, direction: Direction | None, strength: float, length: float) -> Measured:
        """A push of some length along a direction; without one, the model as it is."""
        found: dict[int, PromptOutcome] = {}
        for places in _of_one_length(self.prompt_rows):
            found |= self._outcomes(places, direction, length)
        ce, kl = self._side_effects(direction, length)
        return Measured(
            strength=strength,
            length=length,
            outcomes=tuple(found[place] for place in range(len(self.prompts))),
            ce_held_out=ce,
            kl_held_out=kl,
        )

    def _steered(self, direction: Direction | None, length: float) -> AbstractContextManager[None]:
        if direction is None:
            return nullcontext()
        return intervene(self.model, [PushAlong(direction.of_norm(1.0), length)])

    def _outcomes(
        self, places: Sequence[int], direction: Direction | None, length: float
    ) -> dict[int, PromptOutcome]:
        """Prompts of the same number of tokens, together."""
        rows = torch.stack([self.prompt_rows[place] for place in places])
        start = rows.shape[1]
        with self._steered(direction, length):
            ids = self.model.generate(rows, self.max_new_tokens)
            steered = self.model.logits(ids)[:, start - 1 : -1]
        clean = self.model.logits(ids)[:, start - 1 : -1]
        alone = self._losses_alone(ids[:, start:])
        return {
            place: self._outcome(place, ids[at], clean[at], steered[at], alone[at])
            for at, place in enumerate(places)
        }

    def _outcome(
        self, place: int, ids: Tensor, clean: Tensor, steered: Tensor, alone: Tensor
    ) -> PromptOutcome:
        start = len(self.prompt_rows[place])
        n = self._n_written(ids[start:])
        new, clean, steered = ids[start : start + n], clean[:n], steered[:n]
        one = Continuation(
            prompt=self.prompts[place],
            text=self.model.decode(new.tolist()),
            ids=ids[: start + n],
            start=start,
            predictions=steered.float().log_softmax(-1),
        )
        loss = float(next_token_loss(clean, new).mean())
        known = alone[: n - 1 + self.first]
        return PromptOutcome(
            prompt=one.prompt,
            text=one.text,
            concept=self.concept.score(self.model, one),
            loss=loss,
            relevance=float(known.mean()) - loss if len(known) else 0.0,
            repetition=repetition(new),
            kl=float(next_token_kl(clean, steered).mean()),
        )

    def _n_written(self, new: Int[Tensor, " new"]) -> int:
        """Tokens up to the first special one: a row that ended before the others is filled up."""
        ends = [at for at, one in enumerate(new.tolist()) if one in self.model.special_token_ids]
        return ends[0] + 1 if ends else len(new)

    def _losses_alone(self, new: Int[Tensor, "row new"]) -> Float[Tensor, "row prediction"]:
        """Losses of texts with no prompt before them; without a BOS, not of their first tokens."""
        if self.first:
            new = torch.cat([torch.full_like(new[:, :1], self.model.bos_token_id or 0), new], dim=1)
        if new.shape[1] < 2:
            return torch.zeros(len(new), 0)
        logits = self.model.logits(new)[:, :-1]
        return torch.stack(
            [next_token_loss(row, ids[1:]) for row, ids in zip(logits, new, strict=True)]
        )

    def _held_out_logits(self) -> list[Float[Tensor, "pos vocab"]]:
        """Scores after every token of the held-out texts but the last, text by text."""
        found: list[Tensor] = []
        for begin in range(0, len(self.held_out_rows), ROWS):
            some = self.held_out_rows[begin : begin + ROWS]
            longest = max(map(len, some))
            ids = torch.stack(
                [torch.nn.functional.pad(row, (0, longest - len(row))) for row in some]
            )
            mask = torch.tensor([[at < len(row) for at in range(longest)] for row in some])
            logits = self.model.logits(ids, mask)
            found += [one[: len(row) - 1].clone() for one, row in zip(logits, some, strict=True)]
        return found

    def _side_effects(self, direction: Direction | None, length: float) -> tuple[float, float]:
        with self._steered(direction, length):
            edited = self._held_out_logits()
        losses: list[Float[Tensor, " prediction"]] = []
        kls: list[Float[Tensor, " prediction"]] = []
        for row, clean, steered in zip(self.held_out_rows, self.clean_logits, edited, strict=True):
            losses.append(next_token_loss(steered, row[1:].to(steered.device)))
            kls.append(next_token_kl(clean, steered))
        return float(torch.cat(losses).mean()), float(torch.cat(kls).mean())


@final
class Kept:
    """Finished points in a folder, one file each; none without a folder."""

    def __init__(self, folder: Path | None, setting: str) -> None:
        self.folder, self.setting = folder, setting

    def get(self, direction: Direction | None, strength: float) -> Measured | None:
        """A point measured before, in the same setting."""
        path = self._path(direction, strength)
        if path is None or not path.exists():
            return None
        try:
            return Measured.from_json(read_json(path, "a finished point of a steering sweep"))
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} was altered: {error}. Delete it, and the point is measured again."
            ) from None

    def put(self, direction: Direction | None, strength: float, found: Measured) -> None:
        """Keep a point."""
        path = self._path(direction, strength)
        if path is not None:
            write_json(path, asdict(found))

    def _path(self, direction: Direction | None, strength: float) -> Path | None:
        if self.folder is None:
            return None
        own = b"" if direction is None else direction.of_norm(1.0).vector.numpy().tobytes()
        place = "" if direction is None else direction.hook
        name = _hash(f"{self.setting} {place} {strength!r} ".encode() + own)
        return self.folder / f"{name[:32]}.json"


def _of_one_length(rows: Sequence[Tensor]) -> list[list[int]]:
    """Places of rows that have the same length, so that they can be continued together."""
    found: dict[int, list[list[int]]] = {}
    for place, row in enumerate(rows):
        parts = found.setdefault(len(row), [[]])
        if len(parts[-1]) == ROWS:
            parts.append([])
        parts[-1].append(place)
    return [part for parts in found.values() for part in parts]


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def repetition(ids: Int[Tensor, " new"]) -> float:
    """Share of bigrams that occur earlier in the text, 0 to 1; 0 for a text of one token.

    >>> repetition(torch.tensor([1, 2, 1, 2, 1]))
    0.5
    """
    pairs = list(zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True))
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0
