"""What a survey is measured on: some of a store's activations, as a dictionary sees them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.geometry.galaxy import oriented
from saelab.geometry_survey.lobes import Places
from saelab.sae import SAE
from saelab.sparse_codes import SparseCodes
from saelab.store import ActivationStore, Addresses

__all__ = ["SurveyedText", "chunk_tokens_of", "places_of", "read_text"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class SurveyedText:
    """A dictionary, and some text as it sees it."""

    sae: SAE
    """The dictionary."""
    x: Float[Tensor, "token d_in"]
    """Activations."""
    codes: SparseCodes
    """Their latents."""
    addresses: Addresses
    """Where they come from."""
    names: tuple[str, ...]
    """Of the documents; empty where they are not known."""
    corpus: str
    """Name of the text; empty where it is not known."""
    directions: Float[Tensor, "latent d_out"]
    """Decoder rows; those of a signed dictionary oriented."""
    fires: Bool[Tensor, " latent"]
    """Latents that fire on the text and have a direction."""


def read_text(sae: SAE, folder: Path, max_tokens: int) -> SurveyedText:
    """Encode the first activations of a store."""
    store = ActivationStore.open(folder)
    if sae.hook is not None:
        store = store.at(sae.hook)
    rows = store.rows(0, min(max_tokens, store.n_tokens))
    x = rows.activations
    with torch.no_grad():
        codes = SparseCodes.cat([sae.encode(part) for part in x.split(4096)]).to("cpu")
    sums = torch.zeros(sae.d_sae).index_add_(0, codes.indices, codes.values.float())
    directions = sae.W_dec.detach().cpu().float()
    fires = (codes.firing_counts() > 0) & (directions.norm(dim=1) > 0)
    tokens = store.tokens
    return SurveyedText(
        sae=sae,
        x=x,
        codes=codes,
        addresses=rows.addresses,
        names=() if tokens is None else tuple(tokens.document_names),
        corpus="" if tokens is None else str(tokens.corpus.get("name") or ""),
        directions=oriented(directions, sums) if sae.activation.signed else directions,
        fires=fires,
    )


def chunk_tokens_of(read: SurveyedText, wanted: int) -> int:
    """Tokens of a chunk: rows may be shorter than what was asked for."""
    _, lengths = torch.unique_consecutive(read.addresses.row, return_counts=True)
    return min(wanted, int(lengths.max()))


def places_of(read: SurveyedText) -> Places:
    """How often each latent fires on each token id and in each document."""
    import numpy as np
    from scipy.sparse import csr_matrix

    token, latent = read.codes.tokens, read.codes.indices.numpy()

    def table(of_token: Tensor) -> Any:
        row = of_token.long()[token]
        known = (row >= 0).numpy()
        row = row.numpy()[known]
        ones = np.ones(len(row), dtype=np.int64)
        size = int(of_token.max()) + 1 if len(row) else 1
        return csr_matrix((ones, (row, latent[known])), shape=(size, read.codes.d_sae))

    documents = table(read.addresses.document)
    names = read.names if len(read.names) >= documents.shape[0] else ()
    return Places(tokens=table(read.addresses.token), documents=documents, names=names)
