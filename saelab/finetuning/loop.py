"""The loop of finetuning: a clean pass, a spliced pass, gradients, a step.

    1. the clean pass, without gradient
    2. reconstructions of its activations; the spliced pass; the loss; gradients
    3. projection, clip, Adam, directions back to norm 1, as in training

A run's only state is in its checkpoint: killed at any moment and started again with the same
dictionary, it ends with the same bits.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

import torch

from saelab.errors import CheckpointError, DataError, Interrupted
from saelab.files import folder_lock, write_json
from saelab.finetuning.config import FinetuneConfig
from saelab.finetuning.losses import CleanPass, SpliceCost, clean_pass, splice_cost
from saelab.finetuning.objective import SplicedTerm, sparsity_terms
from saelab.finetuning.starting import checked_hook, describe_finetuning
from saelab.models import LanguageModel
from saelab.objectives import Term
from saelab.positions import measured_norm_limit
from saelab.sae import SAE
from saelab.signals import StopRequest
from saelab.tokens import Tokens
from saelab.training.firing import Firing
from saelab.training.gradients import Gradients
from saelab.training.result import Progress
from saelab.training.run_logs import RunLog
from saelab.training.runs import TrainingRun
from saelab.training.state import TrainingState
from saelab.training.updates import Updates

__all__ = ["FinetuneResult", "Finetuner", "finetune"]


@final
@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """What a finished run leaves."""

    sae: SAE
    """The finetuned dictionary; the same object that was passed in."""
    before: SpliceCost
    """What it cost the model before."""
    after: SpliceCost
    """What it costs now, on the same text: `kl` is lower, `fvu` may be higher."""
    metrics: list[dict[str, Any]]
    """The rows of metrics.jsonl."""
    seconds: float
    """Wall time of the steps, over all the run's starts."""


