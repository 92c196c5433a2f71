"""The main job from end to end: text, activations, dictionary, evaluation, first look.

    text/        the split, by document; no held-out document is trained on
    activations/ the store
    topk/        the run: metrics.jsonl, checkpoints, the dictionary in sae/, both reports

Every stage finds what it finished before and goes on from there, so the same command run again
continues.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from saelab import corpora, tokens
from saelab.activation_functions import TopK
from saelab.errors import ConfigError, CorpusError
from saelab.evaluation import EvaluateConfig, Evaluation, evaluate
from saelab.harvesting import harvest
from saelab.latents import FirstLook, look
from saelab.models import LanguageModel, load_model
from saelab.run_folders import HarvestSource
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.tokens import Tokens
from saelab.training import TrainResult, train
from saelab.training.config import TrainConfig

__all__ = ["QuickstartConfig", "QuickstartResult", "quickstart"]

Stage = Callable[[str], AbstractContextManager[Callable[..., None]]]
"""Given a stage's name, a context manager that gives its progress callback."""

MAX_OVERLAP = 0.05
"""Above this share of held-out 13-grams found in training text, the numbers would flatter."""


@final
@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """How large the first dictionary is; the defaults take about ten minutes on two cores."""

    model: str = "smollm2"
    """An alias, a hub id, a local transformers folder or a .gguf file."""
    text: str = "sotu"
    """A corpus's name, or a path."""
    hook: str = "blocks.15.hook_resid_post"
    """Hook point that the dictionary reads."""
    length: int = 128
    """Tokens in a row, BOS included."""
    harvest_tokens: int = 150_000
    """Token positions whose activations are stored, the held-out ones not counted."""
    held_out_tokens: int = 16_384
    """Token positions kept for evaluation and for the first look."""
    loss_tokens: int = 2_048
    """Held-out positions on which the model is run with the reconstruction in place."""
    d_sae: int = 4608
    """Latents."""
    k: int = 32
    """Latents per token."""
    train_tokens: int = 1_500_000
    """Training budget in tokens: several passes over the store."""
    batch_size: int = 2048
    """Tokens per step."""
    lr: float | None = None
    """Peak learning rate; None for the default of `TrainConfig`."""
    seed: int = 0
    """Of the documents read and held out, the dictionary's start and the order of the data."""

    def __post_init__(self) -> None:
        sizes = ("length", "harvest_tokens", "held_out_tokens", "loss_tokens", "train_tokens")
        for name in (*sizes, "d_sae", "k", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"QuickstartConfig({name}={getattr(self, name)}) must be positive."
                )

    @property
    def held_out_share(self) -> float:
        """Held-out positions over all positions read."""
        return self.held_out_tokens / (self.held_out_tokens + self.harvest_tokens)


@final
@dataclass(frozen=True, slots=True)
class QuickstartResult:
    """What was made."""

    folder: Path
    """Where everything is."""
    train_tokens: Tokens
    """What was harvested."""
    held_out: Tokens
    """What was kept for evaluation."""
    overlap: dict[str, Any]
    """How much held-out text occurs in the training text."""
    store: ActivationStore
    """The activations."""
    training: TrainResult
    """The dictionary and its logs."""
    evaluation: Evaluation
    """On held-out text."""
    first_look: FirstLook
    """Of every latent, on held-out text."""

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.folder / "topk"

    @property
    def pages(self) -> tuple[Path, Path]:
        """The two reports: evaluation and first look."""
        return self.run / "evaluation.html", self.run / "first_look.html"


def quickstart(
    folder: str | Path,
    config: QuickstartConfig | None = None,
    *,
    stage: Stage,
    model: LanguageModel | None = None,
) -> QuickstartResult:
    """Train a first dictionary, measure it on text it has not seen, and look at its latents.

    Args:
        folder: Where everything goes; run again to go on after an interruption.
        config: Sizes and sources.
        stage: Called with the name of each stage; gives its progress callback.
        model: Already loaded; otherwise `config.model` is loaded.

    Raises:
        ConfigError: The folder holds a run with other settings.
        CorpusError: There is too little text, or held-out text occurs in the training text.
        Interrupted: A signal stopped the work; run the same command again to go on.
    """
    config, folder = config or QuickstartConfig(), Path(folder)
    if model is None:
        with stage("Load the model"):
            model = load_model(config.model)
    with stage("Read and split the text"):
        train_tokens, held_out = _split(model, config)
        overlap = tokens.overlap(train_tokens, held_out)
        _refuse_leak(overlap)
        source = HarvestSource.asked(config.model, [_text(config.text)])
        source.save(folder / "activations")
        held_out.save(folder / "activations" / "tokens" / "held_out")
    with stage("Harvest activations") as progress:
        store = harvest(
            model, train_tokens, [config.hook], folder / "activations", progress=progress
        )
    with stage("Train the dictionary") as progress:
        training = _train(store, config, folder, progress)
    sae = training.sae
    with stage("Evaluate on held-out text") as progress:
        settings = EvaluateConfig(max_loss_tokens=config.loss_tokens)
        evaluation = evaluate(sae, model=model, tokens=held_out, config=settings, progress=progress)
        evaluation.save(folder / "topk")
    with stage("Look at the latents") as progress:
        first_look = look(sae, model, held_out, progress=progress)
        first_look.save_html(folder / "topk" / "first_look.html")
    return QuickstartResult(
        folder, train_tokens, held_out, overlap, store, training, evaluation, first_look
    )


def _text(text: str) -> str | Path:
    return text if text in corpora.names() else Path(text).expanduser()


def _split(model: LanguageModel, config: QuickstartConfig) -> tuple[Tokens, Tokens]:
    """Read documents in a seeded order until there are enough, and hold some out."""
    read = tokens.from_text(
        model,
        _text(config.text),
        length=config.length,
        max_tokens=config.harvest_tokens + config.held_out_tokens,
        seed=config.seed,
    )
    return read.split(config.held_out_share, config.seed)


def _refuse_leak(overlap: dict[str, Any]) -> None:
    if overlap["share"] > MAX_OVERLAP or overlap["duplicate_rows"]:
        worst = overlap["worst_documents"][0]["document"] if overlap["worst_documents"] else "none"
        raise CorpusError(
            f"{overlap['share']:.1%} of the held-out text's 13-grams and "
            f"{overlap['duplicate_rows']} of its rows occur in the training text too (most in "
            f"{worst!r}): an evaluation would flatter. Remove duplicates, or use another text."
        )


def _train(
    store: ActivationStore,
    config: QuickstartConfig,
    folder: Path,
    progress: Callable[..., None],
) -> TrainResult:
    sae = SAE(store.d_in, config.d_sae, TopK(config.k), hook=store.hook, seed=config.seed)
    settings = TrainConfig(
        tokens=config.train_tokens,
        batch_size=config.batch_size,
        lr=config.lr,
        seed=config.seed,
    )
    return train(sae, store, settings, folder / "topk", progress=progress)
