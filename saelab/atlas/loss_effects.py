"""How much does a latent help the model predict the next token, where it fires?

Direct: take what the latent writes out of the last residual stream at one position, through the
final norm and the unembedding alone; what later layers make of it is not counted. Full: run the
whole model with the latent at zero in one row (the dictionary's error stays), and compare the
log-probability of every later token. Both are log-probability as it is minus without the latent,
in nats: above zero where the latent helps.

At the last layer's residual stream the two agree at the token after a lone activation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.atlas.directions import output_hook, written
from saelab.atlas.manifest import MANIFEST, read_manifest
from saelab.atlas.parquet import read_table, table_of, write_table
from saelab.errors import ConfigError
from saelab.fidelity import edited_positions, scored_predictions
from saelab.files import folder_lock, write_json
from saelab.logit_effects import RESIDUAL_KINDS
from saelab.models import LanguageModel
from saelab.sae import SAE
from saelab.tokens import Tokens

if TYPE_CHECKING:
    from saelab.atlas.opened import Atlas

__all__ = ["measure_loss_effects"]

TABLE = "loss_effects"


def measure_loss_effects(
    atlas: "Atlas",
    sae: SAE,
    model: LanguageModel,
    tokens: Tokens,
    latents: Sequence[int],
    *,
    n_examples: int = 4,
    full: bool = True,
    rows_per_batch: int = 8,
    progress: Callable[[int, int, str], None] | None = None,
) -> None:
    """Measure the strongest examples of some latents, and keep the numbers in the atlas.

    Args:
        atlas: Its cards show the result from then on.
        sae: The dictionary it is of.
        model: The model it was built with.
        tokens: The text it was built from, in the same rows.
        latents: Which latents.
        n_examples: Strongest examples per side of each.
        full: Ablate in the whole model too: one forward pass of a row per example.
        rows_per_batch: Rows in one forward pass.
        progress: Called with (examples done, in all, what).

    Raises:
        ConfigError: The text is not the one the atlas was built from.
    """
    tokens = tokens[: atlas.about["n_rows"]]
    if tokens.sha256 != atlas.identity["tokens"]:
        raise ConfigError(
            f"{atlas.folder} was built from other tokens, so its rows mean something else. Give "
            "the same text, in rows of the same length."
        )
    rows = atlas.sql(
        "SELECT latent, sign, number, row, position, peak, len(token_ids) AS width FROM examples "
        "WHERE top_rank < ? AND latent IN (SELECT unnest(?)) ORDER BY latent, sign DESC, number",
        [n_examples, [int(latent) for latent in latents]],
    ).to_dict("records")
    meter = _Meter(sae, model, tokens, atlas.about["norm_limit"], full)
    found: list[dict[str, Any]] = []
    for start in range(0, len(rows), rows_per_batch):
        found += meter.measure(rows[start : start + rows_per_batch])
        if progress is not None:
            progress(len(found), len(rows), "examples")
    _keep(atlas.folder, found)


@final
class _Meter:
    """Measures batches of examples, one token row each."""

    def __init__(
        self, sae: SAE, model: LanguageModel, tokens: Tokens, limit: float | None, full: bool
    ) -> None:
        self.sae, self.model, self.tokens = sae, model, tokens
        self.limit, self.full = limit, full
        self.directions = written(sae)
        self.hook = output_hook(sae)
        self.last = f"blocks.{model.n_layers - 1}.hook_resid_post"
        kind = model.hook_point(self.hook).kind
        self.direct = sae.d_out == model.d_model and kind in RESIDUAL_KINDS

    def measure(self, examples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The effects on each example's tokens."""
        latent = torch.tensor([one["latent"] for one in examples])
        row = torch.tensor([one["row"] for one in examples])
        batch = _Batch(self.tokens.ids[row].long(), self.tokens.mask[row], self.tokens.kept[row])
        scored = scored_predictions(batch.kept, self.tokens.document[row])
        active = self._activations(batch, latent)
        change = active[..., None] * self.directions[latent][:, None, :]
        effects = {
            "direct": self._direct(batch, change, active) if self.direct else None,
            "ablation": self._ablation(batch, change) if self.full else None,
        }
        return [
            {
                "latent": one["latent"], "sign": one["sign"], "number": one["number"],
                **{
                    name: None if effect is None else _window(one, effect[i], scored[i])
                    for name, effect in effects.items()
                },
            }
            for i, one in enumerate(examples)
        ]  # fmt: skip

    def _activations(
        self, batch: "_Batch", latent: Int[Tensor, " row"]
    ) -> Float[Tensor, "row pos"]:
        hook = str(self.sae.hook)
        x = self.model.activations(batch.ids, [hook], batch.mask)[hook]
        measured = edited_positions(x, batch.kept, self.limit).cpu()
        codes = self.sae.encode(x[measured].to(self.sae.device).float()).to("cpu")
        at_row, at_position = measured.nonzero(as_tuple=True)
        mine = codes.indices == latent[at_row[codes.tokens]]
        token = codes.tokens[mine]
        active = torch.zeros(batch.ids.shape)
        active[at_row[token], at_position[token]] = codes.values[mine].float()
        return active

    def _direct(
        self, batch: "_Batch", change: Float[Tensor, "row pos d"], active: Float[Tensor, "row pos"]
    ) -> Float[Tensor, "row pos_minus_one"]:
        """Of each activation on the token after it; NaN where the latent is silent."""
        x = self.model.activations(batch.ids, [self.last], batch.mask)[self.last].cpu()
        effect = torch.full((len(x), x.shape[1] - 1), float("nan"))
        row, position = active[:, :-1].nonzero(as_tuple=True)
        if not len(row):
            return effect
        targets = batch.ids[row, position + 1]
        streams = x[row, position].float()
        with_it, without = (
            self._log_probabilities(some, targets)
            for some in (streams, streams - change[row, position])
        )
        effect[row, position] = with_it - without
        return effect

    def _log_probabilities(
        self, streams: Float[Tensor, "place d"], targets: Int[Tensor, " place"]
    ) -> Float[Tensor, " place"]:
        """Of target tokens, read from last residual streams by the model's own final norm.

        The model runs on rows of one token, and what it would carry to the last layer is replaced:
        every model that can be edited can be read so, whatever its norm, scale or soft cap.
        """
        found = []
        for some, wanted in zip(streams.split(256), targets.split(256), strict=True):
            replaced = some.to(self.model.device, self.model.dtype)[:, None, :]
            with self.model.editing({self.last: lambda _, value=replaced: value}):
                logits = self.model.logits(wanted[:, None].to(self.model.device))[:, 0].float()
            picked = logits.log_softmax(1).cpu().gather(1, wanted[:, None]).squeeze(1)
            found.append(picked)
        return torch.cat(found)

    def _ablation(
        self, batch: "_Batch", change: Float[Tensor, "row pos d"]
    ) -> Float[Tensor, "row pos_minus_one"]:
        def without(x: Tensor) -> Tensor:
            return x - change.to(x)

        clean = self.model.logits(batch.ids, batch.mask)
        with self.model.editing({self.hook: without}):
            edited = self.model.logits(batch.ids, batch.mask)
        targets = batch.ids[:, 1:, None].to(clean.device)
        one, other = (
            logits[:, :-1].float().log_softmax(2).gather(2, targets).squeeze(2).cpu()
            for logits in (clean, edited)
        )
        return one - other


