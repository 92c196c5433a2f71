"""How is a cross-layer transcoder trained? The loop of `training`, with one error over all layers.

    loss = sum over layers m of |target^m - recons^m|^2, over the variance of all targets
         + 1/32 * AuxK: the dead latents of every layer reconstruct what is missing downstream

The order of a step is the reference order: exact gradients over the kept pairs, the decoder
gradient projected, global clipping, Adam, decoder rows back to norm 1. A row is a latent's
directions to all its layers, so its norm is the norm over all that it writes. Killed at any moment
and started again, a run ends with the same bits.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from saelab.cross_layer.gradients import AUXK, CrossLayerGradients
from saelab.cross_layer.transcoder import Chosen, CrossLayerTranscoder
from saelab.directions import aimed
from saelab.errors import CheckpointError, ConfigError, DataError, Interrupted
from saelab.files import folder_lock
from saelab.normalization import Normalization
from saelab.signals import StopRequest
from saelab.store import ActivationStore, Batch
from saelab.training.checkpoints import under
from saelab.training.config import TrainConfig
from saelab.training.initialization import geometric_median
from saelab.training.optimizers import Adam, rate_at
from saelab.training.result import Progress, crossed, in_words
from saelab.training.run_logs import RunLog
from saelab.training.runs import TrainingRun

__all__ = ["CrossLayerResult", "CrossLayerTrainer", "train_cross_layer"]

SAMPLE_TOKENS = 8192
"""How many activations of every layer the scales and centers are measured on."""
MEMORY = 0.99
"""How slowly the joint rule's threshold forgets."""


@final
@dataclass(frozen=True, slots=True)
class CrossLayerResult:
    """What a finished run leaves."""

    clt: CrossLayerTranscoder
    """The trained dictionary; the same object that was passed in."""
    metrics: list[dict[str, Any]]
    """The rows of metrics.jsonl."""
    seconds: float
    """Wall time of the steps, over all the run's starts."""