@final
class Finetuner:
    """The loop's state: one `step` at a time, saved and resumed exactly.

    Args:
        sae: Finetuned in place.
        model: The model it was trained on; its weights stay as they are.
        tokens: Text to run.
        config: What is minimized, budget, rates.
        folder: Run folder; None saves nothing.
        terms: Added to the objective. None keeps a JumpReLU dictionary at the L0 it has, which
            nothing else would, and adds nothing to families whose rule fixes it.
        held_out: Text the costs are measured on; the first rows of `tokens` if not given.

    Raises:
        ConfigError: The dictionary cannot be spliced, or the folder holds another run.
        ModelError: The dictionary was trained on another model.
    """

    def __init__(
        self,
        sae: SAE,
        model: LanguageModel,
        tokens: Tokens,
        config: FinetuneConfig | None = None,
        folder: str | Path | None = None,
        terms: Sequence[Term] | None = None,
        held_out: Tokens | None = None,
    ) -> None:
        self.config = config or FinetuneConfig()
        self.hook = checked_hook(sae, model, self.config)
        self.sae, self.model, self.tokens = sae, model, tokens
        self._training = self.config.training(tokens.length)
        rows = self.config.rows_per_step
        self.norm_limit = measured_norm_limit(
            model, tokens, self.hook, self.config.norm_factor, rows
        )
        self._measured_on = (tokens if held_out is None else held_out)[: self.config.measure_rows]
        self.before = self.cost()
        """What the dictionary cost the model before the first step."""
        self.extra = sparsity_terms(sae, self.before.l0) if terms is None else tuple(terms)
        self.run_files = TrainingRun(
            folder, describe_finetuning(sae, model, tokens, self.config, self.extra)
        )
        self.spliced = SplicedTerm(model, self.config)
        terms = (self.spliced, *self.extra)
        self._updates = Updates(sae, self._training)
        self._gradients = Gradients(sae, terms, [self.hook])
        self._gradients.variance = self._variance()
        self._firing = Firing(sae)
        self._state = TrainingState(sae, self._updates.optimizer, self._firing, terms, ())
        self.steps_done, self.seconds = 0, 0.0
        if self.run_files.found is not None:
            self._restore(self.run_files.found)
        resumed_at = None if self.run_files.found is None else self.steps_done
        self.log = RunLog(self.run_files.folder, (), resumed_at)

    @property
    def finished(self) -> bool:
        """Whether the budget is spent."""
        return self.steps_done >= self._training.steps

    @property
    def tokens_done(self) -> int:
        """Tokens the model has read so far."""
        return self.steps_done * self._training.batch_size

    def cost(self) -> SpliceCost:
        """What the dictionary costs the model now."""
        rows = self.config.rows_per_step
        return splice_cost(self.sae, self.model, self._measured_on, self.norm_limit, rows)

    def step(self) -> dict[str, Any]:
        """One optimizer step; returns its numbers.

        Raises:
            DataError: The loss is not finite; the last checkpoint is kept.
        """
        started = time.perf_counter()
        clean = self._clean(self._rows())
        self.spliced.clean = clean
        training, n_inputs = self._training, len(clean.inputs)
        dead = self._firing.dead(training.dead_after)
        progress = self.tokens_done / training.tokens
        step, numbers = self._gradients({self.hook: clean.inputs}, dead, progress)
        if not math.isfinite(numbers["loss"]):
            raise DataError(
                f"The loss became {numbers['loss']} at step {self.steps_done + 1}. The last "
                "checkpoint is kept; try a lower learning rate."
            )
        for term in self.extra:
            term.update(step)
        seen = self._firing.see(step, n_inputs)
        moved = self._updates.step(self._gradients, self.tokens_done)
        self.steps_done += 1
        self.seconds += time.perf_counter() - started
        place = {"step": self.steps_done, "tokens": self.tokens_done}
        return {**place, **numbers, **self.spliced.parts, **seen, **moved}

    def run(self, progress: Progress | None = None) -> FinetuneResult:
        """Go on until the budget is spent, logging and saving on the way.

        Raises:
            Interrupted: SIGINT or SIGTERM asked to stop; a checkpoint was written.
        """
        config, total = self.config, self._training.tokens
        with StopRequest() as stop:
            while not self.finished:
                row = self.step()
                if self.steps_done % config.log_every_steps == 0 or self.finished:
                    self.log.metric(row, self.seconds)
                if progress is not None:
                    note = f"kl {row['kl']:.4f}, ce {row['ce']:.3f}, fvu {row['fvu']:.3f}"
                    progress(self.tokens_done, total, note)
                stopping = stop.asked and not self.finished
                if self.steps_done % config.checkpoint_every_steps == 0 or stopping:
                    self.save_checkpoint()
                if stopping:
                    raise Interrupted(
                        self.run_files.how_to_go_on(stop.name, self.tokens_done, total)
                    )
        return self._finish()

    def save_checkpoint(self) -> None:
        """Write everything the next step depends on; without a folder, nothing."""
        if self.run_files.folder is not None:
            self.log.time(self.steps_done, self.seconds)
            self.run_files.write(self.steps_done, self._state.tensors(), {})

    def _clean(self, part: Tokens) -> CleanPass:
        return clean_pass(self.model, part, self.hook, self.config.downstream, self.norm_limit)

    def _rows(self) -> Tokens:
        """This step's rows: every epoch in an order of its own, drawn from the seed."""
        n_rows, wanted = self.tokens.n_rows, []
        first = self.steps_done * self.config.rows_per_step
        order = torch.empty(0)
        for place in range(first, first + self.config.rows_per_step):
            epoch, within = divmod(place, n_rows)
            if not wanted or within == 0:
                generator = torch.Generator().manual_seed(self.config.seed + 1_000_003 * epoch)
                order = torch.randperm(n_rows, generator=generator)
            wanted.append(int(order[within]))
        text = self.tokens
        return replace(
            text, ids=text.ids[wanted], document=text.document[wanted], kept=text.kept[wanted]
        )

    def _variance(self) -> float:
        """E|x - mean|^2 in normalized units, on the text that is measured."""
        rows = self._measured_on[: self.config.rows_per_step]
        inputs = self._clean(rows).inputs.double() * self.sae.normalization.scale_in
        return (inputs - inputs.mean(0)).square().sum(1).mean().item()

    def _restore(self, path: Path) -> None:
        tensors, state = self.run_files.read()
        try:
            self._state.load(tensors)
            self.steps_done = state["step"]
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} is a checkpoint of another dictionary than this run's: {error}."
            ) from None

    def _finish(self) -> FinetuneResult:
        after = self.cost()
        costs = {"before": asdict(self.before), "after": asdict(after)}
        self.sae.metadata["finetuning"] = {
            "config": self.config.to_json(),
            "terms": [term.to_json() for term in self.extra],
            "tokens": self.tokens_done,
            **costs,
        }
        if self.run_files.folder is not None:
            self.sae.save(self.run_files.folder / "sae")
            write_json(self.run_files.folder / "finetuning.json", costs)
            self.save_checkpoint()
        return FinetuneResult(self.sae, self.before, after, self.log.metrics, self.seconds)


def finetune(
    sae: SAE,
    model: LanguageModel,
    tokens: Tokens,
    config: FinetuneConfig | None = None,
    folder: str | Path | None = None,
    *,
    terms: Sequence[Term] | None = None,
    held_out: Tokens | None = None,
    progress: Progress | None = None,
) -> FinetuneResult:
    """Finetune a trained dictionary inside the model it belongs to.

    Args:
        sae: Finetuned in place; it must read and write one hook point.
        model: The model it was trained on; its weights stay as they are.
        tokens: Text to run.
        config: What is minimized, budget, rates.
        folder: Run folder: metrics.jsonl, checkpoints, `finetuning.json`, and the dictionary in
            `sae/`. If it holds an unfinished run with the same settings, that run continues
            exactly where it was; pass the dictionary as it was before.
        terms: Added to the objective. None keeps a JumpReLU dictionary at the L0 it has, which
            nothing else would, and adds nothing to families whose rule fixes it.
        held_out: Text the costs before and after are measured on; the first rows of `tokens` if
            not given.
        progress: Called after every step.

    Returns:
        The dictionary, and what it cost the model before and after.

    Raises:
        ConfigError: The dictionary cannot be spliced, or the folder holds another run.
        ModelError: The dictionary was trained on another model.
        DataError: The loss is not finite, or the text holds nothing to score.
        FolderBusyError: Another process is writing the folder.
        Interrupted: SIGINT or SIGTERM came; run the same command again to go on.
    """
    if folder is None:
        return Finetuner(sae, model, tokens, config, None, terms, held_out).run(progress)
    with folder_lock(folder):
        return Finetuner(sae, model, tokens, config, folder, terms, held_out).run(progress)
