"""The evaluation as a page: the numbers that matter first, then figures, then every definition."""

from collections.abc import Mapping, Sequence
from typing import Any

from saelab import plots
from saelab.decoder_geometry import DecoderGeometry
from saelab.fidelity import LossEffects
from saelab.metrics import Reconstruction, density_histogram
from saelab.report import Card, Panel, Table, figures_page

__all__ = ["corpus_name", "evaluation_page", "model_name"]


def evaluation_page(
    *,
    dictionary: Mapping[str, Any],
    reconstruction: Reconstruction,
    losses: LossEffects | None,
    geometry: DecoderGeometry | None,
    data: Mapping[str, Any],
    excluded: Mapping[str, Any],
    warnings: Sequence[str],
) -> str:
    """A self-contained HTML page of an `Evaluation`'s parts."""
    hook = dictionary["hook"] or "an unnamed hook point"
    lead = (
        f"{dictionary['activation']} with {dictionary['d_sae']:,} latents of width "
        f"{dictionary['d_in']:,}, reading {hook} of {model_name(data)}; measured on "
        f"{reconstruction.n_tokens:,} tokens of {corpus_name(data)}."
    )
    return figures_page(
        eyebrow="Dictionary evaluation",
        title=f"How well does the dictionary of {hook} stand in for the model?",
        lead=lead,
        warnings=warnings,
        cards=_cards(reconstruction, losses),
        panels=_panels(reconstruction, geometry, bool(dictionary["signed"])),
        tables=_tables(reconstruction, losses, geometry),
        notes=_notes(reconstruction, losses, geometry, excluded),
    )


def model_name(data: Mapping[str, Any]) -> str:
    """The model's name, if one is known."""
    return str((data.get("model") or {}).get("name") or "an unknown model")


def corpus_name(data: Mapping[str, Any]) -> str:
    """The name of the text that was measured, if one is known."""
    store, tokens = data.get("store") or {}, data.get("tokens") or {}
    corpora = store.get("corpus") or ([tokens["corpus"]] if tokens.get("corpus") else [])
    names = [str(one.get("name")) for one in corpora if one.get("name")]
    return " and ".join(dict.fromkeys(names)) or "an unnamed corpus"


def _cards(one: Reconstruction, losses: LossEffects | None) -> list[Card]:
    cards = [
        Card(name="FVU", value=_number(one.fvu), note="share of variance missed; 0 is perfect"),
        Card(name="L0", value=_number(one.l0, 1), note="latents active per token, mean"),
        Card(
            name="Dead latents",
            value=_percent(one.dead_share),
            note=f"silent on all {one.n_tokens:,} tokens",
        ),
    ]
    if losses is not None:
        cards += [
            Card(
                name="CE recovered, zero",
                value=_percent(losses.ce_recovered_zero),
                note="of the loss that writing zeros costs",
            ),
            Card(
                name="CE recovered, mean",
                value=_percent(losses.ce_recovered_mean),
                note="of the loss that writing the mean costs",
            ),
            Card(
                name="KL", value=f"{_number(losses.kl_spliced)} nats", note="clean to spliced model"
            ),
        ]
    return cards


def _panels(one: Reconstruction, geometry: DecoderGeometry | None, signed: bool) -> list[Panel]:
    panels = []
    if one.l0 is not None:
        edges, counts = density_histogram(one.density, one.n_tokens)
        panels.append(
            Panel(
                title="How often do latents fire?",
                caption=f"Latents by the share of tokens on which they are not zero. "
                f"{one.dead:,} of {len(one.firing_positive):,} fired on none of "
                f"{one.n_tokens:,} tokens and are not drawn."
                + (" Both signs count." if signed else ""),
                figure=plots.density_figure(edges, counts, one.n_tokens),
            )
        )
        low, middle, high = (one.l0_quantiles[q] for q in ("0.05", "0.5", "0.95"))
        panels.append(
            Panel(
                title="How many latents does a token use?",
                caption="Tokens by their number of active latents. "
                + (
                    f"Nine in ten use exactly {low:,}."
                    if low == high
                    else f"Half use at most {middle:,}; nine in ten use {low:,} to {high:,}."
                ),
                figure=plots.count_histogram(
                    one.l0_counts, unit="active latents (L0)", weight="tokens", mean=one.l0
                ),
            )
        )
    if geometry is not None:
        panels.append(
            Panel(
                title="Are there near-copies among the decoder directions?",
                caption=f"Each of {geometry.n_latents:,} latents by the cosine with its most "
                f"parallel or opposed other direction. Median |cosine| "
                f"{geometry.nearest_median:.3f}; random directions would give "
                f"{geometry.random_nearest:.3f}. {geometry.duplicate_share:.1%} exceed 0.95.",
                figure=plots.neighbor_figure(geometry.nearest_cosine),
            )
        )
    return panels


