"""The rows of `examples` and `near_misses`: where, what stands there, and how active it is."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from saelab.atlas.band import Band
from saelab.atlas.columns import null_below_zero, ragged
from saelab.atlas.corpus import Windows
from saelab.atlas.tail_pairs import ranks_within

__all__ = ["example_columns", "near_miss_columns"]


def example_columns(band: Band) -> dict[str, Any]:
    """The strongest contexts and the draws from every interval and quantile."""
    chosen, tails = band.chosen, band.tails
    tail = tails.tail[chosen.pair].numpy()
    return {
        **band.keys(tail),
        "number": ranks_within(tail),
        "strength": tails.strength[chosen.pair],
        "top_rank": null_below_zero(chosen.top_rank),
        "interval": chosen.interval,
        "interval_rank": null_below_zero(chosen.interval_rank),
        "quantile": chosen.quantile,
        "quantile_rank": null_below_zero(chosen.quantile_rank),
        **_text_columns(band, tails.token[chosen.pair], tail, band.example_windows),
    }


def near_miss_columns(band: Band) -> dict[str, Any]:
    """Contexts of a tail's commonest tokens in which it is silent."""
    config = band.sources.config
    tail, place = band.silent
    number = ranks_within(tail)
    kept = number < config.near_misses
    tail, place, number = tail[kept], place[torch.from_numpy(kept)], number[kept]
    windows = band.sources.corpus.windows(place, config.before, config.after)
    return {**band.keys(tail), "number": number, **_text_columns(band, place, tail, windows)}


def _text_columns(
    band: Band, center: Int[Tensor, " example"], tail: np.ndarray, windows: Windows
) -> dict[str, Any]:
    corpus = band.sources.corpus
    lengths = windows.inside.sum(1)
    latent = torch.from_numpy(tail // band.tails.sides)
    values = band.tails.values_at(latent, windows.place)
    ids = corpus.ids[windows.place][windows.inside]
    return {
        "row": center // corpus.length,
        "position": center % corpus.length,
        "document": corpus.document[center],
        "peak": windows.peak,
        "cut_before": windows.cut_before,
        "cut_after": windows.cut_after,
        "token_ids": ragged(ids, lengths),
        "activations": ragged(values[windows.inside], lengths),
        "text": band.sources.spelling.texts(ids, lengths),
    }
