"""How good is this dictionary? Reconstruction, sparsity, effect on the model, and its geometry.

Everything is streamed; the numbers do not depend on batch sizes. Positions that are excluded (see
`positions`) are excluded from every number. What a transcoder reconstructs is its target, so every
number of reconstruction and every edit of the model is of what it writes.
"""

import dataclasses
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from jaxtyping import Float
from torch import Tensor

from saelab.decoder_geometry import DecoderGeometry, decoder_geometry
from saelab.errors import CheckpointError, ConfigError, ShapeError
from saelab.evaluation_page import evaluation_page
from saelab.fidelity import LossEffects, loss_effects
from saelab.files import provenance, read_json, write_bytes
from saelab.measuring import (
    EvaluateConfig,
    Progress,
    find_limits,
    measured_on_model,
    measured_on_store,
    recorded,
)
from saelab.metrics import Reconstruction
from saelab.models import LanguageModel
from saelab.sae import SAE
from saelab.same_model import mismatches, require_same_model
from saelab.store import ActivationStore
from saelab.tokens import Tokens

__all__ = ["EvaluateConfig", "Evaluation", "evaluate"]

FORMAT = "saelab-evaluation"
VERSION = 1


@final
@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All numbers of one dictionary on one evaluation set, with what they were measured on."""

    dictionary: dict[str, Any]
    """hook, d_in, d_sae and activation function; of a transcoder hook_out and d_out as well."""
    reconstruction: Reconstruction
    """Reconstruction and sparsity."""
    losses: LossEffects | None
    """Effect on the model's predictions; None without a model."""
    geometry: DecoderGeometry | None
    """The decoder directions; None if it was left out."""
    data: dict[str, Any]
    """Model, corpus and store that were measured."""
    excluded: dict[str, Any]
    """What was left out of every number, and how many positions."""
    warnings: list[str]
    """What a reader must know before believing the numbers."""
    config: dict[str, Any]
    """The `EvaluateConfig`."""
    provenance: dict[str, Any]
    """Package versions, platform and source commit."""

    @property
    def fvu(self) -> float | None:
        """Fraction of variance unexplained."""
        return self.reconstruction.fvu

    @property
    def l0(self) -> float | None:
        """Mean number of active latents per token."""
        return self.reconstruction.l0

    @property
    def density(self) -> Float[Tensor, " latent"]:
        """Share of tokens on which each latent is active."""
        return self.reconstruction.density

    @property
    def dead_share(self) -> float | None:
        """Share of latents that fired on none of the tokens."""
        return self.reconstruction.dead_share

    @property
    def ce_recovered_zero(self) -> float | None:
        """Cross-entropy recovered, against zero ablation; None without a model."""
        return self.losses.ce_recovered_zero if self.losses else None

    @property
    def ce_recovered_mean(self) -> float | None:
        """Cross-entropy recovered, against mean ablation; None without a model."""
        return self.losses.ce_recovered_mean if self.losses else None

    @property
    def kl(self) -> float | None:
        """KL(clean || spliced), nats per prediction; None without a model."""
        return self.losses.kl_spliced if self.losses else None

    def summary(self) -> dict[str, float | None]:
        """The headline numbers by name."""
        names = ("fvu", "l0", "dead_share", "ce_recovered_zero", "ce_recovered_mean", "kl")
        one = self.reconstruction
        more = {"cosine": one.cosine, "relative_bias": one.relative_bias}
        return {**{name: getattr(self, name) for name in names}, **more}

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` gives the same evaluation back."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "summary": self.summary(),
            **dataclasses.asdict(self),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Evaluation":
        """What `to_json` wrote.

        Raises:
            CheckpointError: It is of another kind, a newer version, or incomplete.
        """
        if value.get("format") != FORMAT or value.get("version") != VERSION:
            raise CheckpointError(
                f"This is {value.get('format')!r} version {value.get('version')!r}; this saelab "
                f"reads {FORMAT!r} version {VERSION}. Evaluate again, or update saelab."
            )
        parts = {
            "reconstruction": Reconstruction,
            "losses": LossEffects,
            "geometry": DecoderGeometry,
        }
        try:
            fields = {field.name: value[field.name] for field in dataclasses.fields(cls)}
            for name, part in parts.items():
                if fields[name] is not None:
                    fields[name] = part(**fields[name])
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"The evaluation is incomplete: {error}.") from None
        return cls(**fields)

    def save(self, folder: str | Path) -> Path:
        """Write evaluation.json and evaluation.html (self-contained); returns the page's path.

        Raises:
            DiskFullError: No room; older files are left as they were.
        """
        folder = Path(folder)
        value = self.to_json()
        # one line per top-level entry: readable, and per-latent lists do not become pages
        lines = [f" {json.dumps(name)}: {_one_line(part)}" for name, part in value.items()]
        write_bytes(folder / "evaluation.json", ("{\n" + ",\n".join(lines) + "\n}\n").encode())
        html = evaluation_page(
            dictionary=self.dictionary,
            reconstruction=self.reconstruction,
            losses=self.losses,
            geometry=self.geometry,
            data=self.data,
            excluded=self.excluded,
            warnings=self.warnings,
        )
        write_bytes(folder / "evaluation.html", html.encode())
        return folder / "evaluation.html"

    @classmethod
    def load(cls, folder: str | Path) -> "Evaluation":
        """Read what `save` wrote.

        Raises:
            CheckpointError: It is missing, altered, or of a newer version.
        """
        return cls.from_json(read_json(Path(folder) / "evaluation.json", "an evaluation"))


def evaluate(
    sae: SAE,
    store: ActivationStore | None = None,
    *,
    model: LanguageModel | None = None,
    tokens: Tokens | None = None,
    config: EvaluateConfig | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a dictionary.

    Reconstruction and sparsity come from the store, or without one from running the model over the
    tokens. With a model and tokens, the losses under splicing and ablation are measured as well.
    Use text the dictionary was not trained on.

    Args:
        sae: The dictionary.
        store: Activations at its hook point; of a transcoder, at both.
        model: The model it was trained on.
        tokens: Held-out text.
        config: How much to measure.
        progress: Called with (done, in all, what).

    Raises:
        ConfigError: There is nothing to measure on, or half of it.
        ShapeError: The activations are not as wide as the dictionary.
        DataError: Every token is excluded.
        ModelError: The dictionary was trained on other weights.
    """
    config = config or EvaluateConfig()
    _check(sae, store, model, tokens)
    notes = _check_models(sae, model, store, config.allow_other_model)
    if store is not None:
        store = _at_hook(sae, store, notes)
    limits = find_limits(sae, store, model, tokens, config)
    if store is not None:
        metrics, excluded = measured_on_store(sae, store, config, progress), {}
    else:
        assert model is not None
        assert tokens is not None
        metrics, excluded = measured_on_model(sae, model, tokens, limits, config, progress)
    losses = None
    if model is not None and tokens is not None and config.max_loss_tokens:
        losses = loss_effects(
            sae,
            model,
            tokens[: max(1, config.max_loss_tokens // tokens.length)],
            metrics.mean,
            norm_limit=limits[0],
            norm_limit_out=limits[1],
            rows_per_batch=config.rows_per_batch,
            progress=progress,
        )
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return Evaluation(
        dictionary=_described(sae),
        reconstruction=metrics.result(),
        losses=losses,
        geometry=_geometry(sae, config),
        data=_data(sae, store, model, tokens),
        excluded={**recorded(sae, limits), **excluded},
        warnings=notes,
        config=dataclasses.asdict(config),
        provenance=provenance(),
    )


def _check(
    sae: SAE, store: ActivationStore | None, model: LanguageModel | None, tokens: Tokens | None
) -> None:
    if (model is None) != (tokens is None):
        given, lacking = ("a model", "tokens") if tokens is None else ("tokens", "a model")
        raise ConfigError(f"evaluate was given {given} but no {lacking}; pass both, or neither.")
    if store is None and model is None:
        raise ConfigError("evaluate needs a store, or a model and tokens, to measure on.")
    if model is not None and sae.hook is None:
        raise ConfigError(
            "The dictionary does not say which hook point it belongs to. Set sae.hook, for "
            "example sae.hook = 'blocks.15.hook_resid_post'."
        )


def _at_hook(sae: SAE, store: ActivationStore, notes: list[str]) -> ActivationStore:
    if sae.hook in store.hooks:
        store = store.at(sae.hook)
    elif sae.hook is not None and store.identity.get("model"):
        notes.append(
            f"The dictionary belongs to {sae.hook}, but the store holds {store.hook}: the "
            "reconstruction numbers are of a hook point it was not trained on."
        )
    if store.d_in != sae.d_in:
        raise ShapeError(
            f"The store's activations at {store.hook} are {store.d_in} wide; the dictionary reads "
            f"{sae.d_in}. Evaluate it on a store of {sae.hook}."
        )
    if sae.is_transcoder and store.widths.get(str(sae.hook_out)) != sae.d_out:
        raise ShapeError(
            f"The dictionary writes width {sae.d_out} at {sae.hook_out}; the store holds "
            f"{', '.join(f'{name} ({width})' for name, width in store.widths.items())}. A "
            "transcoder is evaluated on a store of both its hook points."
        )
    return store


def _geometry(sae: SAE, config: EvaluateConfig) -> DecoderGeometry | None:
    if not config.max_geometry_latents or sae.d_sae < 2:
        return None
    return decoder_geometry(sae.W_dec, sae.W_enc, config.max_geometry_latents)


def _described(sae: SAE) -> dict[str, Any]:
    out = {"hook_out": sae.hook_out, "d_out": sae.d_out} if sae.is_transcoder else {}
    return {
        "hook": sae.hook,
        **out,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "activation": repr(sae.activation),
        "signed": bool(sae.activation.signed),
    }


def _data(
    sae: SAE, store: ActivationStore | None, model: LanguageModel | None, tokens: Tokens | None
) -> dict[str, Any]:
    known = sae.metadata.get("model")
    return {
        "model": model.identity.to_json() if model is not None else known,
        "tokens": None
        if tokens is None
        else {"sha256": tokens.sha256, "n_kept": tokens.n_kept, "corpus": tokens.corpus},
        "store": None if store is None else store.identity,
    }


def _check_models(
    sae: SAE, model: LanguageModel | None, store: ActivationStore | None, allow_other: bool
) -> list[str]:
    """Refuse a model the dictionary was not trained on, or say so where that was asked for."""
    given = [None if model is None else model.identity.to_json()]
    given.append(None if store is None else store.identity.get("model"))
    if not allow_other:
        for identity in given:
            require_same_model(sae, identity)
    return [
        f"The model is not the one the dictionary was trained on: {different}."
        for identity in given
        for different in mismatches(sae, identity)
    ]


def _one_line(part: Any) -> str:
    return json.dumps(part, ensure_ascii=False, allow_nan=False)
