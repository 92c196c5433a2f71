"""Training: one loop for every family.

Each step, in the reference order:

    1. loss and exact gradients over the selected pairs      gradients
    2. remove from each decoder direction's gradient its
       component along the direction, clip, Adam with the
       learning rate of this many tokens, scale every
       decoder direction back to norm 1                      updates
    3. the family's upkeep, if it has any                    upkeep

A run's only state is in its checkpoint: weights, moments, counters and how many rows were read.
Killed at any moment and started again, it ends with the same bits.
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Int
from torch import Tensor

from saelab.distributed import ALONE, Ranks
from saelab.errors import CheckpointError, DataError, Interrupted
from saelab.files import folder_lock
from saelab.objectives import Step, Term, default_terms
from saelab.run_folders import record_store
from saelab.sae import SAE
from saelab.signals import StopRequest
from saelab.store import ActivationStore, Batch
from saelab.store.sources import FolderSource
from saelab.training.config import TrainConfig
from saelab.training.firing import Firing
from saelab.training.gradients import Gradients, coarse_selection
from saelab.training.initialization import initialize
from saelab.training.inputs import TrainingInputs, slice_tokens
from saelab.training.latent_shards import Shard
from saelab.training.result import Progress, TrainResult, crossed, in_words
from saelab.training.run_logs import RunLog
from saelab.training.runs import TrainingRun, describe_run, record_training
from saelab.training.state import TrainingState
from saelab.training.updates import Updates
from saelab.training.upkeep import Upkeep
from saelab.training.watch import Watch

__all__ = ["Progress", "TrainConfig", "TrainResult", "Trainer", "train"]


@final
class Trainer:
    """The loop's state: one `step` at a time, saved and resumed exactly.

    Args:
        sae: Trained in place.
        store: Where activations come from.
        config: Budget, rates, intervals.
        folder: Run folder; None trains without saving.
        terms: The objective; None for the default of the dictionary's family.
        upkeep: What is done between steps.
        ranks: The processes that train it together.

    Raises:
        ConfigError: The dictionary and the store disagree, or the folder holds another run.
    """

    def __init__(
        self,
        sae: SAE,
        store: ActivationStore,
        config: TrainConfig | None = None,
        folder: str | Path | None = None,
        terms: Sequence[Term] | None = None,
        upkeep: Sequence[Upkeep] = (),
        ranks: Ranks = ALONE,
    ) -> None:
        self.sae, self.store, self.config = sae, store, config or TrainConfig()
        self._inputs = TrainingInputs(sae, store, self.config)
        self.hooks = self._inputs.hooks
        self.terms = tuple(default_terms(sae) if terms is None else terms)
        self.upkeep, self.ranks = tuple(upkeep), ranks
        self.steps_done = self.cursor = 0
        self.seconds = 0.0
        sae.coarse_selection = coarse_selection(sae, self.config)
        shard = Shard(sae, ranks, self.terms, self.upkeep) if ranks.divides_latents else None
        self._shard, self._own = shard, sae if shard is None else shard.sae
        self._updates = Updates(self._own, self.config, shard)
        self._gradients = Gradients(
            self._own, self.terms, self.hooks, ranks, shard, slice_tokens(self.config, ranks)
        )
        self._firing = Firing(self._own, ranks)
        self._state = TrainingState(
            sae, self._updates.optimizer, self._firing, self.terms, self.upkeep, shard
        )
        manifest = describe_run(sae, self.config, self.terms, self.upkeep, store, ranks)
        first = ranks.rank == 0
        self.run_files = ranks.first(lambda: TrainingRun(folder, manifest, writes=first))
        if first and self.folder is not None and isinstance(store.source, FolderSource):
            record_store(self.folder, store.source.folder)
        if self.run_files.found is None:
            self._gradients.variance = initialize(sae, store, self.config, self.terms)
        else:
            self._restore()
        if shard is not None:
            shard.take(sae)
        self._saved_at = resumed_at = None if self.run_files.found is None else self.steps_done
        self.log = RunLog(self.folder if first else None, self.config.mirrors, resumed_at)
        self._watch = Watch(self.log, sae, self.config)
        self._check_ranks()

    @property
    def folder(self) -> Path | None:
        """The run's folder, if it has one."""
        return self.run_files.folder

    @property
    def since_fired(self) -> Int[Tensor, " d_sae"]:
        """Tokens since each latent last fired; where latents are divided, of this rank's."""
        return self._firing.since

    @property
    def variance(self) -> float:
        """What squared errors are divided by: E|target - mean|^2, in normalized units."""
        return self._gradients.variance

    @property
    def tokens_done(self) -> int:
        """Tokens trained on so far."""
        return self.steps_done * self.config.batch_size

    @property
    def finished(self) -> bool:
        """Whether the budget is spent."""
        return self.steps_done >= self.config.steps

    def step(self, batch: Batch[dict[str, Tensor]] | None = None) -> dict[str, Any]:
        """One optimizer step; returns its numbers.

        Args:
            batch: Rows of every hook point in `hooks`; None takes the store's next ones. With
                several processes each is given the whole batch, and takes its part.

        Raises:
            DataError: The loss is not finite; the last checkpoint is kept.
        """
        started = time.perf_counter()
        config = self.config
        batch = batch or self._inputs.after(self.cursor)
        dead = self._firing.dead(config.dead_after)
        progress = self.tokens_done / config.tokens
        step, row = self._gradients(batch.activations, dead, progress)
        if not math.isfinite(row["loss"]):
            raise DataError(
                f"The loss became {row['loss']} at step {self.steps_done + 1}: the activations are "
                "not finite, or the learning rate is too high. The last checkpoint is kept."
            )
        whole = self._gradients.whole(step) if self._wants_whole() else step
        for term in self.terms:
            term.update(whole)
        row |= self._firing.see(step, config.batch_size)
        moved = self._updates.step(self._gradients, self.tokens_done)
        self.cursor = batch.cursor
        self.steps_done += 1
        self._keep_up(whole, dead)
        self.seconds += time.perf_counter() - started
        counts = {"step": self.steps_done, "tokens": self.tokens_done}
        row["grad_norm"] = moved["grad_norm"]
        if self.sae.coarse_selection is not None:
            row["missed_share"] = self.sae.coarse_selection.missed_share
        return {**counts, **row, "dead_share": self._firing.share(dead), "lr": moved["lr"]}

    def advance(self, batch: Batch[dict[str, Tensor]] | None = None) -> dict[str, Any]:
        """One step, with its log, its warnings and its checkpoint when they are due."""
        before = self.tokens_done
        row = self.step(batch)
        if crossed(before, self.tokens_done, self.config.log_every_tokens) or self.finished:
            self.log.metric(row, self.seconds)
            if self.ranks.rank == 0:
                self._watch.look(row)
        if crossed(before, self.tokens_done, self.config.checkpoint_every_tokens):
            self.save_checkpoint()
        return row

    def run(self, progress: Progress | None = None) -> TrainResult:
        """Train until the budget is spent, logging, watching and saving on the way.

        Raises:
            Interrupted: SIGINT or SIGTERM asked to stop; a checkpoint was written.
        """
        self.look_at_store()
        with StopRequest() as stop:
            while not self.finished:
                row = self.advance()
                if progress is not None:
                    done = min(self.tokens_done, self.config.tokens)
                    progress(done, self.config.tokens, in_words(row))
                if self.ranks.any(stop.asked) and not self.finished:
                    self.save_checkpoint()
                    raise Interrupted(
                        self.run_files.how_to_go_on(
                            stop.name or "Another process", self.tokens_done, self.config.tokens
                        )
                    )
        return self.finish()

    def look_at_store(self) -> None:
        """Warn, once a run, of what is doubtful about how the store is read."""
        for doubt in self.store.warnings(self.config.batch_size, self.config.window_tokens):
            if self.ranks.rank == 0:
                self._watch.say("window", self.steps_done, doubt)

    def finish(self) -> TrainResult:
        """Save the trained dictionary and the last checkpoint."""
        config, store = self.config, self.store
        record_training(self.sae, config, self.terms, self.upkeep, store, self.tokens_done)
        self._state.gather()
        if self.folder is not None and self.ranks.rank == 0:
            self.sae.save(self.folder / "sae")
        self.save_checkpoint()
        return TrainResult(self.sae, self.log.metrics, self.log.events, self.seconds)

    def save_checkpoint(self) -> None:
        """Write everything the next step depends on; without a folder, nothing."""
        if self.folder is None or self._saved_at == self.steps_done:
            return
        self._check_ranks()
        tensors = self._state.tensors()
        state = {
            "cursor": self.cursor,
            "variance": self.variance,
            "normalization": self.sae.normalization.to_json(),
        }
        self.log.time(self.steps_done, self.seconds)
        self.run_files.write(self.steps_done, tensors, state)
        self._saved_at = self.steps_done

    def _restore(self) -> None:
        tensors, state = self.run_files.read()
        try:
            self._state.load(tensors)
            self.steps_done, self.cursor = state["step"], state["cursor"]
            self._gradients.variance = state["variance"]
            self.sae.normalization = type(self.sae.normalization)(**state["normalization"])
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"{self.run_files.found} is a checkpoint of another dictionary than this run's: "
                f"{error}."
            ) from None

    def _check_ranks(self) -> None:
        if self.ranks.divides_tokens:
            self.ranks.agree(self.sae.W_dec, "decoder directions")
        if self.ranks.world > 1:
            self.ranks.agree(torch.tensor([self.variance, self.steps_done]), "data")

    def _wants_whole(self) -> bool:
        """Whether somebody looks at the whole batch after its gradients."""
        return bool(self.upkeep) or any(type(t).update is not Term.update for t in self.terms)

    @torch.no_grad()
    def _keep_up(self, step: Step, dead: Tensor) -> None:
        for upkeep in self.upkeep:
            done = upkeep.after_step(step, self._updates.optimizer, dead, self.tokens_done)
            if done is not None:
                event = {"step": self.steps_done, "kind": upkeep.name, "message": done}
                self.log.event(event)


