"""Transcoders of many layers from one pass of the model: trained, kept, opened and measured.

    set.json                what is in the folder
    layer_07/               the run of one layer's transcoder, see `training`
    layer_07/sae/           the dictionary itself

Nothing is stored of the activations: every layer's MLP is read in the same forward pass, and all
transcoders learn from it. Killed at any moment and started again, every layer ends with the bits it
would have had.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from torch import Tensor

from saelab.activation_functions import TopK
from saelab.errors import CheckpointError, ConfigError
from saelab.files import provenance, read_json, write_json
from saelab.metrics import Reconstruction, ReconstructionMetrics
from saelab.models import LanguageModel
from saelab.replacement_model import ReplacementEffects, replacement_effects
from saelab.sae import SAE
from saelab.store import ActivationStore, Addresses, HarvestConfig
from saelab.store.sources import Source
from saelab.sweeps import Member, sweep
from saelab.tokens import Tokens
from saelab.training.config import TrainConfig

__all__ = ["SetQuality", "TranscoderSetConfig", "load_set", "measure_set", "train_set"]

FORMAT = "saelab-transcoder-set"
VERSION = 1


@final
@dataclass(frozen=True, kw_only=True)
class TranscoderSetConfig:
    """How the transcoders of a set are trained; all of them alike."""

    layers: tuple[int, ...] = ()
    """Which layers; all of them if none is named."""
    d_sae: int = 2304
    """Latents of each; 4 times the width of the default model."""
    k: int = 32
    """Latents per token."""
    skip: bool = True
    """Whether each has a linear path beside its latents."""
    tokens: int = 500_000
    """Training budget in tokens; all layers see the same ones."""
    batch_size: int = 2048
    """Tokens per step."""
    lr: float | None = None
    """Peak learning rate; None for 2e-3 * sqrt(4608 / d_sae)."""
    window_tokens: int = 16_384
    """Tokens shuffled together; two windows of every layer's inputs and outputs are in memory."""
    rows_per_batch: int = 8
    """Token rows in one forward pass."""
    start_tokens: int = 4096
    """Tokens that scales and directions are fitted on."""
    checkpoint_every_tokens: int = 100_000
    """Tokens between two checkpoints."""
    seed: int = 0
    """Of the directions and of the order of the data."""

    def __post_init__(self) -> None:
        if self.start_tokens < 2 or len(set(self.layers)) < len(self.layers):
            raise ConfigError(
                f"TranscoderSetConfig(layers={self.layers}, start_tokens={self.start_tokens}): "
                "name each layer once, and fit on at least two tokens."
            )

    def training(self) -> TrainConfig:
        """The loop's settings."""
        return TrainConfig(
            tokens=self.tokens,
            batch_size=self.batch_size,
            lr=self.lr,
            seed=self.seed,
            center="mean",
            window_tokens=self.window_tokens,
            checkpoint_every_tokens=self.checkpoint_every_tokens,
        )


@final
@dataclass(frozen=True, kw_only=True)
class SetQuality:
    """How good a set is, layer by layer and all at once."""

    layers: dict[str, Reconstruction]
    """By the hook point that is read."""
    together: ReplacementEffects | None
    """With every layer replaced at once; None if it was not measured."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object: the headline numbers of every layer, and all of the replacement."""
        kept = ("fvu", "l0", "dead_share", "cosine", "n_tokens")
        return {
            "layers": {
                hook: {name: getattr(one, name) for name in kept}
                for hook, one in self.layers.items()
            },
            "together": None if self.together is None else self.together.to_json(),
        }


def train_set(
    model: LanguageModel,
    tokens: Tokens,
    folder: str | Path,
    config: TranscoderSetConfig | None = None,
    *,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, SAE]:
    """Train transcoders of many layers while the model runs; run again to go on.

    Args:
        model: Runs once over the tokens, and again if the budget asks for more than there are.
        tokens: What it reads.
        folder: Where the set goes, or is continued.
        config: Layers, sizes and budget.
        progress: Called after every step of every layer.

    Returns:
        The transcoders by the hook point they read, first layer first.

    Raises:
        ConfigError: The model lacks a layer, or the folder holds another set.
        Interrupted: SIGINT or SIGTERM came; every layer has saved its state.
    """
    config, folder = config or TranscoderSetConfig(), Path(folder)
    layers = config.layers or tuple(range(model.n_layers))
    pairs = {
        layer: tuple(
            model.hook_point(f"blocks.{layer}.{end}").name
            for end in ("mlp.hook_in", "hook_mlp_out")
        )
        for layer in layers
    }
    _write_manifest(folder, model, config, pairs)
    hooks = [hook for pair in pairs.values() for hook in pair]
    harvesting = HarvestConfig(rows_per_batch=config.rows_per_batch, seed=config.seed)
    stream = ActivationStore.stream(model, tokens, hooks, harvesting)
    source = _Remembered(stream.source, config.start_tokens)
    store = ActivationStore(source, stream.hook, stream.n_chunks)
    members = [
        Member(
            name=_name(layer),
            sae=SAE(
                store.widths[hook],
                config.d_sae,
                TopK(config.k),
                hook=hook,
                hook_out=hook_out,
                d_out=store.widths[hook_out],
                skip=config.skip,
                seed=config.seed,
            ),
            config=config.training(),
            made_by={"family": "transcoder_set", "layer": layer},
        )
        for layer, (hook, hook_out) in pairs.items()
    ]
    sweep(members, store, folder, progress=progress)
    return load_set(folder)


