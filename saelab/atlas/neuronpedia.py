"""An atlas in the files Neuronpedia imports, and back.

A folder of `batch-<n>.json` with `run_settings.json` and `skipped_indexes.json`, as SAEDashboard
writes them. Their conventions, which are not ours: numbers are rounded to 3 decimals;
`qualifying_token_index` is the index minus 1; the strongest examples are the group with bin_min
and bin_contains -1; a histogram has values at the left ends of its bins; `correlated_features_l1`
holds a cosine. Panels that an atlas does not have (neurons, DFA) are empty lists or null.

A signed latent's examples of both sides are in one record; its bins below zero have negative ends.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from saelab.atlas.cards import LatentCard, TailCard
from saelab.atlas.records import Example
from saelab.errors import FormatError
from saelab.files import write_json

if TYPE_CHECKING:
    from saelab.atlas.opened import Atlas

__all__ = ["ActivationPanel", "FeaturePanel", "feature_panel", "load_batches", "save_batches"]

BATCH = 128
_N_LOGITS = 10


@final
@dataclass(frozen=True, kw_only=True)
class ActivationPanel:
    """One example, under Neuronpedia's names."""

    bin_min: float
    bin_max: float
    bin_contains: float
    tokens: list[str]
    values: list[float]
    qualifying_token_index: int
    dfa_values: list[float]
    dfa_maxValue: float | None
    dfa_targetIndex: int | None


@final
@dataclass(frozen=True, kw_only=True)
class FeaturePanel:
    """One latent, under Neuronpedia's names."""

    feature_index: int
    neuron_alignment_indices: list[int]
    neuron_alignment_values: list[float]
    neuron_alignment_l1: list[float]
    correlated_neurons_indices: list[int]
    correlated_neurons_pearson: list[float]
    correlated_neurons_l1: list[float]
    correlated_features_indices: list[int]
    correlated_features_pearson: list[float]
    correlated_features_l1: list[float]
    neg_str: list[str]
    neg_values: list[float]
    pos_str: list[str]
    pos_values: list[float]
    frac_nonzero: float
    freq_hist_data_bar_values: list[float]
    freq_hist_data_bar_heights: list[float]
    logits_hist_data_bar_values: list[float]
    logits_hist_data_bar_heights: list[float]
    n_prompts_total: int
    n_tokens_in_prompt: int
    dataset: str
    activations: list[ActivationPanel]
    decoder_weights_dist: list[float]
    vector: list[float]


def feature_panel(atlas: "Atlas", latent: int, vector: Sequence[float] = ()) -> FeaturePanel:
    """What Neuronpedia shows of a latent, rounded as it rounds.

    Args:
        atlas: Where the latent is.
        latent: Which.
        vector: Its decoder direction, if it is to be included.
    """
    card, about = atlas.latent(latent), atlas.about
    positive = card.positive
    together = {one.latent: one for tail in card.tails for one in reversed(tail.cooccurring)}
    cosines = {one.latent: one.cosine for one in card.neighbors}
    related = sorted(together.values(), key=lambda one: (-one.phi, one.latent))[:3]
    logits = card.logit_histogram
    return FeaturePanel(
        feature_index=latent,
        neuron_alignment_indices=[],
        neuron_alignment_values=[],
        neuron_alignment_l1=[],
        correlated_neurons_indices=[],
        correlated_neurons_pearson=[],
        correlated_neurons_l1=[],
        correlated_features_indices=[one.latent for one in related],
        correlated_features_pearson=_rounded(one.phi for one in related),
        correlated_features_l1=_rounded(cosines.get(one.latent, 0.0) for one in related),
        neg_str=[one.token for one in positive.suppressed[:_N_LOGITS]],
        neg_values=_rounded(one.effect for one in positive.suppressed[:_N_LOGITS]),
        pos_str=[one.token for one in positive.promoted[:_N_LOGITS]],
        pos_values=_rounded(one.effect for one in positive.promoted[:_N_LOGITS]),
        frac_nonzero=card.density,  # rounded, a rare latent would look dead
        freq_hist_data_bar_values=_rounded(value for value, _ in _bars(card)),
        freq_hist_data_bar_heights=_rounded(height for _, height in _bars(card)),
        logits_hist_data_bar_values=_rounded(logits.edges[:-1]) if logits else [],
        logits_hist_data_bar_heights=_rounded(logits.counts) if logits else [],
        n_prompts_total=about["n_rows"],
        n_tokens_in_prompt=about["length"],
        dataset=str(about["corpus"]),
        activations=[one for tail in card.tails for one in _activations(tail)],
        decoder_weights_dist=_rounded(card.heads),
        vector=_rounded(vector),
    )


