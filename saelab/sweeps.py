"""Several dictionaries from one pass over the activations: by k, width, family, layer or seed.

    recipes = [TopKRecipe(k=k, d_sae=4608) for k in (16, 32, 64)]
    saelab.sweep(recipes, store, "runs/sweep")

Members take turns on every batch, so the store is read and shuffled once for all of them. Each has
its own run folder and ends with the bits it would have if it were trained alone with the same
`TrainConfig`. Killed and started again, those behind catch up first. A member whose loss is not
finite is dropped, and the others go on.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, final

from torch import Tensor

from saelab.errors import ConfigError, DataError, Interrupted
from saelab.files import folder_lock, write_json
from saelab.objectives import Term
from saelab.recipes import Recipe, family_of, made_by, record_recipe
from saelab.sae import SAE
from saelab.signals import StopRequest
from saelab.store import ActivationStore, Batch
from saelab.training import Trainer
from saelab.training.config import TrainConfig
from saelab.training.result import TrainResult
from saelab.training.upkeep import Upkeep

__all__ = ["Member", "SweepResult", "names_of", "sweep"]

Progress = Callable[[int, int, str], None]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """One dictionary of a sweep.

    >>> from saelab.activation_functions import TopK
    >>> Member(name="k2", sae=SAE(8, 16, TopK(2)), config=TrainConfig(tokens=4096)).name
    'k2'
    """

    name: str
    """Of its run folder: letters, digits and any of . _ = -"""
    sae: SAE
    """Untrained; its `hook` is what it reads, if the store has several."""
    config: TrainConfig
    """Its budget; members with the same batch size, window and seed share every batch."""
    terms: Sequence[Term] | None = None
    """The objective; None for the default of its family."""
    upkeep: Sequence[Upkeep] = ()
    """What is done between its steps."""
    made_by: Mapping[str, Any] = field(default_factory=dict)
    """Family and settings, for sweep.json and reports."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=-]*", self.name):
            raise ConfigError(
                f"A member named {self.name!r} cannot have a folder of that name. Use letters, "
                "digits, and any of . _ = - after the first."
            )

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        store: ActivationStore,
        name: str,
        *,
        order: int | None = 0,
        config: Mapping[str, Any] | None = None,
    ) -> "Member":
        """The dictionary a recipe describes.

        Args:
            recipe: Its `seed` seeds the directions.
            store: What it will be trained on.
            name: Of the member.
            order: Seed of the order of the data, the same for all members that are to share it;
                None for the recipe's own.
            config: Fields of `TrainConfig` in place of the recipe's.
        """
        seen = store if recipe.hook is None else store.at(recipe.hook)
        asked = recipe.training()
        asked = replace(asked, **(config or {}), seed=asked.seed if order is None else order)
        return cls(
            name=name,
            sae=recipe.dictionary(seen),
            config=asked,
            terms=recipe.terms(),
            upkeep=recipe.upkeep(),
            made_by=made_by(recipe),
        )


@final
@dataclass(frozen=True, slots=True)
class SweepResult:
    """What a sweep leaves."""

    results: dict[str, TrainResult]
    """Of the members that finished, by name."""
    failed: dict[str, str]
    """Why the others did not, by name."""


def sweep(
    members: Sequence[Member | Recipe],
    store: ActivationStore,
    folder: str | Path,
    *,
    order: int | None = 0,
    progress: Progress | None = None,
) -> SweepResult:
    """Train several dictionaries side by side; run again to go on after an interruption.

    Args:
        members: Dictionaries with their settings, or recipes, which are named after what
            differs between them.
        store: Activations; members that name a hook point read it there.
        folder: Gets one run folder a member, and sweep.json. Further members may join later.
        order: Seed of the order of the data for recipes; None for each recipe's own `seed`,
            which means one pass for each.
        progress: Called after every step of every member.

    Returns:
        The results, and what failed.

    Raises:
        ConfigError: Two members have one name, or a member contradicts the store or its folder.
        FolderBusyError: Another process is training one of them.
        Interrupted: SIGINT or SIGTERM came; every member has saved its state.
    """
    folder = Path(folder)
    named = _named(members, store, order)
    made_by = {member.name: dict(member.made_by) for member in named}
    sheet: dict[str, Any] = {"format": "saelab-sweep", "version": 1, "members": made_by}
    write_json(folder / "sweep.json", sheet)
    sums = _Sums(named, progress)
    found = SweepResult({}, {})
    with StopRequest() as stop:
        for group in _groups(named):
            _train_group(group, store, folder, found, sums, stop)
    write_json(folder / "sweep.json", {**sheet, "failed": found.failed})
    return found