def train(
    sae: SAE,
    store: ActivationStore,
    config: TrainConfig | None = None,
    folder: str | Path | None = None,
    *,
    terms: Sequence[Term] | None = None,
    upkeep: Sequence[Upkeep] = (),
    ranks: Ranks = ALONE,
    progress: Progress | None = None,
) -> TrainResult:
    """Train a dictionary on a store of activations.

    Args:
        sae: Trained in place.
        store: Activations; `ActivationStore.from_tensor(x)` for a tensor you already have.
        config: Budget, learning rate and intervals.
        folder: Run folder: metrics.jsonl, checkpoints, and the dictionary in `sae/`. If it holds
            an unfinished run with the same settings, that run continues exactly where it was.
        terms: The objective; None for the default of the dictionary's family.
        upkeep: What is done between steps, such as resampling dead latents.
        ranks: The processes that train it together, from `saelab.distributed.ranks`; all of them
            see the same run folder.
        progress: Called after every step.

    Returns:
        The trained dictionary and the logs.

    Raises:
        ConfigError: Settings contradict each other, the data, or the run in the folder.
        DataError: Activations or the loss are not finite.
        FolderBusyError: Another process is training in the folder.
        Interrupted: SIGINT or SIGTERM came; run the same command again to go on.

    >>> x = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
    >>> config = TrainConfig(tokens=2048, batch_size=64)
    >>> from saelab.activation_functions import TopK
    >>> result = train(SAE(8, 16, TopK(2)), ActivationStore.from_tensor(x), config)
    >>> result.metrics[-1]["tokens"]
    2048
    """
    if folder is None or ranks.rank > 0:
        return Trainer(sae, store, config, folder, terms, upkeep, ranks).run(progress)
    with folder_lock(folder):
        return Trainer(sae, store, config, folder, terms, upkeep, ranks).run(progress)