def save_batches(
    atlas: "Atlas",
    folder: str | Path,
    latents: Sequence[int] | None = None,
    *,
    per_batch: int = BATCH,
    vectors: bool = False,
) -> list[Path]:
    """Write the batches; dead latents are listed in `skipped_indexes.json`.

    Args:
        atlas: What to export.
        folder: Where the files go.
        latents: Which latents; all if None.
        per_batch: Latents in a file.
        vectors: Include the decoder directions.

    Returns:
        The files, batches first.
    """
    folder = Path(folder)
    wanted = range(atlas.d_sae) if latents is None else sorted(set(map(int, latents)))
    alive = set(atlas.sql("SELECT latent FROM latents WHERE count > 0")["latent"].tolist())
    shown = [latent for latent in wanted if latent in alive]
    directions = atlas.directions() if vectors else None
    paths = []
    for number, start in enumerate(range(0, len(shown), per_batch)):
        panels = [
            feature_panel(
                atlas, latent, directions[latent].tolist() if directions is not None else ()
            )
            for latent in shown[start : start + per_batch]
        ]
        paths.append(folder / f"batch-{number}.json")
        write_json(paths[-1], {**_header(atlas), "features": [asdict(one) for one in panels]})
    write_json(folder / "run_settings.json", {**_header(atlas), "config": atlas.about["config"]})
    skipped = [latent for latent in wanted if latent not in alive]
    write_json(folder / "skipped_indexes.json", {**_header(atlas), "skipped_indexes": skipped})
    return [*paths, folder / "run_settings.json", folder / "skipped_indexes.json"]


def load_batches(folder: str | Path) -> dict[int, FeaturePanel]:
    """Read batches, ours or SAEDashboard's, by latent.

    Raises:
        FormatError: There are none, or one is not complete.
    """
    paths = sorted(Path(folder).glob("batch-*.json"))
    if not paths:
        raise FormatError(f"{folder} holds no batch-<number>.json. Export there first.")
    found: dict[int, FeaturePanel] = {}
    for path in paths:
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            for entry in value["features"]:
                found[int(entry["feature_index"])] = _panel(entry)
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(
                f"{path} is not a batch of Neuronpedia's: {type(error).__name__} {error}. Export "
                "it again."
            ) from None
    return dict(sorted(found.items()))


def _panel(entry: Mapping[str, Any]) -> FeaturePanel:
    names = {field.name for field in fields(FeaturePanel)}
    values = {name: entry[name] for name in names}
    inner = {field.name for field in fields(ActivationPanel)}
    values["activations"] = [
        ActivationPanel(**{name: one[name] for name in inner}) for one in entry["activations"]
    ]
    return FeaturePanel(**values)


def _header(atlas: "Atlas") -> dict[str, Any]:
    return {
        "model_id": str(atlas.about["model"]),
        "layer": _layer(str(atlas.about["hook"])),
        "sae_set": atlas.folder.absolute().parent.name,
        "sae_id_suffix": None,
    }


def _layer(hook: str) -> int:
    """The number of the block in a hook point's name; 0 if it has none."""
    return next((int(part) for part in hook.split(".") if part.isdecimal()), 0)


def _bars(card: LatentCard) -> list[tuple[float, int]]:
    """(left end, tokens) of the histogram bins of both sides, ascending."""
    found: list[tuple[float, int]] = []
    for tail in reversed(card.tails):
        edges = tail.histogram.edges
        bars = list(zip(edges, tail.histogram.counts, strict=False)) if tail.count else []
        if tail.sign < 0:
            bars = [
                (-right, count)
                for right, count in zip(edges[1:], tail.histogram.counts, strict=True)
                if tail.count
            ][::-1]
        found += bars
    return found


def _activations(tail: TailCard) -> list[ActivationPanel]:
    """The strongest, then the draws from each interval, strongest interval first."""
    found = [_activation(one, -1.0, tail.max * tail.sign, -1.0) for one in tail.top()]
    for number in reversed(range(len(tail.intervals))):
        interval = tail.intervals[number]
        low, high = sorted((tail.sign * interval.low, tail.sign * interval.high))
        found += [_activation(one, low, high, interval.share) for one in tail.of_interval(number)]
    return found


def _activation(one: Example, low: float, high: float, share: float) -> ActivationPanel:
    return ActivationPanel(
        bin_min=round(low, 3),
        bin_max=round(high, 3),
        bin_contains=round(share, 3),
        tokens=list(one.tokens),
        values=_rounded(one.activations),
        qualifying_token_index=one.peak - 1,
        dfa_values=[],
        dfa_maxValue=None,
        dfa_targetIndex=None,
    )


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 3) for value in values]
