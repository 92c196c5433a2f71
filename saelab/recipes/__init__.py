"""Recipes: each family of dictionaries with the settings its paper used, one a file.

A recipe is a frozen dataclass that names an activation function and the terms of an objective; its
fields are the flags of `saelab train --family NAME`, of `saelab sweep`, and of its program in
trainers/. A recipe is imported when it is asked for.
"""

from saelab.recipes.base import Recipe
from saelab.recipes.families import families, family_of, paper_of, recipe_of
from saelab.recipes.making import made_by, make_dictionary, record_recipe

__all__ = [
    "Recipe",
    "families",
    "family_of",
    "made_by",
    "make_dictionary",
    "paper_of",
    "recipe_of",
    "record_recipe",
]
