"""Can this dictionary be finetuned in this model, and which run would it be?"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from saelab.errors import ConfigError
from saelab.finetuning.config import FinetuneConfig
from saelab.models import LanguageModel
from saelab.objectives import Term
from saelab.sae import SAE
from saelab.same_model import require_same_model
from saelab.tokens import Tokens

__all__ = ["checked_hook", "describe_finetuning"]


def checked_hook(sae: SAE, model: LanguageModel, config: FinetuneConfig) -> str:
    """The hook point to splice at, once everything fits.

    Raises:
        ConfigError: The dictionary cannot be spliced, or would be changed by the first step.
        HookPointError: The model lacks a hook point.
        ModelError: The dictionary was trained on another model.
    """
    if sae.hook is None or sae.is_transcoder:
        found = "no hook point" if sae.hook is None else f"{sae.hook} -> {sae.hook_out}"
        raise ConfigError(
            f"Finetuning needs a dictionary that reads and writes one hook point; this one has "
            f"{found}. Set sae.hook, or finetune an autoencoder."
        )
    if sae.activation.reads:
        raise ConfigError(f"{sae.activation} selects by other activations than finetuning reads.")
    require_same_model(sae, asdict(model.identity))
    for name in (sae.hook, *config.downstream):
        model.hook_point(name)
    norms = torch.linalg.vector_norm(sae.W_dec.detach().float(), dim=1)
    if config.decoder == "unit" and not torch.allclose(norms, torch.ones_like(norms), atol=1e-2):
        raise ConfigError(
            f"The decoder directions have norms from {norms.min():.3g} to {norms.max():.3g}, and "
            "finetuning would scale them to 1. Use FinetuneConfig(decoder='free')."
        )
    return sae.hook


def describe_finetuning(
    sae: SAE, model: LanguageModel, tokens: Tokens, config: FinetuneConfig, terms: Sequence[Term]
) -> dict[str, Any]:
    """What a run is asked to do, from which weights and on what: the content of run.json."""
    settings = {k: v for k, v in sae.settings().items() if k not in ("metadata", "normalization")}
    return {
        "format": "saelab-finetune",
        "version": 1,
        "config": config.to_json(),
        "resolved": {},
        "sae": settings,
        "terms": [term.to_json() for term in terms],
        "upkeep": [],
        "data": {
            "tokens": tokens.sha256,
            "model": asdict(model.identity),
            "dictionary": _fingerprint(sae),
        },
    }


def _fingerprint(sae: SAE) -> str:
    """SHA-256 of the dictionary's weights, in the order of their names."""
    digest = hashlib.sha256()
    for name, value in sorted(sae.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
