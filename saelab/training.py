"""Training: one loop for every family.

Each step, in the reference order:

    1. loss and exact gradients over the selected pairs
    2. remove from each decoder direction's gradient its component along the direction
    3. clip the global gradient norm
    4. Adam, with the learning rate of this many tokens
    5. scale every decoder direction back to norm 1
    6. the family's upkeep, if it has any

Adam divides elementwise, so step 4's update is not tangent even after step 2; step 5 is what
keeps the directions at norm 1, and so does every checkpoint. Families whose objective prices a
long direction leave 2 and 5 out; tied weights add the encoder's gradient to the decoder's in 2.

A run's only state is in its checkpoint: weights, moments, counters and how many rows were read.
Killed at any moment and started again, it ends with the same bits.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from saelab.errors import CheckpointError, ConfigError, DataError, Interrupted
from saelab.files import folder_lock
from saelab.initialization import initialize
from saelab.kernels import GradientBuffers
from saelab.objectives import Step, Term, default_terms
from saelab.optimizers import Adam, learning_rate
from saelab.run_logs import RunLog
from saelab.sae import SAE
from saelab.signals import StopRequest
from saelab.store import ActivationStore, Batch
from saelab.train_config import TrainConfig
from saelab.training_runs import TrainingRun
from saelab.upkeep import Upkeep
from saelab.watch import Watch

__all__ = ["Progress", "TrainConfig", "TrainResult", "Trainer", "train"]

Progress = Callable[[int, int, str], None]
"""Called with tokens done, tokens in all, and a few words about how it goes."""


@final
@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a finished run leaves."""

    sae: SAE
    """The trained dictionary; the same object that was passed in."""
    metrics: list[dict[str, Any]]
    """The rows of metrics.jsonl."""
    events: list[dict[str, Any]]
    """The rows of events.jsonl."""
    seconds: float
    """Wall time of the steps, over all the run's starts."""


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
    ) -> None:
        self.sae, self.store, self.config = sae, store, config or TrainConfig()
        self.hooks = _hooks(sae, store)
        self.terms = tuple(default_terms(sae) if terms is None else terms)
        self.upkeep = tuple(upkeep)
        self.steps_done = self.cursor = 0
        self.seconds = 0.0
        self.since_fired = torch.zeros(sae.d_sae, dtype=torch.int64, device=sae.device)
        self._parameters = dict(sae.named_parameters())
        self._optimizer = Adam(self._trained(), self.config.betas)
        self._buffers = GradientBuffers(list(self._parameters.values()))
        self._batches: Iterator[Batch[dict[str, Tensor]]] | None = None
        self.variance = 0.0
        self.run_files = TrainingRun(folder, self._manifest())
        if self.run_files.found is None:
            self.variance = initialize(sae, store, self.config)
        else:
            self._restore()
        resumed_at = None if self.run_files.found is None else self.steps_done
        self.log = RunLog(self.folder, self.config.mirrors, resumed_at)
        self._watch = Watch(self.log, sae, self.config)

    @property
    def folder(self) -> Path | None:
        """The run's folder, if it has one."""
        return self.run_files.folder

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
            batch: Rows of every hook point in `hooks`; None takes the store's next ones.

        Raises:
            DataError: The loss is not finite; the last checkpoint is kept.
        """
        started = time.perf_counter()
        config, sae = self.config, self.sae
        batch = batch or self._next_batch()
        rows = {name: x.to(sae.device, sae.dtype) for name, x in batch.activations.items()}
        dead = self.since_fired >= config.dead_after
        step, row = self._gradients(rows, dead)
        lr = learning_rate(
            self.tokens_done + config.batch_size // 2,
            total=config.steps * config.batch_size,
            peak=config.peak_lr(sae.d_sae),
            warmup=round(config.warmup * config.tokens),
            decay_from=round((1 - config.decay) * config.tokens),
        )
        row["grad_norm"] = self._update(lr)
        self.cursor = batch.cursor
        self.steps_done += 1
        self._keep_up(step, dead)
        self.seconds += time.perf_counter() - started
        return {
            "step": self.steps_done,
            "tokens": self.tokens_done,
            **row,
            "dead_share": dead.float().mean().item(),
            "lr": lr,
        }

    def run(self, progress: Progress | None = None) -> TrainResult:
        """Train until the budget is spent, logging, watching and saving on the way.

        Raises:
            Interrupted: SIGINT or SIGTERM asked to stop; a checkpoint was written.
        """
        config = self.config
        for doubt in self.store.warnings(config.batch_size, config.window_tokens):
            self._watch.say("window", self.steps_done, doubt)
        with StopRequest() as stop:
            while not self.finished:
                before = self.tokens_done
                row = self.step()
                if _crossed(before, self.tokens_done, config.log_every_tokens) or self.finished:
                    self.log.metric(row, self.seconds)
                    self._watch.look(row)
                if progress is not None:
                    note = f"fvu {row['fvu']:.3f}, l0 {row['l0']:.1f}, dead {row['dead_share']:.1%}"
                    progress(min(self.tokens_done, config.tokens), config.tokens, note)
                every = config.checkpoint_every_tokens
                if _crossed(before, self.tokens_done, every) or (stop.asked and not self.finished):
                    self.save_checkpoint()
                if stop.asked and not self.finished:
                    raise Interrupted(
                        self.run_files.how_to_go_on(stop.name, self.tokens_done, config.tokens)
                    )
        self._finish()
        return TrainResult(self.sae, self.log.metrics, self.log.events, self.seconds)

    def save_checkpoint(self) -> None:
        """Write everything the next step depends on; without a folder, nothing."""
        if self.folder is None:
            return
        tensors = {f"sae.{name}": value for name, value in self.sae.state_dict().items()}
        tensors |= {f"optimizer.{name}": value for name, value in self._optimizer.state().items()}
        for part, owner in self._stateful().items():
            tensors |= {f"{part}.{name}": value for name, value in owner.state().items()}
        tensors["since_fired"] = self.since_fired
        state = {
            "cursor": self.cursor,
            "variance": self.variance,
            "normalization": self.sae.normalization.to_json(),
        }
        self.log.time(self.steps_done, self.seconds)
        self.run_files.write(self.steps_done, tensors, state)

    def _restore(self) -> None:
        tensors, state = self.run_files.read()
        try:
            self.sae.load_state_dict(_under("sae.", tensors))
            self._optimizer.load(_under("optimizer.", tensors))
            for part, owner in self._stateful().items():
                owner.load_state(_under(f"{part}.", tensors))
            self.since_fired.copy_(tensors["since_fired"])
            self.steps_done, self.cursor = state["step"], state["cursor"]
            self.variance = state["variance"]
            self.sae.normalization = type(self.sae.normalization)(**state["normalization"])
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"{self.run_files.found} is a checkpoint of another dictionary than this run's: "
                f"{error}."
            ) from None

    def _stateful(self) -> dict[str, Term | Upkeep]:
        terms = {f"term.{term.name}": term for term in self.terms}
        return {**terms, **{f"upkeep.{upkeep.name}": upkeep for upkeep in self.upkeep}}

    def _trained(self) -> dict[str, Tensor]:
        """The parameters the optimizer moves."""
        left_alone = set(self.config.frozen)
        if unknown := left_alone - set(self._parameters):
            raise ConfigError(
                f"TrainConfig(frozen={self.config.frozen}): the dictionary has no "
                f"{', '.join(sorted(unknown))}; it has {', '.join(self._parameters)}."
            )
        if self.sae.tied:
            left_alone.add("W_enc")
        return {name: p for name, p in self._parameters.items() if name not in left_alone}

    def _next_batch(self) -> Batch[dict[str, Tensor]]:
        if self._batches is None:
            self._batches = self.store.batches(
                self.config.batch_size,
                seed=self.config.seed,
                cursor=self.cursor,
                window_tokens=self.config.window_tokens,
                hooks=self.hooks,
            )
        return next(self._batches)

    def _gradients(self, rows: dict[str, Tensor], dead: Tensor) -> tuple[Step, dict[str, float]]:
        """Fill the gradient buffers; returns the step and its loss, terms, fvu and l0."""
        sae = self.sae
        progress = self.tokens_done / self.config.tokens
        inputs = rows[self.hooks[0]] * sae.normalization.scale_in
        targets = inputs
        if sae.is_transcoder:
            targets = rows[self.hooks[1]] * sae.normalization.scale_out
        sae.activation.begin_step(progress, {name: rows[name] for name in sae.activation.reads})
        self._buffers.begin()
        asked = {term.name: term.selection(sae, dead) for term in self.terms}
        extra = {name: selection for name, selection in asked.items() if selection is not None}
        forward = sae.forward_pairs(inputs, training=True, buffers=self._buffers, extra=extra)
        step = Step(sae, forward, targets, self.variance, self._buffers, progress)
        terms = {term.name: term(step) for term in self.terms}
        loss = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(loss):
            raise DataError(
                f"The loss became {loss.item()} at step {self.steps_done + 1}: the activations "
                "are not finite, or the learning rate is too high. The last checkpoint is kept."
            )
        loss.backward()
        for parameter in self._parameters.values():
            if parameter.grad is not None:  # what reached it through autograd, not the kernels
                self._buffers.add(parameter, parameter.grad)
                parameter.grad = None
        self._buffers.finish()
        for term in self.terms:
            term.update(step)
        numbers = {name: value.item() for name, value in terms.items()}
        return step, {"loss": loss.item(), **numbers, **self._look(step)}

    @torch.no_grad()
    def _look(self, step: Step) -> dict[str, float]:
        """Let the family and the dead-latent counters see the batch; returns its fvu and l0."""
        forward, targets = step.forward, step.targets
        active = forward.latents != 0
        self.sae.activation.observe(forward.latents[active].detach())
        fired = torch.bincount(forward.pairs.indices[active], minlength=self.sae.d_sae).bool()
        self.since_fired += len(targets)
        self.since_fired[fired] = 0
        spread = (targets - targets.mean(0)).square().sum()
        fvu = (targets - forward.recons).square().sum() / spread
        return {"fvu": fvu.item(), "l0": (active.sum() / len(targets)).item()}

    @torch.no_grad()
    def _update(self, lr: float) -> float:
        """Project, clip, step, renormalize; returns the gradient norm before clipping."""
        W_dec, W_enc = self.sae.W_dec, self.sae.W_enc
        gradient = self._buffers.of(W_dec)
        if self.sae.tied:
            gradient.add_(self._buffers.of(W_enc).T)
        if self.config.decoder == "unit":
            along = torch.bmm(gradient.unsqueeze(1), W_dec.unsqueeze(2)).squeeze(1)
            gradient.addcmul_(along, W_dec, value=-1)
        gradients = {name: self._buffers.of(p) for name, p in self._trained().items()}
        norms = [torch.linalg.vector_norm(g) for g in gradients.values()]
        norm = torch.linalg.vector_norm(torch.stack(norms)).item()
        clip = self.config.clip
        scale = norm / clip if clip is not None and norm > clip else 1.0
        self._optimizer.step(gradients, lr, scale)
        if self.config.decoder == "unit":
            W_dec.div_(torch.linalg.vector_norm(W_dec, dim=1, keepdim=True))
        if self.sae.tied:
            W_enc.copy_(W_dec.T)
        self.sae.activation.constrain()
        return norm

    @torch.no_grad()
    def _keep_up(self, step: Step, dead: Tensor) -> None:
        for upkeep in self.upkeep:
            done = upkeep.after_step(step, self._optimizer, dead, self.tokens_done)
            if done is not None:
                event = {"step": self.steps_done, "kind": upkeep.name, "message": done}
                self.log.event(event)

    def _manifest(self) -> dict[str, Any]:
        # Metadata of the dictionary is left out: the run adds to it, and it decides nothing.
        sae = {k: v for k, v in self.sae.settings().items() if k not in _UNCOMPARED}
        return {
            "format": "saelab-run",
            "version": 1,
            "config": self.config.to_json(),
            # Defaults are worked out here, so that a run is never continued under other ones.
            "resolved": {
                "peak_lr": self.config.peak_lr(self.sae.d_sae),
                "dead_after": self.config.dead_after,
            },
            "sae": sae,
            "terms": [term.to_json() for term in self.terms],
            "upkeep": [upkeep.to_json() for upkeep in self.upkeep],
            "data": self.store.identity,
        }

    def _finish(self) -> None:
        self.sae.metadata["training"] = {
            "tokens": self.tokens_done,
            "terms": [term.to_json() for term in self.terms],
            "upkeep": [upkeep.to_json() for upkeep in self.upkeep],
            "config": self.config.to_json(),
        }
        self.sae.metadata["data"] = self.store.identity
        if self.store.identity.get("model") is not None:
            self.sae.metadata["model"] = self.store.identity["model"]
        if self.folder is not None:
            self.sae.save(self.folder / "sae")
            self.save_checkpoint()


_UNCOMPARED = ("metadata", "normalization")


def train(
    sae: SAE,
    store: ActivationStore,
    config: TrainConfig | None = None,
    folder: str | Path | None = None,
    *,
    terms: Sequence[Term] | None = None,
    upkeep: Sequence[Upkeep] = (),
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
    if folder is None:
        return Trainer(sae, store, config, None, terms, upkeep).run(progress)
    with folder_lock(folder):
        return Trainer(sae, store, config, folder, terms, upkeep).run(progress)


def _crossed(before: int, after: int, every: int) -> bool:
    return before // every != after // every


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose name starts with a prefix, without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _hooks(sae: SAE, store: ActivationStore) -> list[str]:
    """The hook points a step reads: the input's, a transcoder's target, and the selection's own.

    Raises:
        ConfigError: The store lacks one of them, or its width is not the dictionary's.
    """
    if store.d_in != sae.d_in:
        raise ConfigError(
            f"The dictionary reads width {sae.d_in} but the store holds {store.hook} of "
            f"width {store.d_in}. Use SAE(d_in={store.d_in}, ...) or another store."
        )
    hooks = [store.hook]
    if sae.is_transcoder:
        if sae.hook_out is None:
            raise ConfigError(
                f"The dictionary writes width {sae.d_out}, not the {sae.d_in} it reads, but has "
                "no hook_out. Name the hook point it should reconstruct: SAE(hook_out=...)."
            )
        hooks.append(sae.hook_out)
    hooks += sae.activation.reads
    if missing := [name for name in hooks if name not in store.hooks]:
        raise ConfigError(
            f"Training needs {', '.join(missing)}, which the store does not hold; it has "
            f"{', '.join(store.hooks)}. Harvest them together."
        )
    if sae.is_transcoder and store.widths[hooks[1]] != sae.d_out:
        raise ConfigError(
            f"The dictionary writes width {sae.d_out} but the store holds {hooks[1]} of width "
            f"{store.widths[hooks[1]]}. Use SAE(d_out={store.widths[hooks[1]]}, ...)."
        )
    return hooks