@final
class CrossLayerTrainer:
    """The loop's state: one `step` at a time, saved and resumed exactly.

    Args:
        clt: Trained in place.
        store: Holds what every layer reads and writes.
        config: Budget, rates, intervals.
        folder: Run folder; None trains without saving.

    Raises:
        ConfigError: The store lacks a hook point, or the folder holds another run.
    """

    def __init__(
        self,
        clt: CrossLayerTranscoder,
        store: ActivationStore,
        config: TrainConfig | None = None,
        folder: str | Path | None = None,
    ) -> None:
        self.clt, self.store, self.config = clt, store, config or TrainConfig()
        self.hooks = list(dict.fromkeys((*clt.hooks, *clt.hooks_out)))
        _check_store(clt, store)
        self.steps_done = self.cursor = 0
        self.seconds = 0.0
        self.since_fired = torch.zeros(
            clt.n_layers, clt.d_sae, dtype=torch.int64, device=clt.device
        )
        self._parameters = dict(clt.named_parameters())
        self._optimizer = Adam(self._parameters, self.config.betas)
        self._gradients = CrossLayerGradients(clt)
        self._batches: Iterator[Batch[dict[str, Tensor]]] | None = None
        self.run_files = TrainingRun(folder, self._manifest())
        if self.run_files.found is None:
            self._start()
        else:
            self._restore()
        resumed_at = None if self.run_files.found is None else self.steps_done
        self.log = RunLog(self.run_files.folder, self.config.mirrors, resumed_at)

    @property
    def tokens_done(self) -> int:
        """Tokens trained on so far."""
        return self.steps_done * self.config.batch_size

    @property
    def finished(self) -> bool:
        """Whether the budget is spent."""
        return self.steps_done >= self.config.steps

    @torch.no_grad()
    def _start(self) -> None:
        """Fit scales, biases and decoders, unless they have been set; measure the variance."""
        clt, config = self.clt, self.config
        sample = self._sample()
        untrained = not any(bias.any() for bias in clt.b_dec)
        inputs: list[Tensor] = []
        targets: list[Tensor] = []
        for layer in range(clt.n_layers):
            x = sample[clt.hooks[layer]].to(clt.device, clt.dtype)
            y = sample[clt.hooks_out[layer]].to(clt.device, clt.dtype)
            if untrained and config.normalize:
                clt.normalizations[layer] = Normalization.fit(x, y)
            own = clt.normalizations[layer]
            x, y = x * own.scale_in, y * own.scale_out
            if untrained and config.center != "zero":
                center = y.mean(0) if config.center == "mean" else geometric_median(y)
                clt.b_dec[layer].copy_(center)
                clt.b_enc[layer].copy_(-(x.mean(0) @ clt.W_enc[layer]))
            inputs.append(x)
            targets.append(y)
            self._gradients.variance += (
                (y.double() - y.double().mean(0)).square().sum(1).mean().item()
            )
        for layer, x in enumerate(inputs if untrained and config.decoder == "unit" else ()):
            start = aimed(clt.W_enc[layer], x, torch.cat(targets[layer:], dim=1))
            found = start.any(dim=1)
            clt.W_dec[layer][found] = start[found]

    def _sample(self) -> dict[str, Tensor]:
        """Rows of every hook point at once: a streaming store runs its model once for them."""
        n = min(SAMPLE_TOKENS, self.store.n_tokens)
        window = min(self.config.window_tokens, n)
        batches = self.store.batches(
            n, seed=self.config.seed, window_tokens=window, hooks=self.hooks
        )
        return next(batches).activations

    def step(self, batch: Batch[dict[str, Tensor]] | None = None) -> dict[str, Any]:
        """One optimizer step; returns its numbers.

        Raises:
            DataError: The loss is not finite; the last checkpoint is kept.
        """
        started = time.perf_counter()
        batch = batch or self._next_batch()
        dead = self.since_fired >= self.config.dead_after
        chosen, row = self._gradients(batch.activations, dead)
        if not math.isfinite(row["loss"]):
            raise DataError(
                f"The loss became {row['loss']} at step {self.steps_done + 1}: the activations are "
                "not finite, or the learning rate is too high. The last checkpoint is kept."
            )
        self._observe(chosen, self.config.batch_size)
        lr = rate_at(self.config, self.tokens_done, self.clt.d_sae)
        row["grad_norm"] = self._update(lr)
        self.cursor = batch.cursor
        self.steps_done += 1
        self.seconds += time.perf_counter() - started
        done = {"step": self.steps_done, "tokens": self.tokens_done}
        return {**done, **row, "dead_share": dead.float().mean().item(), "lr": lr}

    def run(self, progress: Progress | None = None) -> CrossLayerResult:
        """Train until the budget is spent, logging and saving on the way.

        Raises:
            Interrupted: SIGINT or SIGTERM asked to stop; a checkpoint was written.
        """
        config = self.config
        with StopRequest() as stop:
            while not self.finished:
                before = self.tokens_done
                row = self.step()
                if crossed(before, self.tokens_done, config.log_every_tokens) or self.finished:
                    self.log.metric(row, self.seconds)
                if progress is not None:
                    progress(min(self.tokens_done, config.tokens), config.tokens, in_words(row))
                stopped = stop.asked and not self.finished
                every = config.checkpoint_every_tokens
                if crossed(before, self.tokens_done, every) or stopped:
                    self.save_checkpoint()
                if stopped:
                    raise Interrupted(
                        self.run_files.how_to_go_on(stop.name, self.tokens_done, config.tokens)
                    )
        self._finish()
        return CrossLayerResult(self.clt, self.log.metrics, self.seconds)

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

    @torch.no_grad()
    def _observe(self, chosen: Chosen, n_tokens: int) -> None:
        """Count how long latents have been silent, and move the joint rule's threshold."""
        self.since_fired += n_tokens
        for layer, (pairs, _) in enumerate(chosen.kept):
            fired = torch.bincount(pairs.indices, minlength=self.clt.d_sae).bool()
            self.since_fired[layer][fired] = 0
        if chosen.border is not None:
            # A plain mean at first, so that the start at zero leaves no bias.
            weight = max(1 - MEMORY, 1 / (self.steps_done + 1))
            self.clt.threshold += weight * (chosen.border - self.clt.threshold)

    @torch.no_grad()
    def _update(self, lr: float) -> float:
        """Project, clip, step, renormalize; returns the gradient norm before clipping."""
        unit = self.config.decoder == "unit"
        for W_dec in self.clt.W_dec if unit else ():
            gradient = self._gradients.buffers.of(W_dec)
            along = (gradient * W_dec).sum(1, keepdim=True)
            gradient.addcmul_(along, W_dec, value=-1)
        gradients = {name: self._gradients.buffers.of(p) for name, p in self._parameters.items()}
        norms = [torch.linalg.vector_norm(g) for g in gradients.values()]
        norm = torch.linalg.vector_norm(torch.stack(norms)).item()
        clip = self.config.clip
        self._optimizer.step(gradients, lr, norm / clip if clip and norm > clip else 1.0)
        for W_dec in self.clt.W_dec if unit else ():
            W_dec.div_(torch.linalg.vector_norm(W_dec, dim=1, keepdim=True))
        return norm

    def save_checkpoint(self) -> None:
        """Write everything the next step depends on; without a folder, nothing."""
        if self.run_files.folder is None:
            return
        tensors = {f"clt.{name}": value for name, value in self.clt.state_dict().items()}
        tensors |= {f"optimizer.{name}": value for name, value in self._optimizer.state().items()}
        tensors["since_fired"] = self.since_fired
        state = {
            "cursor": self.cursor,
            "variance": self._gradients.variance,
            "normalizations": [one.to_json() for one in self.clt.normalizations],
        }
        self.log.time(self.steps_done, self.seconds)
        self.run_files.write(self.steps_done, tensors, state)

    def _restore(self) -> None:
        tensors, state = self.run_files.read()
        try:
            self.clt.load_state_dict(under("clt.", tensors))
            self._optimizer.load(under("optimizer.", tensors))
            self.since_fired.copy_(tensors["since_fired"])
            self.steps_done, self.cursor = state["step"], state["cursor"]
            self._gradients.variance = state["variance"]
            self.clt.normalizations = [Normalization(**one) for one in state["normalizations"]]
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"{self.run_files.found} is a checkpoint of another dictionary: {error}."
            ) from None

    def _manifest(self) -> dict[str, Any]:
        left_out = ("metadata", "normalizations", "threshold")
        own = {k: v for k, v in self.clt.settings().items() if k not in left_out}
        return {
            "format": "saelab-cross-layer-run",
            "version": 1,
            "config": self.config.to_json(),
            "resolved": {
                "peak_lr": self.config.peak_lr(self.clt.d_sae),
                "dead_after": self.config.dead_after,
            },
            "sae": own,
            "terms": [{"name": "reconstruction"}, {"name": "auxk", "coefficient": AUXK}],
            "upkeep": [],
            "data": self.store.identity,
        }

    def _finish(self) -> None:
        identity = self.store.identity
        training = {"tokens": self.tokens_done, "config": self.config.to_json()}
        self.clt.metadata |= {"training": training, "data": identity}
        if identity.get("model") is not None:
            self.clt.metadata["model"] = identity["model"]
        if self.run_files.folder is not None:
            self.clt.save(self.run_files.folder / "clt")
            self.save_checkpoint()


