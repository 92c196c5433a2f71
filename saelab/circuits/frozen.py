"""What does a model compute on one prompt once everything that is not linear is a constant?

The frozen map: attention patterns, norm scales and MLP outputs keep the values they have on the
prompt. Cut the model where vectors enter the residual stream, and every read-out r is affine in
the vectors at the cuts:

    r = sum over cuts c, positions t of  dr/dx_c[t] . x_c[t]  +  r at x = 0

This is exact, not a linear approximation: nothing that is not linear is left. One backward pass
gives all the slopes of one read-out; a pass with zeros at all cuts gives the constants, which are
the model's biases.

Source: the local replacement model of Ameisen et al. 2025, "Circuit tracing"; the frozen norm
keeps the removal of the mean linear.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from saelab.circuits.freezing import Held, freezing
from saelab.errors import ConfigError, ModelError, ShapeError
from saelab.models import Edit, LanguageModel
from saelab.models.torch_model import TorchModel

__all__ = ["FrozenMap", "ReadOuts", "Skip", "head_of", "torch_model"]


@final
@dataclass(frozen=True, slots=True, eq=False)
class ReadOuts:
    """Scalars that are read at one place: direction . x[position] + offset."""

    hook: str
    """Where they read: one of the map's `reads`."""
    positions: Int[Tensor, " readout"]
    """At which position."""
    directions: Float[Tensor, "readout width"]
    """In the units of what is read."""
    offsets: Float[Tensor, " readout"]
    """What is added, an encoder's bias say."""

    def __len__(self) -> int:
        """How many."""
        return len(self.positions)

    def values(self, reads: Mapping[str, Tensor]) -> Float[Tensor, " readout"]:
        """The scalars, given what is at every place."""
        x = reads[self.hook][self.positions]
        return (x * self.directions).sum(-1) + self.offsets


@final
@dataclass(frozen=True, slots=True, eq=False)
class Skip:
    """A linear path past an MLP: what is written at a cut besides the cut's own vector."""

    hook: str
    """Where it reads."""
    matrix: Float[Tensor, "d_in d_out"]
    """What it multiplies by."""
    at: Bool[Tensor, " pos"]
    """At which positions."""