def _train_group(
    group: Sequence[Member],
    store: ActivationStore,
    folder: Path,
    found: SweepResult,
    sums: "_Sums",
    stop: StopRequest,
) -> None:
    """Train the members that share their batches."""
    with ExitStack() as locks:
        trainers = {}
        for member in group:
            run = folder / member.name
            locks.enter_context(folder_lock(run))
            trainers[member.name] = _trainer(member, store, run)
        going = dict(trainers)
        while True:
            for name in [name for name, trainer in going.items() if trainer.finished]:
                found.results[name] = going.pop(name).finish()
            if not going:
                return
            batches = _batches(going.values(), store)
            while not any(trainer.finished for trainer in going.values()) and going:
                batch = next(batches)
                _one_batch(going, batch, found.failed, sums)
                if stop.asked:
                    raise _interrupted(trainers, folder, stop, sums)


def _one_batch(
    going: dict[str, Trainer],
    batch: Batch[dict[str, Tensor]],
    failed: dict[str, str],
    sums: "_Sums",
) -> None:
    """Let each member that has come this far take the batch; drop those that fail on it."""
    for name, trainer in list(going.items()):
        if trainer.cursor + trainer.config.batch_size != batch.cursor or trainer.finished:
            continue  # it is ahead: the others catch up
        try:
            row = trainer.advance(batch)
        except DataError as error:
            failed[name] = str(error)
            del going[name]
        else:
            sums.count(name, trainer, row, len(failed))


def _batches(
    trainers: "Mapping[str, Trainer] | Any", store: ActivationStore
) -> Iterator[Batch[dict[str, Tensor]]]:
    """The batches from where the last member is."""
    trainers = list(trainers)
    config = trainers[0].config
    return store.batches(
        config.batch_size,
        seed=config.seed,
        cursor=min(trainer.cursor for trainer in trainers),
        window_tokens=config.window_tokens,
        hooks=list(dict.fromkeys(hook for trainer in trainers for hook in trainer.hooks)),
    )


def _trainer(member: Member, store: ActivationStore, run: Path) -> Trainer:
    hook = member.sae.hook
    seen = store.at(hook) if hook in store.hooks else store
    trainer = Trainer(member.sae, seen, member.config, run, member.terms, member.upkeep)
    trainer.look_at_store()
    if member.made_by:
        record_recipe(run, member.made_by)
    return trainer


def _named(
    members: Sequence[Member | Recipe], store: ActivationStore, order: int | None
) -> list[Member]:
    recipes = [one for one in members if isinstance(one, Recipe)]
    names = iter(names_of(recipes))
    named = [
        one if isinstance(one, Member) else Member.of(one, store, next(names), order=order)
        for one in members
    ]
    if not named:
        raise ConfigError("A sweep of no dictionaries has nothing to do; give it a member.")
    if twice := sorted({m.name for m in named if sum(n.name == m.name for n in named) > 1}):
        raise ConfigError(
            f"A sweep has two members named {', '.join(twice)}. Give each its own name, or drop "
            "the one that is asked for twice."
        )
    return named


def names_of(recipes: Sequence[Recipe]) -> list[str]:
    """The family and what differs between the recipes, as topk-k=16-seed=1."""
    settings = [asdict(recipe) for recipe in recipes]
    fields = dict.fromkeys(name for one in settings for name in one)
    differing = [
        name for name in fields if len({repr(one[name]) for one in settings if name in one}) > 1
    ]
    return [
        "-".join(
            [family_of(recipe), *(f"{n}={_word(one[n])}" for n in differing if n in one)],
        )
        for recipe, one in zip(recipes, settings, strict=True)
    ]


def _word(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text)


def _groups(members: Sequence[Member]) -> list[list[Member]]:
    """Members that read the same batches."""
    groups: dict[tuple[int, int, int], list[Member]] = {}
    for member in members:
        config = member.config
        key = (config.batch_size, config.seed, config.window_tokens)
        groups.setdefault(key, []).append(member)
    return list(groups.values())


def _interrupted(
    trainers: Mapping[str, Trainer], folder: Path, stop: StopRequest, sums: "_Sums"
) -> Interrupted:
    for trainer in trainers.values():
        if not trainer.finished:
            trainer.save_checkpoint()
    return Interrupted(
        f"{stop.name}: stopped after {sums.done:,} of {sums.total:,} tokens of all members. The "
        f"state is in {folder}; run the same command again to go on exactly there."
    )


@final
class _Sums:
    """How far all members are together."""

    def __init__(self, members: Sequence[Member], progress: Progress | None) -> None:
        self.total = sum(member.config.tokens for member in members)
        self._done: dict[str, int] = {}
        self._last: dict[str, float] = {}
        self._progress = progress

    @property
    def done(self) -> int:
        """Tokens trained on, of all members."""
        return sum(self._done.values())

    def count(self, name: str, trainer: Trainer, row: Mapping[str, Any], failed: int) -> None:
        """Note a step."""
        self._done[name] = min(trainer.tokens_done, trainer.config.tokens)
        self._last[name] = row["fvu"]
        if self._progress is not None:
            fvus = self._last.values()
            note = f"{len(fvus)} members, fvu {min(fvus):.3f} to {max(fvus):.3f}"
            self._progress(self.done, self.total, note + (f", {failed} failed" if failed else ""))
