"""How does a recipe become a dictionary? Open a store, train on it, say where it is from."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from saelab.distributed import ALONE, Ranks
from saelab.files import write_json
from saelab.recipes.base import Recipe
from saelab.recipes.families import family_of
from saelab.store import ActivationStore
from saelab.training import TrainResult, train

__all__ = ["made_by", "make_dictionary", "record_recipe"]


def make_dictionary(
    recipe: Recipe,
    store: Path,
    out: Path,
    progress: Callable[[int, int, str], None] | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    device: str = "cpu",
    ranks: Ranks = ALONE,
) -> TrainResult:
    """Train one dictionary on a store; run again to go on after an interruption.

    Args:
        recipe: Family, sizes and budget.
        store: Folder of a finished harvest.
        out: Run folder.
        progress: Called after every step.
        config: Fields of `TrainConfig` in place of the recipe's.
        device: Where to train; where latents are divided among processes each has its own.
        ranks: The processes that train it together.
    """
    activations = ActivationStore.open(store, recipe.hook)
    whole = recipe.dictionary(activations)
    result = train(
        whole if ranks.divides_latents else whole.to(device),
        activations,
        replace(recipe.training(), **(config or {})),
        out,
        terms=recipe.terms(),
        upkeep=recipe.upkeep(),
        ranks=ranks,
        progress=progress,
    )
    if ranks.rank == 0:
        record_recipe(out, made_by(recipe))
    return result


def made_by(recipe: Recipe) -> dict[str, Any]:
    """Family and settings of a recipe, as JSON can hold them."""
    return {"family": family_of(recipe), "settings": asdict(recipe)}


def record_recipe(run: str | Path, made_by: Mapping[str, Any]) -> None:
    """Write in a run folder which recipe it followed."""
    write_json(Path(run) / "recipe.json", dict(made_by))
