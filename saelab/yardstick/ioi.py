"""Who gets the drink? Prompts of indirect object identification, with their attributes.

    When Mary and John went to the store, John gave a drink to      -> Mary
         IO       S1                      S2                END        order "ABB"
    When John and Mary went to the store, John gave a drink to      -> Mary, order "BAB"

Three attributes fix a prompt up to its template: the indirect object IO, the subject S, and which
of the two comes first. Names are single tokens, so every position is known by construction.

Source: Wang et al. 2023, "Interpretability in the wild"; the attributes are those of Makelov, Lange
and Nanda 2024.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from saelab.errors import ConfigError, DataError
from saelab.models import LanguageModel

__all__ = ["ATTRIBUTES", "NAMES", "ORDERS", "POSITIONS", "IoiPrompts", "ioi_names", "ioi_prompts"]

ATTRIBUTES = ("IO", "S", "order")
POSITIONS = ("IO", "S1", "S2", "END")
ORDERS = ("ABB", "BAB")
NAMES = (
    "Mary", "John", "James", "Robert", "Michael", "William", "David", "Richard", "Joseph",
    "Thomas", "Charles", "Daniel", "Matthew", "Anthony", "Mark", "Paul", "Steven", "Andrew",
    "George", "Edward", "Brian", "Kevin", "Jason", "Jeff", "Ryan", "Jacob", "Gary", "Eric",
    "Stephen", "Scott", "Frank", "Adam", "Henry", "Peter", "Simon", "Jack", "Alan", "Sarah",
    "Karen", "Lisa", "Anna", "Emily", "Laura", "Amy", "Angela", "Helen", "Kate", "Rachel",
    "Maria", "Julia", "Alice", "Jane", "Rose", "Ruth", "Susan", "Linda", "Emma", "Martin",
)  # fmt: skip
"""First names; those that are not one token of a model are left out."""
PLACES = ("store", "garden", "restaurant", "school", "hospital", "office", "house", "station")
THINGS = ("drink", "ring", "book", "bone", "basketball", "computer", "necklace", "kiss")
TEMPLATES = (
    ("When", " and", " went to the {place},", " gave a {thing} to"),
    ("Then,", " and", " had a long talk at the {place}, and", " gave a {thing} to"),
    ("After", " and", " arrived at the {place},", " handed a {thing} to"),
    ("While", " and", " were working at the {place},", " offered a {thing} to"),
)
"""What stands before the first name, between the two, after the second, and after the third."""


@final
@dataclass(frozen=True, slots=True)
class _Spec:
    """One prompt."""

    template: int
    place: str
    thing: str
    io: int
    s: int
    order: int


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class IoiPrompts:
    """Prompts as rows of tokens, with their attributes."""

    specs: tuple[_Spec, ...]
    """What each was made from."""
    names: tuple[str, ...]
    """The names that IO and S count through."""
    name_ids: Int[Tensor, " name"]
    """Their tokens, with a space before."""
    ids: Int[Tensor, "prompt pos"]
    """Token ids, the model's first token included, padded on the right."""
    mask: Bool[Tensor, "prompt pos"]
    """True at real tokens."""
    positions: dict[str, Int[Tensor, " prompt"]]
    """Where IO, S1, S2 and END stand."""

    def __len__(self) -> int:
        """Prompts."""
        return len(self.specs)

    def attributes(self, rows: Sequence[int] | slice = slice(None)) -> dict[str, Tensor]:
        """The values of each attribute, as numbers: of names, or 0 for ABB and 1 for BAB."""
        found = {
            "IO": [one.io for one in self.specs],
            "S": [one.s for one in self.specs],
            "order": [one.order for one in self.specs],
        }
        return {name: torch.tensor(values)[rows] for name, values in found.items()}

    @property
    def sizes(self) -> dict[str, int]:
        """How many values each attribute has."""
        return {"IO": len(self.names), "S": len(self.names), "order": 2}

    def text(self, row: int, model: LanguageModel) -> str:
        """A prompt as text."""
        return model.decode(self.ids[row][self.mask[row]].tolist())


