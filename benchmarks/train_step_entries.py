"""What `benchmarks.train_step` measures: one training step of saelab and of other libraries.

Each function builds a trainer of one family and returns its step. With `dead` above 0, that share
of the latents counts as dead before every step, so that AuxK has something to do in the libraries
and families that have it (JumpReLU has none).
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from saelab.activation_functions import ActivationFunction, BatchTopK, JumpReLU, TopK
from saelab.sae import SAE
from saelab.store import ActivationStore, Batch
from saelab.training import Trainer
from saelab.training.config import TrainConfig

__all__ = ["ENTRIES", "FAMILIES", "SIZES", "Case", "Step"]

SIZES = {
    "A": (576, 9216, 4096),
    "B": (576, 36864, 2048),
    "C": (768, 24576, 4096),
    "tiny": (32, 256, 128),
}
FAMILIES = ("topk", "batchtopk", "jumprelu")
LONG_AGO = 10**9
"""More tokens, or steps, than any library waits before it calls a latent dead."""

Step = Callable[[Tensor], object]


@final
@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured."""

    size: str
    """A name in SIZES, or d_in,d_sae,batch."""
    family: str = "topk"
    """One of FAMILIES."""
    k: int = 32
    """Latents per token, for the families that have it."""
    dead: float = 0.0
    """Share of latents made dead before every step."""
    device: str = "cpu"
    """Where the step runs."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """d_in, d_sae, batch."""
        if self.size in SIZES:
            return SIZES[self.size]
        d_in, d_sae, batch = (int(part) for part in self.size.split(","))
        return d_in, d_sae, batch

    @property
    def n_dead(self) -> int:
        """How many latents are made dead."""
        return round(self.dead * self.shape[1])


def matmul(case: Case, data: Tensor) -> Step:  # noqa: ARG001
    """The encoder's matrix product alone, into memory that is reused."""
    d_in, d_sae, batch = case.shape
    weight = torch.randn(d_sae, d_in, device=case.device)
    out = torch.empty(batch, d_sae, device=case.device)
    return lambda x: torch.mm(x, weight.T, out=out)


def ours(case: Case, data: Tensor) -> Step:
    """A step of `saelab.Trainer`, which is given the batch as every other entry is."""
    d_in, d_sae, batch = case.shape
    activations: dict[str, ActivationFunction] = {
        "topk": TopK(case.k),
        "batchtopk": BatchTopK(case.k),
        "jumprelu": JumpReLU(),
    }
    hook = "benchmark"
    store = ActivationStore.from_tensor(data.cpu(), hook=hook)
    config = TrainConfig(tokens=1000 * batch, batch_size=batch, lr=1e-3)
    sae = SAE(d_in, d_sae, activations[case.family]).to(case.device)
    trainer = Trainer(sae, store, config)

    def step(rows: Tensor) -> None:
        trainer.since_fired[: case.n_dead] = LONG_AGO
        trainer.step(Batch({hook: rows}, trainer.cursor + len(rows)))

    return step


def saelens(case: Case, data: Tensor) -> Step:  # noqa: ARG001
    """SAELens's own trainer step."""
    import sae_lens  # pyright: ignore[reportMissingImports]
    from sae_lens.config import LoggingConfig, SAETrainerConfig  # pyright: ignore[reportMissingImports]
    from sae_lens.training.sae_trainer import SAETrainer  # pyright: ignore[reportMissingImports]

    d_in, d_sae, batch = case.shape
    name = {"topk": "TopK", "batchtopk": "BatchTopK", "jumprelu": "JumpReLU"}[case.family]
    more: dict[str, Any] = {} if case.family == "jumprelu" else {"k": case.k}
    make_config = getattr(sae_lens, f"{name}TrainingSAEConfig")
    sae_config = make_config(d_in=d_in, d_sae=d_sae, device=case.device, **more)
    sae = getattr(sae_lens, f"{name}TrainingSAE")(sae_config)
    config = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=1000 * batch,
        device=case.device,
        autocast=False,
        lr=1e-3,
        lr_end=1e-4,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=0,
        n_restart_cycles=1,
        train_batch_size_samples=batch,
        dead_feature_window=1000,
        feature_sampling_window=2000,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(config, sae, iter([]))

    def step(x: Tensor) -> None:
        trainer.n_forward_passes_since_fired[: case.n_dead] = LONG_AGO
        trainer.step(x)

    return step


def dictionary_learning(case: Case, data: Tensor) -> Step:  # noqa: ARG001
    """dictionary_learning's own trainer update."""
    from dictionary_learning import trainers  # pyright: ignore[reportMissingImports]

    d_in, d_sae, _ = case.shape
    common: dict[str, Any] = {
        "steps": 100_000,
        "activation_dim": d_in,
        "dict_size": d_sae,
        "layer": 0,
        "lm_name": "x",
        "device": case.device,
    }
    if case.family == "jumprelu":
        trainer = trainers.jumprelu.JumpReluTrainer(**common)
    elif case.family == "batchtopk":
        trainer = trainers.batch_top_k.BatchTopKTrainer(k=case.k, **common)
    else:
        trainer = trainers.top_k.TopKTrainer(k=case.k, **common)

    def step(x: Tensor) -> None:
        if case.n_dead and case.family != "jumprelu":
            trainer.num_tokens_since_fired[: case.n_dead] = LONG_AGO
        trainer.update(1, x)

    return step


def sparsify(case: Case, data: Tensor) -> Step:  # noqa: ARG001
    """The coder of sparsify in the steps of its trainer, which itself wants a language model."""
    if case.family != "topk":
        raise ImportError(f"it has no {case.family}")
    os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")
    from sparsify.config import SparseCoderConfig  # pyright: ignore[reportMissingImports]
    from sparsify.sparse_coder import SparseCoder  # pyright: ignore[reportMissingImports]

    d_in, d_sae, _ = case.shape
    coder = SparseCoder(d_in, SparseCoderConfig(num_latents=d_sae, k=case.k), device=case.device)
    optimizer = torch.optim.Adam(coder.parameters(), lr=1e-3)
    fired = torch.zeros(d_sae, dtype=torch.bool, device=case.device)
    dead = torch.zeros(d_sae, dtype=torch.bool, device=case.device)
    dead[: case.n_dead] = True

    def step(x: Tensor) -> None:
        coder.set_decoder_norm_to_unit_norm()
        out = coder(x, dead_mask=dead if case.n_dead else None)
        (out.fvu + out.auxk_loss / 32).backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        fired[out.latent_indices.flatten()] = True

    return step


ENTRIES: dict[str, Callable[[Case, Tensor], Step]] = {
    "encoder matmul": matmul,
    "saelab": ours,
    "SAELens": saelens,
    "dictionary_learning": dictionary_learning,
    "sparsify (Adam)": sparsify,
}
