"""A dictionary whose latents are divided among processes: what does each rank hold and exchange?

Rank r of R holds latents r F / R to (r + 1) F / R: those columns of W_enc and b_enc and rows of
W_dec. All ranks read the same tokens.

    selection       each rank's own strongest latents; their strengths are gathered, and the k
                    strongest of all are kept where they are
    reconstruction  each rank decodes its own latents; the sum over ranks, plus b_dec
    gradients       of a latent's weights where it lives; b_dec's is the same everywhere, but for
                    what passes through the encoder, which is summed

A rank computes on its own device, where only its share and that share's moments lie: a dictionary
may be larger than any one device. The whole one lies in the host's memory and is brought up to date
for checkpoints, a rank's part of one tensor at a time. Checkpoints and dictionaries are written
whole, so another number of processes can go on.

Source: Gao et al. 2024, appendix C, and the authors' code; there the strengths exchanged are cut to
a capacity, here none are.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from saelab.activation_functions import AbsTopK, BatchAbsTopK, BatchTopK, TopK
from saelab.distributed import Ranks
from saelab.errors import ConfigError
from saelab.kernels import GradientBuffers, Pairs, sparse_decode, sparse_pre_activations
from saelab.objectives import AuxK, Reconstruction, Term
from saelab.objectives.auxk import default_k_aux
from saelab.pair_forward import PairForward
from saelab.sae import SAE, FoundPairs
from saelab.training.upkeep import Upkeep

__all__ = ["Shard"]

_PER_TOKEN = (TopK, AbsTopK)
_PER_BATCH = (BatchTopK, BatchAbsTopK)
_TERMS = (Reconstruction, AuxK)
_AXES = {"W_enc": 1, "b_enc": 0, "W_dec": 0, "since_fired": 0}


@final
class Shard:
    """One rank's latents.

    Args:
        whole: The dictionary, which stays where it is: in the memory of every rank's host.
        ranks: The processes.
        terms: The objective.
        upkeep: What is done between steps; nothing may be.

    Raises:
        ConfigError: The family cannot be divided this way, or not evenly.
    """

    def __init__(
        self, whole: SAE, ranks: Ranks, terms: Sequence[Term], upkeep: Sequence[Upkeep] = ()
    ) -> None:
        _check(whole, terms, upkeep)
        self.ranks = ranks
        self._own = ranks.share(whole.d_sae, "latents")
        size = whole.d_sae // ranks.world
        k = whole.activation.target_l0 or 0
        if isinstance(whole.activation, _PER_TOKEN) and k > size:
            raise ConfigError(
                f"{whole.activation} needs at least {k:g} latents in each process; "
                f"{whole.d_sae} among {ranks.world} are {size}. Use fewer processes."
            )
        self.sae = SAE(
            whole.d_in,
            size,
            copy.deepcopy(whole.activation),
            hook=whole.hook,
            hook_out=whole.hook_out,
            d_out=whole.d_out,
            normalization=whole.normalization,
            pre_bias=whole.pre_bias,
            dtype=whole.dtype,
            seed=whole.seed,
        ).to(ranks.device)
        # b_dec as the encoder subtracts it: its gradient has to be summed over the ranks.
        self.b_pre = nn.Parameter(torch.zeros_like(self.sae.b_dec))
        self.take(whole)

    @torch.no_grad()
    def take(self, whole: SAE) -> None:
        """Copy this rank's latents out of the whole dictionary."""
        self.sae.normalization = whole.normalization
        for name, parameter in self.sae.named_parameters():
            parameter.copy_(self.part(name, whole.get_parameter(name)))
        self.sae.activation.load_state_dict(whole.activation.state_dict())

    @torch.no_grad()
    def give(self, whole: SAE) -> None:
        """Copy all ranks' latents into the whole dictionary, on every rank."""
        for name, parameter in self.sae.named_parameters():
            whole.get_parameter(name).copy_(self.all(name, parameter))
        whole.activation.load_state_dict(self.sae.activation.state_dict())

    def part(self, name: str, tensor: Tensor) -> Tensor:
        """This rank's share of a weight, or of a moment by the name PLACE.WEIGHT."""
        axis = _axis(name)
        if axis is None or not tensor.ndim:
            return tensor
        return tensor[self._own] if axis == 0 else tensor[:, self._own]

    def all(self, name: str, tensor: Tensor) -> Tensor:
        """The inverse of `part`."""
        axis = _axis(name)
        if axis is None or not tensor.ndim:
            return tensor
        turned = tensor.detach() if axis == 0 else tensor.detach().T
        joined = torch.cat(self.ranks.collect(turned.contiguous()))
        return joined if axis == 0 else joined.T

    def norm(self, norms: Mapping[str, Tensor]) -> Tensor:
        """Norm of a whole gradient, given the norms of this rank's parts."""
        local = sum(n.double().square() for name, n in norms.items() if _axis(name) is not None)
        shared = sum(n.double().square() for name, n in norms.items() if _axis(name) is None)
        return (self.ranks.sum_(torch.as_tensor(local)) + shared).sqrt()

    def select(
        self, inputs: Float[Tensor, "token d_in"], terms: Sequence[Term], dead: Bool[Tensor, " own"]
    ) -> dict[str, FoundPairs]:
        """This rank's pairs among the strongest of all ranks; `dead` is of its own latents."""
        activation = self.sae.activation
        n_dead = int(self.ranks.sum_(dead.sum()))
        aux = {term.name: term for term in terms if isinstance(term, AuxK) and n_dead}
        asked = {name: term.selection(self.sae, dead) for name, term in aux.items()}
        extra = {name: selection for name, selection in asked.items() if selection is not None}
        batchwise = isinstance(activation, _PER_BATCH)
        found = self.sae.select_pairs(
            inputs, training=True, extra=extra, settle=self._settle if batchwise else None
        )
        if not batchwise:
            found[""] = self._strongest(*found[""], int(activation.target_l0 or 0))
        for name, term in aux.items():
            k = min(term.k or default_k_aux(self.sae.d_in), n_dead)
            found[name] = self._strongest(*found.get(name, self._none(inputs)), k)
        return found

    def forward(
        self,
        inputs: Float[Tensor, "token d_in"],
        found: Mapping[str, FoundPairs],
        buffers: GradientBuffers,
    ) -> PairForward:
        """As `SAE.forward_found`, with the reconstruction of all ranks' latents."""
        sae = self.sae
        b_pre = self.b_pre if sae.pre_bias else None
        centred = inputs - sae.b_dec.detach() if sae.pre_bias else inputs
        named = {
            name: (
                pairs,
                sparse_pre_activations(z, centred, sae.W_enc, sae.b_enc, b_pre, pairs, buffers),
            )
            for name, (pairs, z) in found.items()
        }
        pairs, pre_acts = named.pop("")
        latents = sae.activation.at_pairs(pre_acts, pairs.indices)
        own = sparse_decode(latents, sae.W_dec, None, pairs, buffers)
        return PairForward(inputs, pairs, pre_acts, latents, self.ranks.add(own) + sae.b_dec, named)

    def reduce(self, buffers: GradientBuffers) -> None:
        """Complete b_dec's gradient."""
        buffers.of(self.sae.b_dec).add_(self.ranks.sum_(buffers.of(self.b_pre)))

    def _settle(self, pairs: Pairs, pre_acts: Tensor) -> Tensor | None:
        """What the rule keeps of this rank's pairs, decided over the latents of all ranks."""
        ranks, size = self.ranks, self.sae.d_sae
        tokens = torch.cat(ranks.gather(pairs.tokens()))
        latents = torch.cat(ranks.gather(pairs.indices + ranks.rank * size))
        parts = ranks.gather(pre_acts)
        order = (tokens * size * ranks.world + latents).argsort()
        counts = torch.bincount(tokens, minlength=pairs.n_tokens)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        everyone = Pairs(offsets, latents[order], size * ranks.world)
        kept = self.sae.activation.settle(everyone, torch.cat(parts)[order])
        if kept is None:
            return None
        back = torch.empty_like(kept)
        back[order] = kept
        return back.split([len(part) for part in parts])[ranks.rank]

    def _strongest(self, pairs: Pairs, pre_acts: Tensor, k: int) -> FoundPairs:
        """This rank's pairs among the k strongest of each token over all ranks."""
        tokens = pairs.tokens()
        place = torch.arange(pairs.n_pairs, device=tokens.device) - pairs.offsets[tokens]
        strength = pre_acts.new_full((pairs.n_tokens, k), -torch.inf)
        strength[tokens, place] = self.sae.activation.strength(pre_acts)
        everyone = torch.cat([part.T for part in self.ranks.gather(strength.T.contiguous())], 1)
        kept = torch.zeros_like(everyone, dtype=torch.bool)
        kept.scatter_(1, everyone.topk(k, dim=1, sorted=False).indices, True)
        mine = kept[:, self.ranks.rank * k : (self.ranks.rank + 1) * k][tokens, place]
        return pairs.filtered(mine), pre_acts[mine]

    def _none(self, inputs: Tensor) -> FoundPairs:
        offsets = torch.zeros(len(inputs) + 1, dtype=torch.int64, device=inputs.device)
        return Pairs(offsets, offsets[:0], self.sae.d_sae), inputs.new_empty(0)


def _axis(name: str) -> int | None:
    """Along which axis a tensor is divided; None if every rank has all of it."""
    place, _, weight = name.rpartition(".")
    axis = _AXES.get(weight)
    return axis and (0 if place else axis)  # moments lie as in memory, one latent a row


def _check(whole: SAE, terms: Sequence[Term], upkeep: Sequence[Upkeep]) -> None:
    allowed = (*_PER_TOKEN, *_PER_BATCH)
    if not isinstance(whole.activation, allowed) or whole.tied or whole.W_skip is not None:
        raise ConfigError(
            f"The latents of {whole.activation} (tied={whole.tied}, skip={whole.W_skip is not None}"
            f") cannot be divided among processes; those of untied {_names(allowed)} dictionaries "
            "without a skip connection can. Divide the tokens instead."
        )
    if odd := [one.name for one in (*terms, *upkeep) if not isinstance(one, _TERMS)]:
        raise ConfigError(
            f"The run has {', '.join(odd)}, which needs all latents in one process; latents "
            f"can be divided for {_names(_TERMS)} alone. Divide the tokens instead."
        )


def _names(kinds: Sequence[type]) -> str:
    return ", ".join(kind.__name__ for kind in kinds)
