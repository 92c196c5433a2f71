"""Codebooks in a model: put in place of activations, trained through, searched and forced.

    codebook = codebook_for(x, n_codes=256, k=1, hook="blocks.3.hook_resid_post")
    with inserted(model, [codebook]): ...            # the model runs on codes alone
    losses = learn_codes(model, [codebook], tokens)  # codes by the model's own loss
    found = codes_for(codebook.encode(x), is_state)  # which codes mean it
    with intervene(model, [ForceCodes(codebook, [found[0].code])]): ...

A codebook is an `SAE` with the activation function `Codes`: k codes are on, each with the same
weight, and the activation is replaced by their mean. `python -m trainers.codebook` makes one from
activations; `learn_codes` goes on with the model in the loop.

Source: Tamkin, Taufeeque and Goodman 2023, "Codebook features: sparse and discrete
interpretability for neural networks". There the model is trained along; here it stays frozen.
"""

from saelab.codebooks.inserting import inserted, straight_through
from saelab.codebooks.learning import CodebookConfig, learn_codes
from saelab.codebooks.searching import FoundCode, codes_for, mutual_information
from saelab.codebooks.starting import codebook_for, spherical_k_means, start_codes
from saelab.steering import ForceCodes

__all__ = [
    "CodebookConfig",
    "ForceCodes",
    "FoundCode",
    "codebook_for",
    "codes_for",
    "inserted",
    "learn_codes",
    "mutual_information",
    "spherical_k_means",
    "start_codes",
    "straight_through",
]
