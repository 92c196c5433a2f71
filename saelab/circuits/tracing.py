"""Which latents, on one prompt, made the model say what it says? `trace` gives the graph.

    forward    run the model once; hold attention patterns, norm scales and MLP outputs constant
    take apart each MLP's output into latents of its dictionary, decoder bias and error
    targets    the likeliest next tokens, as directions of the unembedding
    edges      what every term adds to every target and to every traced latent's pre-activation

Every sum closes: a target's in-edges, from latents, errors, tokens, positions and biases, add up to
its value. Latents that are active but beyond the budget, and MLPs without a dictionary, count as
errors: the graph does not explain them.

Source: Ameisen et al. 2025, "Circuit tracing: revealing computational graphs in language models";
Dunefsky et al. 2024 (arXiv 2406.11944).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from jaxtyping import Int
from torch import Tensor

from saelab.circuits.attribution import Attribution, attribute
from saelab.circuits.dictionaries import Dictionaries
from saelab.circuits.graph_of import graph_of
from saelab.circuits.replacement import LocalReplacement
from saelab.circuits.targets import Asked, LogitTarget, likeliest, read_out, resolve
from saelab.errors import ConfigError, DataError, ModelError
from saelab.files import provenance
from saelab.graphs import AttributionGraph
from saelab.models import LanguageModel

__all__ = ["TraceConfig", "Traced", "prompt_tokens", "trace", "trace_terms"]


@final
@dataclass(frozen=True, kw_only=True)
class TraceConfig:
    """How a prompt is traced."""

    max_logits: int = 10
    """Most tokens explained, if no target is named."""
    logit_share: float = 0.95
    """Share of the probability that they hold together, unless they would be too many."""
    max_latents: int = 1000
    """Latents taken apart, the most influential ones; further active ones count as errors."""
    batch_size: int = 64
    """Read-outs in one backward pass; fewer where they would need much memory."""
    rerank_every: int = 4
    """Batches after which latents are ranked anew."""
    prepend_bos: bool = True
    """Whether a prompt given as text starts with the model's first token, if it has one."""
    first_position_as_error: bool = True
    """Whether all that is written at position 0, where models park attention and dictionaries are
    not trained, counts as error."""
    max_tokens: int = 256
    """Longest prompt; the work grows with its length, and so do the graph and the memory."""

    def __post_init__(self) -> None:
        counts = ("max_logits", "max_latents", "batch_size", "rerank_every", "max_tokens")
        small = [name for name in counts if getattr(self, name) < (name != "max_latents")]
        if small:
            raise ConfigError(f"TraceConfig({small[0]}={getattr(self, small[0])}) is too small.")
        if not 0 < self.logit_share <= 1:
            raise ConfigError(
                f"TraceConfig(logit_share={self.logit_share}) is no share: 0 < share <= 1."
            )


@final
@dataclass(frozen=True, slots=True, eq=False)
class Traced:
    """A prompt taken apart, before it is a graph: the numbers, in tensors."""

    replacement: LocalReplacement
    """The prompt's frozen map and its terms."""
    targets: list[LogitTarget]
    """What is explained."""
    attribution: Attribution
    """What adds how much to them and to the traced latents."""
    config: TraceConfig
    """How it was made."""

    def graph(self) -> AttributionGraph:
        """The graph.

        Raises:
            ModelError: A sum does not close: something could not be held constant.
        """
        graph = graph_of(self.replacement, self.targets, self.attribution, _metadata(self))
        model = self.replacement.model
        if not graph.closes(0.05 if model.dtype.itemsize < 4 else 1e-3):
            worst = float(graph.residuals().nan_to_num().abs().max())
            raise ModelError(
                f"What the nodes add up to misses the value they explain by up to {worst:.1e} in "
                f"{model.name}: something in it that is not linear could not be held constant."
            )
        return graph