@final
class FrozenMap:
    """The affine map of one prompt, from the vectors at some cuts to what is read at some places.

    Cuts are hook points whose activation becomes an input of the map. MLP outputs must be among
    them, or something before them; `saelab.circuits.LocalReplacement` sees to it. A place that is
    both read and cut is read before the cut.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokens: Int[Tensor, " pos"],
        cuts: Sequence[str],
        reads: Sequence[str],
        skips: Mapping[str, Skip] | None = None,
    ) -> None:
        """Run the model once and keep its constants, and its graph, until this is dropped.

        Args:
            model: A transformers model that `saelab.load_model` gave.
            tokens: The prompt.
            cuts: Hook points that are inputs of the map, by canonical name.
            reads: Hook points that are read, by canonical name. The input of the unembedding, and
                queries, keys and values ("blocks.L.attn.q", "blocks.L.attn.k", "blocks.L.attn.v":
                all heads side by side, the first two rotated) are always read.
            skips: Linear paths, by the cut they write at.

        Raises:
            ModelError: The model is none of transformers, or something in it cannot be held.
            HookPointError: A place does not exist.
        """
        self.model = torch_model(model)
        self.tokens = tokens.to(model.device, torch.int64)
        self.cuts, self.read_at = tuple(cuts), frozenset(reads)
        self.skips = dict(skips or {})
        missing = sorted({s.hook for s in self.skips.values()} - self.read_at)
        if missing:
            raise ConfigError(f"A skip path reads {missing}, which are not among the reads.")
        self.held = Held()
        self.head = head_of(self.model)[0]
        self.inputs: dict[str, Tensor] = {}
        with torch.enable_grad():
            self._graph, logits = self._pass(None)
        self._check(logits.detach())
        self.logits: Float[Tensor, " d_vocab"] = logits.detach()[0, -1].clone()
        """The model's own scores after the last position."""
        self._constants: dict[str, Tensor] | None = None

    @property
    def values(self) -> dict[str, Float[Tensor, "pos _"]]:
        """What is at every cut on this prompt; where there is a skip path, without it."""
        return {hook: x.detach() for hook, x in self.inputs.items()}

    @property
    def reads(self) -> dict[str, Float[Tensor, "pos _"]]:
        """What is read at every place on this prompt."""
        return {hook: x.detach() for hook, x in self._graph.items()}

    def at(self, values: Mapping[str, Float[Tensor, "pos _"]]) -> dict[str, Tensor]:
        """What is read when other vectors are at the cuts; cuts not named keep their own.

        Raises:
            ShapeError: A vector has another shape than the cut's.
        """
        for hook, x in values.items():
            if hook not in self.inputs or x.shape != self.inputs[hook].shape:
                found = {name: tuple(one.shape) for name, one in self.inputs.items()}
                raise ShapeError(f"{hook}: {tuple(x.shape)} fits none of the cuts {found}.")
        with torch.no_grad():
            seen, _ = self._pass({**self.values, **values})
        return seen

    @property
    def constants(self) -> dict[str, Float[Tensor, "pos _"]]:
        """What is read with zeros at every cut: the work of the model's biases alone."""
        if self._constants is None:
            self._constants = self.at({h: torch.zeros_like(x) for h, x in self.values.items()})
        return self._constants

    def slopes(self, readouts: Sequence[ReadOuts]) -> dict[str, Float[Tensor, "readout pos _"]]:
        """How every read-out depends on the vector at every cut and position.

        One backward pass for all of them; the result holds n_readouts x pos x width numbers a cut.

        Returns:
            By cut, in the order of the read-outs; cuts that none depends on are missing.
        """
        n = sum(len(some) for some in readouts)
        seeds: dict[str, Tensor] = {}
        first = 0
        for some in readouts:
            x = self._graph[some.hook]
            seed = seeds.setdefault(some.hook, x.new_zeros(n, *x.shape))
            rows = torch.arange(first, first + len(some), device=x.device)
            seed[rows, some.positions.to(x.device)] = some.directions.to(x)
            first += len(some)
        found = torch.autograd.grad(
            [self._graph[hook] for hook in seeds],
            list(self.inputs.values()),
            list(seeds.values()),
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=True,
        )
        return {h: g for h, g in zip(self.inputs, found, strict=True) if g is not None}

    def _pass(self, values: Mapping[str, Tensor] | None) -> tuple[dict[str, Tensor], Tensor]:
        """One pass of the model with the constants held; None records the inputs."""
        seen: dict[str, Tensor] = {}
        edits = {hook: self._edit(hook, seen, values) for hook in {*self.cuts, *self.read_at}}
        module = self.model.module
        with freezing(module, self.held), self.model.editing(edits):
            logits, found = self.model.whole_pass(self.tokens[None], [self.head])
        if values is None and len(self.held.patterns) < self.model.n_layers:
            raise ModelError(
                f"Only {len(self.held.patterns)} of {self.model.n_layers} layers of "
                f"{self.model.name} run their attention through the interface of transformers, so "
                "the others' patterns cannot be held constant. Trace another model."
            )
        seen[self.head] = found[self.head][0]
        for layer, query in self.held.queries.items():
            seen[f"blocks.{layer}.attn.q"] = query[0].transpose(0, 1).flatten(1)
            seen[f"blocks.{layer}.attn.k"] = self.held.keys[layer][0].transpose(0, 1).flatten(1)
            seen[f"blocks.{layer}.attn.v"] = self.held.values[layer][0].transpose(0, 1).flatten(1)
        self.held.queries, self.held.keys, self.held.values = {}, {}, {}
        if values is None:
            self.inputs = {hook: self.inputs[hook] for hook in self.cuts}  # in the order asked
        return seen, logits

    def _edit(
        self, hook: str, seen: dict[str, Tensor], values: Mapping[str, Tensor] | None
    ) -> Edit:
        def visit(activation: Tensor) -> Tensor:
            if hook in self.read_at:
                seen[hook] = activation[0]
            if hook not in self.cuts:
                return activation
            skip = self.skips.get(hook)
            passed = 0.0
            if skip is not None:
                passed = (seen[skip.hook] @ skip.matrix.to(activation)) * skip.at[:, None]
            if values is None:
                self.inputs[hook] = (activation[0] - passed).detach().requires_grad_()
            return ((self.inputs if values is None else values)[hook] + passed)[None]

        return visit

    def _check(self, logits: Tensor) -> None:
        """The map must compute what the model computes."""
        own = self.model.logits(self.tokens[None])
        miss = float((logits - own).norm() / own.norm().clamp_min(1e-30))
        if not miss <= (0.1 if own.dtype.itemsize < 4 else 1e-3):
            raise ModelError(
                f"With its constants held, {self.model.name} gives logits {miss:.1e} away from its "
                "own (relative length). Something in it is neither attention, norm nor MLP; trace "
                "another model."
            )


def head_of(model: LanguageModel) -> tuple[str, Float[Tensor, "d_vocab d_model"], Tensor | None]:
    """Where the unembedding reads, its weights W_U^T, and its bias.

    Raises:
        ModelError: The model has none that saelab knows.
    """
    module: Any = torch_model(model).module
    head = module.get_output_embeddings()
    path = next((p for p, sub in module.named_modules() if sub is head and p), None)
    if not isinstance(head, nn.Linear) or path is None:
        raise ModelError(
            f"{model.name} has no linear unembedding, so there are no logits to trace. Load a "
            "causal language model."
        )
    bias = None if head.bias is None else head.bias.detach()
    return f"{path}.input", head.weight.detach(), bias


def torch_model(model: LanguageModel) -> TorchModel:
    """The model, once it is sure to be one of transformers.

    Raises:
        ModelError: It is not.
    """
    if not isinstance(model, TorchModel) or not hasattr(model.module, "get_output_embeddings"):
        raise ModelError(
            f"Circuits are traced in transformers models; {type(model).__name__} over "
            f"{type(getattr(model, 'module', None)).__name__} is none. Load the model with "
            'saelab.load_model and backend="transformers".'
        )
    return model
