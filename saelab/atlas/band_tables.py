"""One band of latents becomes its rows of every table.

Everything here is a function of the codes, the tokens, the weights and the configuration, so a
band comes out the same whoever computes it and however often.
"""

from typing import Any

import numpy as np
import torch

from saelab.atlas.band import Band
from saelab.atlas.columns import as_rows, nulls, ragged
from saelab.atlas.directions import head_shares
from saelab.atlas.example_rows import example_columns, near_miss_columns
from saelab.atlas.label_rows import BandLabels
from saelab.atlas.parquet import table_of
from saelab.atlas.profiles import profile_columns
from saelab.atlas.signatures import visible
from saelab.atlas.tail_pairs import ranks_within

__all__ = ["POSITION_PARTS", "band_tables"]

POSITION_PARTS = 32
TOP_DOCUMENTS = 3
_MOMENTS = ("std", "skew", "kurtosis")


def band_tables(band: Band) -> dict[str, Any]:
    """Arrow tables of a band, by name."""
    sources, tails, config = band.sources, band.tails, band.sources.config
    labels = BandLabels(band)
    stop = tails.first + tails.n_latents
    columns = {
        "latents": {**_latents(band), **labels.latent_columns()},
        "tails": _tails(band),
        "examples": example_columns(band),
        "near_misses": near_miss_columns(band),
        "profiles": profile_columns(
            band.key_counts, tails, sources.n_measured, config.profile, sources.spelling.text
        ),
        "labels": labels.columns(),
        "neighbors": _neighbors(band),
        "cooccurrence": sources.firing.columns(
            tails.first, stop, config.cooccurring, config.band_pairs
        ),
        "logits": _logits(band),
        "logit_histograms": _logit_histograms(band),
    }
    return {name: table_of(name, found) for name, found in columns.items()}


def _tails(band: Band) -> dict[str, Any]:
    config, tails = band.sources.config, band.tails
    in_document, document, tokens = band.documents
    shown = ranks_within(in_document) < TOP_DOCUMENTS
    each = np.bincount(in_document[shown], minlength=tails.n_tails)
    edges = band.chosen.quantile_edges
    alive = band.count > 0
    fired = band.sources.windows.fired(tails)
    return {
        **band.keys(np.arange(tails.n_tails)),
        "count": band.count,
        "density": band.count.double() / band.sources.n_measured,
        "max": tails.max(),
        "mean": band.sum / band.count.clamp_min(1),
        "histogram": as_rows(tails.histogram(config.bins)),
        "intervals": as_rows(tails.histogram(config.intervals)),
        "quantile_edges": ragged(edges[alive].flatten(), alive.long() * edges.shape[1]),
        "positions": as_rows(tails.positions(band.sources.corpus.length, POSITION_PARTS)),
        "n_documents": np.bincount(in_document, minlength=tails.n_tails),
        "top_documents": ragged(document[shown], each),
        "top_document_counts": ragged(tokens[shown], each),
        "fired_windows": ragged(fired[1], np.bincount(fired[0], minlength=tails.n_tails)),
    }


def _neighbors(band: Band) -> dict[str, Any]:
    other, cosine = band.nearest
    n_latents, n = other.shape
    return {
        "latent": band.latents.repeat_interleave(n),
        "rank": torch.arange(n).repeat(n_latents),
        "other": other.flatten(),
        "cosine": cosine.flatten(),
    }


def _logits(band: Band) -> dict[str, Any]:
    shape = band.logit_shape
    if shape is None:
        return {name: [] for name in ("latent", "side", "rank", "token_id", "effect")}
    n_latents, n = shape.promoted.shape
    return {
        "latent": band.latents.repeat_interleave(2 * n),
        "side": torch.tensor([1, -1]).repeat_interleave(n).repeat(n_latents),
        "rank": torch.arange(n).repeat(2 * n_latents),
        "token_id": torch.cat([shape.promoted, shape.suppressed], 1).flatten(),
        "effect": torch.cat([shape.promoted_by, shape.suppressed_by], 1).flatten(),
    }