def load_set(folder: str | Path) -> dict[str, SAE]:
    """The transcoders of a finished set, by the hook point they read.

    Raises:
        CheckpointError: There is no set, or a layer of it is not finished.
    """
    folder = Path(folder)
    found = read_json(folder / "set.json", "a transcoder set's set.json")
    if found.get("format") != FORMAT or found.get("version", 0) > VERSION:
        raise CheckpointError(
            f"{folder / 'set.json'} says format {found.get('format')!r} version "
            f"{found.get('version')!r}; this saelab reads {FORMAT!r} up to {VERSION}."
        )
    names = [one["folder"] for one in found["layers"]]
    if missing := [name for name in names if not (folder / name / "sae" / "saelab.json").exists()]:
        raise CheckpointError(
            f"The set in {folder} is not finished: {', '.join(missing)} lack a dictionary. Run the "
            "same command again to finish it."
        )
    loaded = [SAE.load(folder / name / "sae") for name in names]
    return {str(sae.hook): sae for sae in loaded}


def measure_set(
    model: LanguageModel,
    transcoders: Mapping[str, SAE],
    tokens: Tokens,
    *,
    max_tokens: int = 20_000,
    rows_per_batch: int = 4,
    replacement_rows: int = 32,
    progress: Callable[..., None] | None = None,
) -> SetQuality:
    """Measure every layer's reconstruction, and the model with all layers replaced.

    Args:
        model: The model they were trained on.
        transcoders: As `load_set` gives them.
        tokens: Held-out text.
        max_tokens: Activations for reconstruction and sparsity, of every layer in one pass.
        rows_per_batch: Token rows at once.
        replacement_rows: Token rows for the replaced model's losses; 0 leaves them out.
        progress: Called with (done, in all, what).
    """
    hooks = [hook for sae in transcoders.values() for hook in (str(sae.hook), str(sae.hook_out))]
    harvesting = HarvestConfig(rows_per_batch=rows_per_batch, dtype="float32")
    store = ActivationStore.stream(model, tokens, hooks, harvesting)
    metrics = {hook: ReconstructionMetrics() for hook in transcoders}
    total, step = min(max_tokens, store.n_tokens), rows_per_batch * tokens.length
    for start in range(0, total, step):
        rows = store.rows(start, min(start + step, total), hooks).activations
        for hook, sae in transcoders.items():
            x, y = rows[hook], rows[str(sae.hook_out)]
            codes = sae.encode(x)
            metrics[hook].update(y, sae.decode(codes, x), codes)
        if progress is not None:
            progress(min(start + step, total), total, "reconstruction")
    together = None
    if replacement_rows:
        part = tokens[:replacement_rows]
        together = replacement_effects(
            model, transcoders, part, rows_per_batch=rows_per_batch, progress=progress
        )
    return SetQuality(layers={h: m.result() for h, m in metrics.items()}, together=together)


def _name(layer: int) -> str:
    return f"layer_{layer:02d}"


def _write_manifest(
    folder: Path,
    model: LanguageModel,
    config: TranscoderSetConfig,
    pairs: Mapping[int, Sequence[str]],
) -> None:
    asked = {
        "format": FORMAT,
        "version": VERSION,
        "model": model.identity.to_json(),
        "config": {**asdict(config), "layers": list(config.layers)},
        "layers": [
            {"layer": layer, "hook": hook, "hook_out": hook_out, "folder": _name(layer)}
            for layer, (hook, hook_out) in pairs.items()
        ],
    }
    if (folder / "set.json").exists():
        found = read_json(folder / "set.json", "a transcoder set's set.json")
        if different := [name for name in asked if found.get(name) != asked[name]]:
            raise ConfigError(
                f"{folder} holds another set: its {' and '.join(different)} differ. Choose another "
                "folder, or ask for the same."
            )
        return
    write_json(folder / "set.json", {**asked, "provenance": provenance()})


@final
class _Remembered:
    """A source that runs the model once for what all layers' starts are fitted on.

    Every transcoder samples the same chunks at its own hook points; the last chunks read are kept
    with all their hook points until others take their place.
    """

    in_background = False

    def __init__(self, base: Source, start_tokens: int) -> None:
        self.base, self.largest_sample = base, start_tokens
        self.widths, self.sizes = base.widths, base.sizes
        self._kept: OrderedDict[int, dict[str, Tensor]] = OrderedDict()

    def read(self, chunk: int, hooks: Sequence[str]) -> dict[str, Tensor]:
        if chunk not in self._kept:
            self._kept[chunk] = self.base.read(chunk, list(self.widths))
            # A sample is drawn from a window of twice its size, of at least 8 chunks.
            while len(self._kept) > 8 and self._rows() > 3 * self.largest_sample:
                self._kept.popitem(last=False)
        self._kept.move_to_end(chunk)
        return {hook: self._kept[chunk][hook] for hook in hooks}

    def _rows(self) -> int:
        return sum(self.sizes[chunk] for chunk in self._kept)

    def addresses(self, chunk: int) -> Addresses:
        return self.base.addresses(chunk)

    def planned(self, chunk: int) -> Addresses:
        return self.base.planned(chunk)

    def tokens(self) -> Tokens | None:
        return self.base.tokens()

    def identity(self) -> dict[str, Any]:
        return {**self.base.identity(), "start_tokens": self.largest_sample}
