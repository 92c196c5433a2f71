"""What would a method find where there is nothing to be found?

    random circuit     items drawn by chance, as many of each kind (`shuffled_within_kinds`)
    labels permuted    the same method on prompts whose answers are swapped in half of the rows
                       (`Pairs.relabelled`)
    reset network      the same method on the same prompts in a model whose weights were shuffled
                       (`reset_model`), which cannot have the behavior

Each gives a ranking, which is judged on the real model. A method has found something only where its
curve is above those of all three.
"""

import copy
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import nn

from saelab.models import LanguageModel, load_model
from saelab.patching.ablations import Ablation
from saelab.patching.curves import curve, shuffled_within_kinds
from saelab.patching.layout import torch_model
from saelab.patching.pairs import Pairs
from saelab.patching.results import Method

__all__ = ["null_curves", "reset_model"]

Discover = Callable[[LanguageModel, Pairs], Sequence[Hashable]]
"""A method: a model and pairs in, items out, the most important first."""


def reset_model(model: LanguageModel, seed: int = 0) -> LanguageModel:
    """A copy whose weights inside the blocks were shuffled, each matrix within itself.

    The distribution of every matrix stays, and with it the size of what is written; what was
    learned is gone. Embeddings, the unembedding, norms and biases stay.

    Args:
        model: The original, which is not changed; as much memory is used again.
        seed: Of the shuffle.
    """
    original = torch_model(model)
    module = copy.deepcopy(original.module)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for sub in (s for s in module.modules() if isinstance(s, nn.ModuleList)):
            for parameter in sub.parameters():
                if parameter.dim() > 1:
                    order = torch.randperm(parameter.numel(), generator=generator)
                    flat = parameter.flatten()[order.to(parameter.device)]
                    parameter.copy_(flat.reshape(parameter.shape))
    return load_model(
        module,
        tokenizer=original.tokenizer,
        name=f"{original.name} with shuffled weights",
        bos_token_id=original.bos_token_id,
    )


def null_curves(
    ablation: Ablation,
    model: LanguageModel,
    discovery: Pairs,
    discover: Discover,
    ranking: Sequence[Hashable],
    sizes: Sequence[int],
    *,
    draws: int = 3,
    seed: int = 0,
    completeness: bool = True,
    progress: Callable[[str], None] | None = None,
) -> list[Method]:
    """The curves of the three nulls of a method.

    Args:
        ablation: What is measured, on other prompts than `discovery`.
        model: The real one.
        discovery: Prompts that items were ranked on.
        discover: The method.
        ranking: What it gave on the real model and the true labels.
        sizes: Of circuits.
        draws: Of each null.
        seed: Of the first draw.
        completeness: Whether to measure the rest too.
        progress: Called with what was measured.
    """
    makers: dict[str, Callable[[int], Sequence[Hashable]]] = {
        "random circuit": lambda n: shuffled_within_kinds(ablation, ranking, n),
        "labels permuted": lambda n: discover(model, discovery.relabelled(n)),
        "reset network": lambda n: discover(reset_model(model, n), discovery),
    }
    found = []
    for name, make in makers.items():
        curves = []
        for n in range(seed, seed + draws):
            curves.append(curve(ablation, make(n), sizes, name, completeness=completeness))
            if progress is not None:
                progress(f"{name}, draw {n - seed + 1} of {draws}")
        found.append(Method(name=name, curves=curves, is_null=True))
    return found