def train_cross_layer(
    clt: CrossLayerTranscoder,
    store: ActivationStore,
    config: TrainConfig | None = None,
    folder: str | Path | None = None,
    *,
    progress: Progress | None = None,
) -> CrossLayerResult:
    """Train a cross-layer transcoder; run again to go on after an interruption.

    Args:
        clt: Trained in place.
        store: Holds what every layer reads and writes.
        config: Budget, learning rate and intervals.
        folder: Run folder: metrics.jsonl, checkpoints, and the dictionary in `clt/`.
        progress: Called after every step.

    Raises:
        ConfigError: Settings contradict the store, or the run in the folder.
        FolderBusyError: Another process is training in the folder.
        Interrupted: SIGINT or SIGTERM came; run the same command again to go on.
    """
    if folder is None:
        return CrossLayerTrainer(clt, store, config).run(progress)
    with folder_lock(folder):
        return CrossLayerTrainer(clt, store, config, folder).run(progress)


def _check_store(clt: CrossLayerTranscoder, store: ActivationStore) -> None:
    for hooks, width in ((clt.hooks, clt.d_in), (clt.hooks_out, clt.d_out)):
        for hook in hooks:
            if store.widths.get(hook) != width:
                found = store.widths.get(hook, "nothing")
                raise ConfigError(
                    f"The cross-layer transcoder needs {hook} of width {width}; the store holds "
                    f"{found}. Harvest what every MLP reads and writes together."
                )
