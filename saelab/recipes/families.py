"""Which families are there? One module of this package each; its name is the family's."""

import difflib
import importlib
import inspect
import pkgutil
from pathlib import Path

from saelab.errors import ConfigError
from saelab.recipes.base import Recipe

__all__ = ["families", "family_of", "paper_of", "recipe_of"]

_OTHER = frozenset({"base", "families", "making"})
_PACKAGE = "saelab.recipes"


def families() -> list[str]:
    """The names of all families, sorted.

    >>> "topk" in families()
    True
    """
    found = pkgutil.iter_modules([str(Path(__file__).parent)])
    return sorted(module.name for module in found if module.name not in _OTHER)


def recipe_of(family: str) -> type[Recipe]:
    """The recipe of a family.

    Raises:
        ConfigError: There is no such family.

    >>> recipe_of("topk").__name__
    'TopKRecipe'
    """
    family = family.replace("-", "_")
    if family not in families():
        near = difflib.get_close_matches(family, families(), n=1)
        hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(families())}."
        raise ConfigError(f"There is no family {family!r}. {hint}")
    module = importlib.import_module(f"{_PACKAGE}.{family}")
    (recipe,) = (
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, Recipe) and member.__module__ == module.__name__
    )
    return recipe


def family_of(recipe: Recipe) -> str:
    """The family of a recipe; for one that is not of this package, the name of its class."""
    package, _, name = type(recipe).__module__.rpartition(".")
    if package == _PACKAGE:
        return name
    return type(recipe).__name__.removesuffix("Recipe").lower()


def paper_of(recipe: type[Recipe]) -> str:
    """What a recipe is, where it is from and how it differs: its module's docstring."""
    return inspect.getdoc(inspect.getmodule(recipe)) or ""