def trace(
    model: LanguageModel,
    dictionaries: Dictionaries,
    prompt: str | Sequence[int] | Int[Tensor, " pos"],
    config: TraceConfig | None = None,
    *,
    targets: Sequence[Asked] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> AttributionGraph:
    """Explain what the model says next, in terms of latents.

    Args:
        model: A transformers model that `saelab.load_model` gave.
        dictionaries: Transcoders of any number of layers, a set of them (`saelab.load_set`), a
            cross-layer transcoder, or autoencoders of the residual stream or of attention.
        prompt: Text, or token ids, which are taken as they are.
        config: Budget and conventions.
        targets: What to explain instead of the likeliest tokens: tokens by id or text, pairs of
            tokens for the difference of their logits, or directions (`LogitTarget`).
        progress: Called with (read-outs done, in all, what).

    Returns:
        The whole graph; `graph.prune()` leaves what matters most.

    Raises:
        ConfigError: The dictionaries cannot be traced, or a target is no single token.
        DataError: The prompt is empty or too long.
        HookPointError: A dictionary names a place the model does not have.
        ModelError: The model cannot be held constant, or is not the one the dictionaries know.
        ShapeError: A dictionary has another width than the model.
    """
    return trace_terms(
        model, dictionaries, prompt, config, targets=targets, progress=progress
    ).graph()


def trace_terms(
    model: LanguageModel,
    dictionaries: Dictionaries,
    prompt: str | Sequence[int] | Int[Tensor, " pos"],
    config: TraceConfig | None = None,
    *,
    targets: Sequence[Asked] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Traced:
    """As `trace`, but the tensors a graph is made from; interventions are measured on them."""
    config = config or TraceConfig()
    tokens = prompt_tokens(model, prompt, config)
    replacement = LocalReplacement(
        model,
        dictionaries,
        tokens,
        first_position_as_error=config.first_position_as_error,
    )
    logits = replacement.map.logits
    if targets is None:
        chosen = likeliest(model, logits, config.logit_share, config.max_logits)
    else:
        chosen = resolve(model, logits, targets)
    found = attribute(
        replacement,
        read_out(replacement.map.head, chosen, len(tokens) - 1),
        torch.tensor([target.weight for target in chosen], dtype=torch.float64),
        max_latents=config.max_latents,
        batch_size=config.batch_size,
        rerank_every=config.rerank_every,
        progress=progress,
    )
    return Traced(replacement, chosen, found, config)


def prompt_tokens(
    model: LanguageModel, prompt: str | Sequence[int] | Int[Tensor, " pos"], config: TraceConfig
) -> Int[Tensor, " pos"]:
    """The prompt as token ids, with the model's first token if it is text.

    Raises:
        DataError: It is empty or too long.
    """
    if isinstance(prompt, str):
        ids = model.encode(prompt)
        if not ids:
            raise DataError("The prompt is empty. Write the text whose next token to explain.")
        if config.prepend_bos and model.bos_token_id is not None and ids[0] != model.bos_token_id:
            ids = [model.bos_token_id, *ids]
    else:
        ids = [int(one) for one in prompt]
        if not ids:
            raise DataError("The prompt has no token. Give at least one token id.")
    if len(ids) > config.max_tokens:
        raise DataError(
            f"The prompt has {len(ids)} tokens; TraceConfig(max_tokens={config.max_tokens}). Trace "
            "a shorter one, or raise the limit: work and memory grow with it."
        )
    return torch.tensor(ids, dtype=torch.int64, device=model.device)


def _metadata(traced: Traced) -> dict[str, Any]:
    replacement, model = traced.replacement, traced.replacement.model
    return {
        "model": model.identity.to_json(),
        "n_layers": model.n_layers,
        "prompt": model.decode(replacement.tokens.tolist()),
        "dictionaries": [
            {"reads": one.hook, "writes": list(one.writes), "d_sae": one.d_sae}
            for one in replacement.dictionaries.layers
        ],
        "trace": asdict(traced.config),
        "targets": [target.label for target in traced.targets],
        "active_latents": len(replacement.latents),
        "traced_latents": len(traced.attribution.traced),
        "provenance": provenance(),
    }