def ioi_names(model: LanguageModel, names: Sequence[str] = NAMES) -> tuple[str, ...]:
    """The names that are one token with a space before.

    Raises:
        DataError: There are fewer than three, so nothing could be exchanged.
    """
    spelled = {name: model.encode(f" {name}") for name in names}
    found = tuple(
        # a token for unknown words is one token too
        name
        for name, ids in spelled.items()
        if len(ids) == 1 and model.decode(ids).strip() == name
    )
    if len(found) < 3:
        raise DataError(
            f"{len(found)} of {len(names)} names are single tokens of {model.name}; three are "
            "needed. Give names= that are."
        )
    return found


def ioi_prompts(
    model: LanguageModel, n: int, *, names: Sequence[str] = NAMES, seed: int = 0
) -> IoiPrompts:
    """Prompts with attributes drawn evenly and independently, but that IO is not S.

    Args:
        model: Whose tokens.
        n: Prompts.
        names: To choose from; see `ioi_names`.
        seed: Of the draw.

    Raises:
        DataError: Fewer than three names are single tokens.
    """
    if n < 1:
        raise ConfigError(f"{n} prompts were asked for; at least one is needed.")
    known, generator = ioi_names(model, names), random.Random(seed)
    specs = []
    for _ in range(n):
        io, s = generator.sample(range(len(known)), 2)
        template, order = generator.randrange(len(TEMPLATES)), generator.randrange(2)
        specs.append(
            _Spec(template, generator.choice(PLACES), generator.choice(THINGS), io, s, order)
        )
    return _built(model, known, specs)


def counterfactual(
    model: LanguageModel, prompts: IoiPrompts, attribute: str, seed: int = 0
) -> IoiPrompts:
    """The same prompts with one attribute changed: another name that is in neither, or the order.

    Raises:
        ConfigError: There is no such attribute.
    """
    if attribute not in ATTRIBUTES:
        raise ConfigError(f"attribute={attribute!r} is none of {', '.join(ATTRIBUTES)}.")
    generator, specs = random.Random(seed), []
    for one in prompts.specs:
        free = [name for name in range(len(prompts.names)) if name not in (one.io, one.s)]
        other = generator.choice(free)
        io = other if attribute == "IO" else one.io
        s = other if attribute == "S" else one.s
        order = 1 - one.order if attribute == "order" else one.order
        specs.append(_Spec(one.template, one.place, one.thing, io, s, order))
    return _built(model, prompts.names, specs)


def _built(model: LanguageModel, names: tuple[str, ...], specs: Sequence[_Spec]) -> IoiPrompts:
    rows, places = [], []
    for one in specs:
        row, place = _row(model, names, one)
        rows.append(row)
        places.append(place)
    longest = max(map(len, rows))
    return IoiPrompts(
        specs=tuple(specs),
        names=names,
        name_ids=torch.tensor([model.encode(f" {name}")[0] for name in names]),
        ids=torch.tensor([row + [0] * (longest - len(row)) for row in rows]),
        mask=torch.tensor([[at < len(row) for at in range(longest)] for row in rows]),
        positions={name: torch.tensor([one[name] for one in places]) for name in POSITIONS},
    )


def _row(
    model: LanguageModel, names: tuple[str, ...], one: _Spec
) -> tuple[list[int], dict[str, int]]:
    """Token ids of a prompt, and where its names stand."""
    before, between, after, last = (
        part.format(place=one.place, thing=one.thing) for part in TEMPLATES[one.template]
    )
    first, second = (one.io, one.s) if one.order == 0 else (one.s, one.io)
    row = [] if model.bos_token_id is None else [model.bos_token_id]
    found: list[int] = []
    for text, name in ((before, first), (between, second), (after, one.s)):
        row += [*model.encode(text), *model.encode(f" {names[name]}")]
        found.append(len(row) - 1)
    row += model.encode(last)
    io, s = (found[0], found[1]) if one.order == 0 else (found[1], found[0])
    return row, {"IO": io, "S1": s, "S2": found[2], "END": len(row) - 1}