@final
@dataclass(frozen=True, eq=False)
class _Batch:
    """Token rows."""

    ids: Int[Tensor, "row pos"]
    all_real: Tensor
    kept: Tensor

    @property
    def mask(self) -> Tensor | None:
        """None where no row is padded."""
        return None if bool(self.all_real.all()) else self.all_real


def _window(
    one: dict[str, Any], effect: Float[Tensor, " prediction"], scored: Tensor
) -> list[float | None]:
    """Effects on the tokens an example shows; prediction t is of the token at t + 1."""
    first = one["position"] - one["peak"]
    found: list[float | None] = []
    for position in range(first, first + one["width"]):
        known = position > 0 and bool(scored[position - 1])
        value = float(effect[position - 1]) if known else float("nan")
        found.append(None if value != value else value)
    return found


def _keep(folder: Path, found: Sequence[dict[str, Any]]) -> None:
    """Put the new rows among the old; where both measured something, the new one stays."""
    with folder_lock(folder):
        path = folder / f"{TABLE}.parquet"
        rows = {(r["latent"], -r["sign"], r["number"]): r for r in read_table(path).to_pylist()}
        for one in found:
            key = (one["latent"], -one["sign"], one["number"])
            old = rows.get(key, {})
            rows[key] = {name: old.get(name) if one[name] is None else one[name] for name in one}
        merged = [rows[key] for key in sorted(rows)]
        names = ("latent", "sign", "number", "direct", "ablation")
        columns = {name: [row[name] for row in merged] for name in names}
        manifest = read_manifest(folder)
        manifest["files"][path.name] = write_table(path, table_of(TABLE, columns))
        write_json(folder / MANIFEST, manifest)
