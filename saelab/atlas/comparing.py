"""Which latents of two dictionaries are the same?

Two measures, each with the null of unrelated directions or texts:

- the cosine of decoder directions, where both dictionaries write vectors of one width (its size
  where one of them is signed). The null is the best match after the other's coordinates are
  shuffled with random signs, which keeps every length and the number of candidates;
- the correlation of activations over the tokens of a text that both atlases were built from and
  kept the codes of. The null is the best match after the other's tokens are shifted by half of the
  text, which keeps every density.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.atlas.codes import CodeShards
from saelab.errors import ConfigError

if TYPE_CHECKING:
    import pandas

    from saelab.atlas.opened import Atlas

__all__ = ["Comparison", "compare"]

MEASURES = ("auto", "cosine", "correlation")
COUNTED_TOKENS = 500_000
_FLOATS_AT_ONCE = 2**24


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """The best match of every latent of one dictionary in another."""

    table: "pandas.DataFrame"
    """latent, other, similarity (signed), null (best similarity of the null), mutual (whether each
    is the other's best), label, other_label; one row per latent that fires."""
    by: str
    """"cosine" or "correlation"."""
    threshold: float
    """Similarity from which on two latents count as the same."""

    @property
    def shared(self) -> float:
        """Share of the latents whose best match is at least `threshold` alike."""
        return float((np.abs(self.table["similarity"].to_numpy()) >= self.threshold).mean())

    @property
    def shared_null(self) -> float:
        """The same share under the null."""
        return float((np.abs(self.table["null"].to_numpy()) >= self.threshold).mean())


def compare(one: "Atlas", other: "Atlas", by: str = "auto", threshold: float = 0.7) -> Comparison:
    """Match each latent of one dictionary to its best partner in another.

    Args:
        one: An atlas.
        other: Another.
        by: "cosine" of decoder directions, "correlation" of activations, or "auto": cosine where
            the directions have one width and the models are the same, else correlation.
        threshold: Similarity from which on two latents count as the same.

    Raises:
        ConfigError: They cannot be compared so; the message says why.
    """
    import pandas

    if by not in MEASURES:
        raise ConfigError(f"by={by!r} is not known; choose one of {', '.join(MEASURES)}.")
    by = _chosen(one, other) if by == "auto" else by
    by_size = one.signed or other.signed
    match = (_by_cosine if by == "cosine" else _by_correlation)(one, other, by_size)
    names, other_names = one.labels(), other.labels()
    table = pandas.DataFrame(
        {
            "latent": np.arange(one.d_sae),
            "other": match.best.numpy(),
            "similarity": match.similarity.numpy(),
            "null": match.null.numpy(),
            "mutual": (match.back[match.best] == torch.arange(one.d_sae)).numpy(),
            "label": [names[latent] for latent in range(one.d_sae)],
            "other_label": [other_names[latent] for latent in match.best.tolist()],
        }
    )
    alive = one.arrow("latents").column("count").to_numpy() > 0
    rows = table.iloc[np.flatnonzero(alive)].reset_index(drop=True)
    return Comparison(table=rows, by=by, threshold=threshold)


def _chosen(one: "Atlas", other: "Atlas") -> str:
    same_model = one.identity["model"]["weights"] == other.identity["model"]["weights"]
    same_width = one.about["d_out"] == other.about["d_out"]
    return "cosine" if same_model and same_width else "correlation"


@final
@dataclass(frozen=True, eq=False)
class _Match:
    """Best partners."""

    best: Int[Tensor, " latent"]
    similarity: Float[Tensor, " latent"]
    back: Int[Tensor, " other"]
    null: Float[Tensor, " latent"]


def _by_cosine(one: "Atlas", other: "Atlas", by_size: bool) -> _Match:
    a, b = one.directions(), other.directions()
    if a.shape[1] != b.shape[1]:
        raise ConfigError(
            f"Decoder directions of widths {a.shape[1]} and {b.shape[1]} have no cosine. Compare "
            'by="correlation", with atlases built from the same text.'
        )
    generator = torch.Generator().manual_seed(0)
    width = a.shape[1]
    signs = torch.randint(0, 2, (width,), generator=generator) * 2.0 - 1
    shuffled = b[:, torch.randperm(width, generator=generator)] * signs
    best, similarity = _best(a, b, by_size)
    return _Match(best, similarity, _best(b, a, by_size)[0], _best(a, shuffled, by_size)[1])


def _best(
    a: Float[Tensor, "latent d"], b: Float[Tensor, "other d"], by_size: bool
) -> tuple[Int[Tensor, " latent"], Float[Tensor, " latent"]]:
    found = []
    for some in a.split(max(1, _FLOATS_AT_ONCE // len(b))):
        cosine = some @ b.T
        best = (cosine.abs() if by_size else cosine).argmax(1)
        found.append((best, cosine.gather(1, best[:, None]).squeeze(1)))
    return torch.cat([best for best, _ in found]), torch.cat([value for _, value in found])


def _by_correlation(one: "Atlas", other: "Atlas", by_size: bool) -> _Match:
    for atlas in (one, other):
        if not atlas.about["has_codes"]:
            raise ConfigError(
                f"{atlas.folder} kept no codes, which comparing activations needs. Build it with "
                "keep_codes=True."
            )
    texts = [(a.identity["tokens"], a.about["n_rows"], a.about["length"]) for a in (one, other)]
    if texts[0] != texts[1]:
        raise ConfigError(
            "The two atlases were built from different tokens, so their activations cannot be set "
            "side by side. Build both from one text."
        )
    a, b = (_activations(atlas) for atlas in (one, other))
    shift = a.shape[0] // 2
    order = np.roll(np.arange(a.shape[0]), shift)
    best, similarity = _correlated(a, b, by_size)
    null = _correlated(a, b[order], by_size)[1]
    return _Match(best, similarity, _correlated(b, a, by_size)[0], null)


def _activations(atlas: "Atlas") -> Any:
    """scipy csc_matrix [token, latent] of the tokens both measure, or the first rows of them."""
    from scipy.sparse import csc_matrix

    about = atlas.about
    n_rows = min(about["n_rows"], max(1, COUNTED_TOKENS // about["length"]))
    shards = CodeShards(
        atlas.folder / "codes", about["rows_per_shard"], about["length"], about["n_rows"],
        atlas.d_sae,
    )  # fmt: skip
    used = range(-(-n_rows // about["rows_per_shard"]))
    pairs = shards.pairs(0, atlas.d_sae, used)
    kept = pairs.token < n_rows * about["length"]
    at = (pairs.token[kept].numpy(), pairs.latent[kept].numpy())
    shape = (n_rows * about["length"], atlas.d_sae)
    return csc_matrix((pairs.value[kept].numpy(), at), shape=shape, dtype=np.float32).tocsr()


def _correlated(
    a: Any, b: Any, by_size: bool
) -> tuple[Int[Tensor, " latent"], Float[Tensor, " latent"]]:
    """Best Pearson correlation of each column of `a` with a column of `b`.

    Unmeasured tokens are zero in both and count as silent.
    """
    n = a.shape[0]
    means = [np.asarray(x.mean(0)).ravel().astype(np.float64) for x in (a, b)]
    squares = [np.asarray(x.multiply(x).mean(0)).ravel().astype(np.float64) for x in (a, b)]
    spread = [np.sqrt(np.maximum(s - m**2, 0)) for s, m in zip(squares, means, strict=True)]
    spread = [np.where(s > 0, s, np.inf) for s in spread]
    found = []
    step = max(1, _FLOATS_AT_ONCE // b.shape[1])
    left = a.T.tocsr()
    for start in range(0, a.shape[1], step):
        rows = slice(start, start + step)
        both = (left[rows] @ b).toarray().astype(np.float64) / n
        correlation = (both - np.outer(means[0][rows], means[1])) / np.outer(
            spread[0][rows], spread[1]
        )
        best = (np.abs(correlation) if by_size else correlation).argmax(1)
        found.append((best, correlation[np.arange(len(best)), best]))
    best = torch.from_numpy(np.concatenate([one for one, _ in found]))
    return best, torch.from_numpy(np.concatenate([one for _, one in found])).float()