def _tables(
    one: Reconstruction, losses: LossEffects | None, geometry: DecoderGeometry | None
) -> list[Table]:
    quantiles = ", ".join(f"{level:,}" for level in one.l0_quantiles.values())
    shares = ", ".join(f"{float(share):.0%}" for share in one.l0_quantiles)
    tables = [
        Table(
            title="Reconstruction",
            rows=[
                ("FVU", _number(one.fvu), "Σ|x - x̂|² / Σ|x - mean(x)|², over all tokens"),
                ("explained variance", _number(one.explained_variance), "1 - FVU, centered"),
                (
                    "explained variance, uncentered",
                    _number(one.explained_variance_uncentered),
                    "1 - Σ|x - x̂|² / Σ|x|²; flattered by a large mean, for comparison with "
                    "tools that report it",
                ),
                ("squared error", _number(one.mse), "mean over tokens of |x - x̂|², model units"),
                ("cosine", _number(one.cosine), "mean over tokens of cos(x, x̂)"),
                ("length ratio", _number(one.l2_ratio), "mean over tokens of |x̂| / |x|"),
                (
                    "relative bias (gamma)",
                    _number(one.relative_bias),
                    "Σ|x̂|² / Σ x·x̂; below 1 is shrinkage, 1 is unbiased",
                ),
            ],
        )
    ]
    if one.l0 is not None:
        tables.append(
            Table(
                title="Sparsity",
                rows=[
                    ("L0", _number(one.l0, 2), "mean active latents per token (not zero)"),
                    ("L0 quantiles", quantiles, f"at {shares} of tokens"),
                    ("L1", _number(one.l1), "mean over tokens of Σ|latent|, normalized units"),
                    (
                        "dead",
                        f"{one.dead:,} ({_percent(one.dead_share)})",
                        f"latents that are zero on all {one.n_tokens:,} tokens",
                    ),
                ],
            )
        )
    if losses is not None:
        tables.append(_loss_table(losses))
    if geometry is not None:
        tables.append(_geometry_table(geometry))
    return tables


def _loss_table(losses: LossEffects) -> Table:
    def nats(value: float) -> str:
        return f"{value:.4f} nats"

    return Table(
        title="Effect on the model's predictions",
        rows=[
            ("CE, clean", nats(losses.ce_clean), "cross-entropy of the untouched model"),
            ("CE, spliced", nats(losses.ce_spliced), "with the reconstruction in place"),
            ("CE, zero ablation", nats(losses.ce_zero), "with zeros in place"),
            ("CE, mean ablation", nats(losses.ce_mean), "with the mean activation in place"),
            (
                "CE recovered, zero",
                _percent(losses.ce_recovered_zero),
                "(CE zero - CE spliced) / (CE zero - CE clean)",
            ),
            (
                "CE recovered, mean",
                _percent(losses.ce_recovered_mean),
                "(CE mean - CE spliced) / (CE mean - CE clean); the harder baseline",
            ),
            ("KL, spliced", nats(losses.kl_spliced), "KL(clean ‖ spliced), mean per prediction"),
            ("KL, zero ablation", nats(losses.kl_zero), "KL(clean ‖ zeros)"),
            ("KL, mean ablation", nats(losses.kl_mean), "KL(clean ‖ mean)"),
            (
                "KL score, zero",
                _percent(losses.kl_score_zero),
                "(KL zero - KL spliced) / KL zero",
            ),
            (
                "KL score, mean",
                _percent(losses.kl_score_mean),
                "(KL mean - KL spliced) / KL mean",
            ),
        ],
    )


def _geometry_table(geometry: DecoderGeometry) -> Table:
    norms = (geometry.norm_min, geometry.norm_median, geometry.norm_max)
    return Table(
        title="Decoder directions",
        rows=[
            ("length", ", ".join(map(_number, norms)), "shortest, median, longest |W_dec[i]|"),
            (
                "nearest |cosine|",
                _number(geometry.nearest_median),
                f"median over latents; {geometry.random_nearest:.3f} for random directions",
            ),
            (
                "near-copies",
                _percent(geometry.duplicate_share),
                "latents whose nearest direction has |cosine| above 0.95",
            ),
            (
                "encoder against decoder",
                f"{_number(geometry.encoder_cosine_median)}, "
                f"{_number(geometry.encoder_cosine_low)}",
                "cos(W_enc[:, i], W_dec[i]): median and 5 % quantile",
            ),
        ],
    )


def _notes(
    one: Reconstruction,
    losses: LossEffects | None,
    geometry: DecoderGeometry | None,
    excluded: Mapping[str, Any],
) -> list[str]:
    limit = excluded.get("norm_limit")
    outliers = f", and positions whose norm exceeds {limit:,.1f}" if limit else ""
    notes = [
        "Left out of every number: the first position of each row, beginning-of-sequence and "
        f"other special tokens, padding{outliers}."
    ]
    if "positions" in excluded:
        notes.append(
            f"Left out: {excluded['positions']:,} of {excluded['visited']:,} positions visited."
        )
    notes.append(
        f"Reconstruction and sparsity: {one.n_tokens:,} tokens, sums in float64, one mean over the "
        "whole set, not per batch."
    )
    if losses is not None:
        notes.append(
            f"Losses: {losses.n_predictions:,} predictions of kept tokens, made from kept "
            f"positions of the same document. Every edit writes to the same {losses.n_edited:,} "
            "positions and leaves all others, the first position included, as the model made them."
        )
    if geometry is not None and geometry.n_latents < len(one.firing_positive):
        notes.append(
            f"Nearest directions: an evenly spaced {geometry.n_latents:,} latents, each compared "
            "with all."
        )
    return notes


def _number(value: float | None, digits: int | None = None) -> str:
    if value is None:
        return "undefined"
    if digits is not None:
        return f"{value:,.{digits}f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.1%}"
