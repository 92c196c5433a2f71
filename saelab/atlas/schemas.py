"""What tables does an atlas hold, and what does each column mean?

One Parquet file per table, rows sorted by latent. These are the names `atlas.sql` sees; the views
`annotations` and `explanations` join them there, from files of their own.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow

__all__ = ["OPTIONAL", "TABLES", "arrow_schema", "arrow_type", "columns_of"]

TABLES: dict[str, dict[str, tuple[str, str]]] = {
    "latents": {
        "latent": ("int32", "its number"),
        "count": ("int64", "measured tokens on which it is not zero"),
        "density": ("float64", "count over measured tokens"),
        "count_pos": ("int64", "tokens on which it is above zero"),
        "count_neg": ("int64", "tokens on which it is below zero"),
        "density_pos": ("float64", "count_pos over measured tokens"),
        "density_neg": ("float64", "count_neg over measured tokens"),
        "strongest": ("float32", "largest |activation|"),
        "max": ("float32", "largest activation; 0 if never above zero"),
        "min": ("float32", "smallest activation; 0 if never below zero"),
        "mean": ("float32", "mean |activation| where it is not zero"),
        "bias": ("float32", "its entry of b_enc"),
        "enc_norm": ("float32", "length of its encoder direction"),
        "dec_norm": ("float32", "length of what one unit of it writes, in the model's units"),
        "enc_dec_cosine": ("float32", "cosine of its two directions; null if widths differ"),
        "nearest": ("int32", "latent with the nearest decoder direction; null if none"),
        "nearest_cosine": ("float32", "cosine with it, signed"),
        "n_documents": ("int32", "documents in which it fires"),
        "logit_std": ("float32", "spread of its logit effects; null where not known"),
        "logit_skew": ("float32", "skewness of its logit effects"),
        "logit_kurtosis": ("float32", "excess kurtosis of its logit effects"),
        "top_token_pos": ("string", "text of the token of its strongest positive example"),
        "top_token_neg": ("string", "the same on the negative side; null if it has none"),
        "promoted": ("string", "its first promoted tokens, spaced by ' · '; null if not known"),
        "suppressed": ("string", "its first suppressed tokens"),
        "auto_label": ("string", "best automatic label of its heavier side; '' if dead"),
        "auto_label_pos": ("string", "best automatic label of the positive side"),
        "auto_label_neg": ("string", "best automatic label of the negative side"),
        "auto_kind": ("string", "kind of auto_label"),
        "auto_score": ("float32", "its score, in the unit auto_score_name says"),
        "auto_score_name": ("string", "'F1', 'balanced accuracy' or 'z'"),
        "heads": ("list<float>", "share of the decoder direction's length per head; null"),
    },
    "tails": {
        "latent": ("int32", "which latent"),
        "sign": ("int8", "+1 or -1"),
        "count": ("int64", "measured tokens on which it fires"),
        "density": ("float64", "count over measured tokens"),
        "max": ("float32", "largest |activation|"),
        "mean": ("float32", "mean |activation| where it fires"),
        "histogram": ("list<int64>", "tokens per equal-width bin of |activation|, 0 to max"),
        "intervals": ("list<int64>", "tokens per equal-width interval, 0 (excluded) to max"),
        "quantile_edges": ("list<float>", "least |activation| of each quantile, then max"),
        "positions": ("list<int64>", "tokens per equal part of the row"),
        "n_documents": ("int32", "documents in which it fires"),
        "top_documents": ("list<int32>", "documents in which it fires most"),
        "top_document_counts": ("list<int64>", "tokens in those"),
        "fired_windows": ("list<int32>", "numbers of the corpus windows in which it fires"),
    },
    "examples": {
        "latent": ("int32", "which latent"),
        "sign": ("int8", "side of zero of the peak"),
        "number": ("int32", "identifies the example within latent and sign"),
        "strength": ("float32", "|activation| at the peak"),
        "top_rank": ("int32", "rank among the strongest, one per token row; null if drawn"),
        "interval": ("int32", "equal-width interval of the peak"),
        "interval_rank": ("int32", "order of the draw from it; null if not drawn from it"),
        "quantile": ("int32", "equal-count stratum of the peak"),
        "quantile_rank": ("int32", "order of the draw from it; null if not drawn from it"),
        "row": ("int32", "token row"),
        "position": ("int32", "position of the peak in it"),
        "document": ("int32", "number of the document"),
        "peak": ("int32", "place of the peak among the tokens shown"),
        "cut_before": ("bool", "the document goes on before what is shown"),
        "cut_after": ("bool", "the document goes on after what is shown"),
        "token_ids": ("list<int32>", "tokens shown"),
        "activations": ("list<float>", "the latent's signed activation on each"),
        "text": ("string", "the tokens' text, each token cut at 64 characters"),
    },
    "loss_effects": {
        "latent": ("int32", "which latent"),
        "sign": ("int8", "which side"),
        "number": ("int32", "which example"),
        "direct": (
            "list<float>",
            "what the activation one token before added to each token's "
            "log-probability through the final norm alone, nats; null where none",
        ),
        "ablation": (
            "list<float>",
            "log-probability of each token minus that with the latent at "
            "zero in this row, nats; null where not measured",
        ),
    },
    "near_misses": {
        "latent": ("int32", "which latent"),
        "sign": ("int8", "side of zero whose token it is"),
        "number": ("int32", "identifies it within latent and sign"),
        "row": ("int32", "token row"),
        "position": ("int32", "position of the token"),
        "document": ("int32", "number of the document"),
        "peak": ("int32", "place of the token among those shown"),
        "cut_before": ("bool", "the document goes on before what is shown"),
        "cut_after": ("bool", "the document goes on after what is shown"),
        "token_ids": ("list<int32>", "tokens shown"),
        "activations": ("list<float>", "the latent's signed activation on each"),
        "text": ("string", "the tokens' text"),
    },
    "logits": {
        "latent": ("int32", "which latent"),
        "side": ("int8", "+1 promoted, -1 suppressed by a positive activation"),
        "rank": ("int32", "from 0, strongest first"),
        "token_id": ("int32", "the token"),
        "effect": ("float32", "logit effect of one unit, relative to the vocabulary's mean"),
    },
    "logit_histograms": {
        "latent": ("int32", "which latent"),
        "low": ("float32", "smallest effect"),
        "high": ("float32", "largest effect"),
        "counts": ("list<int64>", "tokens of the vocabulary per equal-width bin"),
    },
    "profiles": {
        "latent": ("int32", "which latent"),
        "sign": ("int8", "which side"),
        "family": ("string", "'token', 'bigram', 'trigram' or 'next'"),
        "token_ids": ("list<int32>", "the token or tokens"),
        "text": ("string", "their text, each token cut at 64 characters"),
        "fires": ("int64", "tokens with this key on which it fires"),
        "corpus": ("int64", "measured tokens with this key"),
        "share": ("float32", "fires over all tokens on which it fires"),
        "precision": ("float32", "fires over corpus"),
        "lift": ("float32", "share over the key's share of measured tokens"),
        "mean": ("float32", "mean |activation| where it fires on this key"),
        "count_rank": ("int32", "rank by fires; null beyond those listed"),
        "enriched_rank": ("int32", "rank by fires * log(lift); null beyond those listed"),
    },
    "labels": {
        "latent": ("int32", "which latent"),
        "sign": ("int8", "which side"),
        "kind": ("string", "'token', 'bigram', 'trigram', 'next', 'context' or 'output'"),
        "text": ("string", "the description"),
        "score": ("float32", "how well it does"),
        "score_name": ("string", "'F1', 'balanced accuracy' or 'z'"),
        "precision": ("float32", "of what it points at, the share on which the latent fires"),
        "recall": ("float32", "of where the latent fires, the share it points at"),
        "best": ("bool", "whether it is the one shown first for this side"),
    },
    "neighbors": {
        "latent": ("int32", "which latent"),
        "rank": ("int32", "from 0, nearest first"),
        "other": ("int32", "the other latent"),
        "cosine": ("float32", "of the decoder directions, signed"),
    },
    "cooccurrence": {
        "latent": ("int32", "which latent"),
        "sign": ("int8", "which side"),
        "rank": ("int32", "from 0, largest phi first"),
        "other": ("int32", "the other latent"),
        "other_sign": ("int8", "its side"),
        "n_both": ("int64", "counted tokens on which both fire"),
        "phi": ("float32", "correlation of the two as binary variables"),
        "jaccard": ("float32", "tokens of both over tokens of either"),
        "npmi": ("float32", "normalized pointwise mutual information"),
    },
    "windows": {
        "number": ("int32", "identifies the corpus window"),
        "row": ("int32", "token row"),
        "position": ("int32", "position of its first token"),
        "document": ("int32", "number of the document"),
        "token_ids": ("list<int32>", "its tokens"),
        "text": ("string", "their text, each token cut at 64 characters"),
    },
    "vocabulary": {
        "token_id": ("int32", "the token"),
        "text": ("string", "its text, whole"),
        "count": ("int64", "measured tokens of this id"),
    },
    "documents": {
        "document": ("int32", "number of the document"),
        "name": ("string", "what it is called"),
        "tokens": ("int64", "measured tokens in it"),
    },
}
"""Table -> column -> (type, meaning)."""

OPTIONAL: dict[str, dict[str, tuple[str, str]]] = {
    "decoder_map": {
        "latent": ("int32", "a latent that fires"),
        "x": ("float32", "its place on the map of decoder directions, -1 to 1"),
        "y": ("float32", "its place on the map, -1 to 1"),
    },
}
"""Tables that are made after the atlas, by `saelab map`; empty until then."""


def columns_of(table: str) -> dict[str, tuple[str, str]]:
    """Column -> (type, meaning) of a table of either kind."""
    return TABLES[table] if table in TABLES else OPTIONAL[table]


def arrow_type(name: str) -> "pyarrow.DataType":
    """The Arrow type of a name used in `TABLES`."""
    import pyarrow as pa

    if name.startswith("list<"):
        return pa.list_(arrow_type(name[5:-1]))
    named: dict[str, Any] = {"float": pa.float32, "bool": pa.bool_, "string": pa.string}
    return named[name]() if name in named else getattr(pa, name)()


def arrow_schema(table: str) -> "pyarrow.Schema":
    """The Arrow schema of a table."""
    import pyarrow as pa

    return pa.schema([(name, arrow_type(kind)) for name, (kind, _) in columns_of(table).items()])
