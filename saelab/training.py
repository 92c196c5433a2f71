"""Training: one loop for every family.

Each step, in the reference order:

    1. loss and exact gradients over the selected pairs
    2. remove from each decoder direction's gradient its component along the direction
    3. clip the global gradient norm
    4. Adam, with the learning rate of this many tokens
    5. scale every decoder direction back to norm 1

Adam divides elementwise, so step 4's update is not tangent even after step 2; step 5 is what
keeps the directions at norm 1, and so does every checkpoint.

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

from saelab.checkpoints import latest_checkpoint, read_checkpoint, write_checkpoint
from saelab.errors import CheckpointError, ConfigError, DataError, Interrupted
from saelab.files import folder_lock, provenance, read_json, write_json
from saelab.initialization import initialize
from saelab.kernels import GradientBuffers
from saelab.objectives import Step, Term, default_terms
from saelab.optimizers import Adam, learning_rate
from saelab.run_logs import RunLog
from saelab.sae import SAE
from saelab.signals import StopRequest
from saelab.store import ActivationStore, Batch
from saelab.train_config import TrainConfig
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
    ) -> None:
        if store.d_in != sae.d_in:
            raise ConfigError(
                f"The dictionary reads width {sae.d_in} but the store holds {store.hook} of "
                f"width {store.d_in}. Use SAE(d_in={store.d_in}, ...) or another store."
            )
        self.sae, self.store, self.config = sae, store, config or TrainConfig()
        self.folder = None if folder is None else Path(folder)
        self.terms = tuple(default_terms(sae) if terms is None else terms)
        self.steps_done = self.cursor = 0
        self.seconds = 0.0
        self.since_fired = torch.zeros(sae.d_sae, dtype=torch.int64, device=sae.device)
        self._parameters = dict(sae.named_parameters())
        self._optimizer = Adam(self._parameters)
        self._buffers = GradientBuffers(list(self._parameters.values()))
        self._batches: Iterator[Batch] | None = None
        self.variance = 0.0
        self.log = self._start()
        self._watch = Watch(self.log, sae, self.config)

    @property
    def tokens_done(self) -> int:
        """Tokens trained on so far."""
        return self.steps_done * self.config.batch_size

    @property
    def finished(self) -> bool:
        """Whether the budget is spent."""
        return self.steps_done >= self.config.steps

    def step(self) -> dict[str, Any]:
        """One optimizer step; returns its numbers.

        Raises:
            DataError: The loss is not finite; the last checkpoint is kept.
        """
        started = time.perf_counter()
        config, sae = self.config, self.sae
        batch = self._next_batch()
        inputs = batch.activations.to(sae.device, sae.dtype) * sae.normalization.scale_in
        dead = self.since_fired >= config.dead_after
        row = self._gradients(inputs, dead)
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
                    raise Interrupted(self._how_to_go_on(stop.name))
        self._finish()
        return TrainResult(self.sae, self.log.metrics, self.log.events, self.seconds)

    def save_checkpoint(self) -> None:
        """Write everything the next step depends on; without a folder, nothing."""
        if self.folder is None:
            return
        tensors = {f"sae.{name}": value for name, value in self.sae.state_dict().items()}
        tensors |= {f"optimizer.{name}": value for name, value in self._optimizer.state().items()}
        tensors["since_fired"] = self.since_fired
        state = {
            "cursor": self.cursor,
            "variance": self.variance,
            "normalization": self.sae.normalization.to_json(),
        }
        self.log.time(self.steps_done, self.seconds)
        write_checkpoint(self.folder / "checkpoints", self.steps_done, tensors, state)

    def _next_batch(self) -> Batch:
        if self._batches is None:
            self._batches = self.store.batches(
                self.config.batch_size,
                seed=self.config.seed,
                cursor=self.cursor,
                window_tokens=self.config.window_tokens,
            )
        return next(self._batches)

    def _gradients(self, inputs: Tensor, dead: Tensor) -> dict[str, float]:
        """Fill the gradient buffers; returns loss, its terms, fvu and l0 of this batch."""
        sae = self.sae
        self._buffers.begin()
        asked = {term.name: term.selection(sae, dead) for term in self.terms}
        extra = {name: selection for name, selection in asked.items() if selection is not None}
        forward = sae.forward_pairs(inputs, training=True, buffers=self._buffers, extra=extra)
        progress = self.tokens_done / self.config.tokens
        step = Step(sae, forward, inputs, self.variance, self._buffers, progress)
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
        active = forward.latents != 0
        sae.activation.observe(forward.latents[active].detach())
        with torch.no_grad():
            fired = torch.bincount(forward.pairs.indices[active], minlength=sae.d_sae).bool()
            self.since_fired += len(inputs)
            self.since_fired[fired] = 0
            spread = (inputs - inputs.mean(0)).square().sum()
            fvu = (inputs - forward.recons).square().sum() / spread
            l0 = active.sum() / len(inputs)
        return {
            "loss": loss.item(),
            **{name: value.item() for name, value in terms.items()},
            "fvu": fvu.item(),
            "l0": l0.item(),
        }

    @torch.no_grad()
    def _update(self, lr: float) -> float:
        """Project, clip, step, renormalize; returns the gradient norm before clipping."""
        W_dec = self.sae.W_dec
        gradient = self._buffers.of(W_dec)
        along = torch.bmm(gradient.unsqueeze(1), W_dec.unsqueeze(2)).squeeze(1)
        gradient.addcmul_(along, W_dec, value=-1)
        gradients = {name: self._buffers.of(p) for name, p in self._parameters.items()}
        norms = [torch.linalg.vector_norm(g) for g in gradients.values()]
        norm = torch.linalg.vector_norm(torch.stack(norms)).item()
        clip = self.config.clip
        scale = norm / clip if clip is not None and norm > clip else 1.0
        self._optimizer.step(gradients, lr, scale)
        W_dec.div_(torch.linalg.vector_norm(W_dec, dim=1, keepdim=True))
        self.sae.activation.constrain()
        return norm

    def _start(self) -> RunLog:
        """Continue the run in the folder, or begin one."""
        manifest = self._manifest()
        saved = None
        if self.folder is not None:
            if (self.folder / "run.json").exists():
                _check_same_run(self.folder, manifest)
                saved = latest_checkpoint(self.folder / "checkpoints")
            else:
                write_json(self.folder / "run.json", {**manifest, "provenance": provenance()})
        if saved is not None:
            self._restore(saved)
        else:
            self.variance = initialize(self.sae, self.store, self.config)
        return RunLog(self.folder, self.config.mirrors, None if saved is None else self.steps_done)

    def _restore(self, path: Path) -> None:
        tensors, state = read_checkpoint(path)
        try:
            own = {n.removeprefix("sae."): t for n, t in tensors.items() if n.startswith("sae.")}
            self.sae.load_state_dict(own)
            prefix = "optimizer."
            self._optimizer.load(
                {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            )
            self.since_fired.copy_(tensors["since_fired"])
            self.steps_done, self.cursor = state["step"], state["cursor"]
            self.variance = state["variance"]
            self.sae.normalization = type(self.sae.normalization)(**state["normalization"])
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} is a checkpoint of another dictionary than this run's: {error}."
            ) from None

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
            "data": self.store.identity,
        }

    def _how_to_go_on(self, signal_name: str) -> str:
        if self.folder is None:
            return f"{signal_name}: stopped after {self.tokens_done:,} tokens; nothing is saved."
        return (
            f"{signal_name}: stopped after {self.tokens_done:,} of {self.config.tokens:,} tokens. "
            f"The state is in {self.folder}; run the same command again to go on exactly there."
        )

    def _finish(self) -> None:
        self.sae.metadata["training"] = {
            "tokens": self.tokens_done,
            "terms": [term.to_json() for term in self.terms],
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
        return Trainer(sae, store, config, None, terms).run(progress)
    with folder_lock(folder):
        return Trainer(sae, store, config, folder, terms).run(progress)


def _crossed(before: int, after: int, every: int) -> bool:
    return before // every != after // every


def _check_same_run(folder: Path, manifest: dict[str, Any]) -> None:
    found = read_json(folder / "run.json", "a run's description")
    different = [
        f"{part}.{key}: {found.get(part, {}).get(key)!r} there, {value!r} asked"
        for part in ("config", "resolved", "sae", "data")
        for key, value in manifest[part].items()
        if found.get(part, {}).get(key) != value
    ]
    if found.get("terms") != manifest["terms"]:
        different.append(f"terms: {found.get('terms')!r} there, {manifest['terms']!r} asked")
    if different:
        raise ConfigError(
            f"{folder} holds another run, and would not continue as asked: "
            f"{'; '.join(different)}. Choose another folder, or ask for the same settings."
        )