def _logit_histograms(band: Band) -> dict[str, Any]:
    shape = band.logit_shape
    if shape is None:
        return {name: [] for name in ("latent", "low", "high", "counts")}
    counts = as_rows(shape.counts)
    return {"latent": band.latents, "low": shape.low, "high": shape.high, "counts": counts}


def _latents(band: Band) -> dict[str, Any]:
    tails, measured = band.tails, band.sources.n_measured
    count = band.count.reshape(-1, tails.sides)
    largest = tails.max().reshape(-1, tails.sides)
    total = count.sum(1)
    zero = torch.zeros(tails.n_latents)
    negative, lowest = (count[:, 1], -largest[:, 1]) if tails.sides == 2 else (zero.long(), zero)
    return {
        "latent": band.latents,
        "count": total,
        "density": total.double() / measured,
        "count_pos": count[:, 0],
        "count_neg": negative,
        "density_pos": count[:, 0].double() / measured,
        "density_neg": negative.double() / measured,
        "strongest": largest.amax(1),
        "max": largest[:, 0],
        "min": lowest,
        "mean": band.sum.reshape(-1, tails.sides).sum(1) / total.clamp_min(1),
        **_weight_columns(band),
        "n_documents": _n_documents(band),
        **_logit_columns(band),
        **_top_tokens(band),
    }


def _weight_columns(band: Band) -> dict[str, Any]:
    sae, n = band.sources.sae, band.tails.n_latents
    rows = band.latents.to(sae.device)
    encoder = sae.W_enc.detach().T[rows].float().cpu() * sae.normalization.scale_in
    directions = band.sources.directions[band.latents]
    same = encoder.shape[1] == directions.shape[1]
    other, cosine = band.nearest
    heads = band.sources.n_heads
    return {
        "bias": sae.b_enc.detach()[rows].float().cpu(),
        "enc_norm": encoder.norm(dim=1),
        "dec_norm": directions.norm(dim=1),
        "enc_dec_cosine": torch.cosine_similarity(encoder, directions)
        if same
        else nulls(n, "float"),
        "nearest": other[:, 0] if other.shape[1] else nulls(n, "int32"),
        "nearest_cosine": cosine[:, 0] if other.shape[1] else nulls(n, "float"),
        "heads": as_rows(head_shares(directions, heads)) if heads else nulls(n, "list<float>"),
    }


def _n_documents(band: Band) -> np.ndarray:
    tail, document, _ = band.documents
    latent = tail // band.tails.sides
    span = int(document.max(initial=0)) + 1
    distinct = np.unique(latent * span + document) // span
    return np.bincount(distinct, minlength=band.tails.n_latents)


def _logit_columns(band: Band) -> dict[str, Any]:
    n, shape = band.tails.n_latents, band.logit_shape
    if shape is None:
        numbers = {f"logit_{name}": nulls(n, "float") for name in _MOMENTS}
        return {**numbers, "promoted": nulls(n, "string"), "suppressed": nulls(n, "string")}
    numbers = {f"logit_{name}": getattr(shape, name) for name in _MOMENTS}
    text = band.sources.spelling.text
    words = {
        name: [" · ".join(visible(text([token])) for token in row) for row in ids[:, :5].tolist()]
        for name, ids in (("promoted", shape.promoted), ("suppressed", shape.suppressed))
    }
    return {**numbers, **words}


def _top_tokens(band: Band) -> dict[str, Any]:
    chosen, tails = band.chosen, band.tails
    first = (chosen.top_rank == 0).nonzero().squeeze(1)
    ids = band.sources.corpus.ids[tails.token[chosen.pair[first]]].tolist()
    words = (band.sources.spelling.text([token]) for token in ids)
    texts = dict(zip(tails.tail[chosen.pair[first]].tolist(), words, strict=True))
    sides = tails.sides
    of_tails = [texts.get(tail) for tail in range(tails.n_tails)]
    return {
        "top_token_pos": of_tails[::sides],
        "top_token_neg": of_tails[1::sides] if sides == 2 else nulls(tails.n_latents, "string"),
    }
