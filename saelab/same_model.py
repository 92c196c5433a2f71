"""Is this the model the dictionary was trained on?

A dictionary of another model, or of other weights of it, has the right width as often as not, and
every number about it is then quietly wrong.
"""

from collections.abc import Mapping
from typing import Any

from saelab.errors import ModelError
from saelab.sae import SAE

__all__ = ["mismatches", "require_same_model"]


def mismatches(sae: SAE, identity: Mapping[str, Any] | None) -> list[str]:
    """What differs between the recorded model and another; empty where either is unknown.

    Args:
        sae: Its metadata names the model it was trained on.
        identity: A model identity as JSON: name, weights (a hash), conventions.
    """
    known, identity = sae.metadata.get("model") or {}, identity or {}
    return [
        f"{field} {known[field]} (now {identity[field]})"
        for field in ("weights", "conventions")
        if known.get(field) and identity.get(field) and known[field] != identity[field]
    ]


def require_same_model(sae: SAE, identity: Mapping[str, Any] | None) -> None:
    """Refuse a model whose weights or weight conventions are not the recorded ones.

    Raises:
        ModelError: They differ.
    """
    if different := mismatches(sae, identity):
        names = (sae.metadata.get("model") or {}).get("name"), (identity or {}).get("name")
        raise ModelError(
            f"The dictionary was trained on {names[0]} with {' and '.join(different)}; the model "
            f"given is {names[1]}. Load the model it was trained on, or pass "
            "allow_other_model=True if the mismatch is what you study."
        )
