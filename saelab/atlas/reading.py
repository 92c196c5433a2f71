"""From the rows of the tables to the card of one latent."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, final

from saelab.atlas.cards import LatentCard, TailCard
from saelab.atlas.records import (
    Annotation,
    Cooccurring,
    Example,
    Histogram,
    Interval,
    Label,
    Neighbor,
    ProfileEntry,
    TokenEffect,
)
from saelab.atlas.tables import AtlasTables

__all__ = ["CardReader"]

Rows = list[dict[str, Any]]


@final
@dataclass(frozen=True, eq=False)
class CardReader:
    """Reads cards.

    Everything about one latent is a dozen short queries; each prunes by the latent's number.
    """

    tables: AtlasTables
    """The tables."""
    about: Mapping[str, Any]
    """What the atlas is about."""
    strings: Callable[[Sequence[int]], list[str]]
    """Text of token ids."""
    documents: Callable[[int], str]
    """Name of a document."""
    labels: Callable[[Sequence[int]], dict[int, str]]
    """What latents are called."""

    def card(
        self, latent: int, annotations: tuple[Annotation, ...], explanations: Rows
    ) -> LatentCard:
        """The card of one latent."""
        (row,) = self._of("latents", latent)
        labels = self._labels(latent, annotations, explanations)
        neighbors = self._of("neighbors", latent, "rank")
        together = self._of("cooccurrence", latent, "sign DESC, rank")
        shape = self._of("logit_histograms", latent)
        names = self.labels([latent, *(one["other"] for one in (*neighbors, *together))])
        parts = _Parts(
            logits=self._of("logits", latent, "side DESC, rank"),
            labels=labels,
            examples=self.examples(latent),
            near_misses=self.near_misses(latent),
            profile=self._profile(latent),
            cooccurring=_by_sign(together),
            names=names,
        )
        tails = self._of("tails", latent, "sign DESC")
        return LatentCard(
            latent=latent,
            label=names[latent],
            signed=bool(self.about["signed"]),
            n_tokens=self.about["n_tokens"],
            count=row["count"],
            density=row["density"],
            max=row["strongest"],
            bias=row["bias"],
            enc_norm=row["enc_norm"],
            dec_norm=row["dec_norm"],
            enc_dec_cosine=row["enc_dec_cosine"],
            tails=tuple(self._tail(row, tail, parts) for tail in tails),
            effects_missing=str(self.about["effects_missing"]),
            logit_histogram=_histogram(shape[0]) if shape else None,
            logit_kurtosis=row["logit_kurtosis"],
            neighbors=tuple(
                Neighbor(latent=one["other"], cosine=one["cosine"], label=names[one["other"]])
                for one in neighbors
            ),
            heads=tuple(row["heads"] or ()),
            annotations=annotations,
            labels=labels,
        )

    def examples(self, latent: int) -> dict[int, tuple[Example, ...]]:
        """The examples by sign: the strongest by rank, then the draws, strongest first."""
        rows = self._of("examples", latent, "top_rank NULLS LAST, strength DESC, number")
        measured = {(r["sign"], r["number"]): r for r in self._of("loss_effects", latent)}
        return {
            sign: tuple(
                self._measured_example(row, measured.get((sign, row["number"]), {})) for row in mine
            )
            for sign, mine in _by_sign(rows).items()
        }

    def random_windows(self, latent: int, sign: int, n: int, seed: int) -> list[Example]:
        """Random stretches of the corpus in which one side of a latent never fires."""
        rows = self.tables.rows(
            "SELECT * FROM windows WHERE number NOT IN (SELECT unnest(fired_windows) FROM tails "
            "WHERE latent = ? AND sign = ?) ORDER BY hash(number * 1000003 + ?), number LIMIT ?",
            [latent, sign, seed, n],
        )
        return [
            Example(
                latent=latent, sign=sign, number=row["number"], token_ids=tuple(row["token_ids"]),
                tokens=tuple(self.strings(row["token_ids"])),
                activations=(0.0,) * len(row["token_ids"]), peak=0, strength=0.0, row=row["row"],
                position=row["position"], document=self.documents(row["document"]),
                cut=(True, True),
            )
            for row in rows
        ]  # fmt: skip

    def near_misses(self, latent: int) -> dict[int, tuple[Example, ...]]:
        """By sign, contexts of its own tokens in which it stays silent."""
        found = _by_sign(self._of("near_misses", latent, "number"))
        return {
            sign: tuple(self._example(row, strength=0.0) for row in mine)
            for sign, mine in found.items()
        }

    def _of(self, table: str, latent: int, order: str = "latent") -> Rows:
        query = f"SELECT * FROM {table} WHERE latent = ? ORDER BY {order}"
        return self.tables.rows(query, [latent])

    def _example(self, row: Mapping[str, Any], **more: Any) -> Example:
        return Example(
            latent=row["latent"],
            sign=row["sign"],
            number=row["number"],
            token_ids=tuple(row["token_ids"]),
            tokens=tuple(self.strings(row["token_ids"])),
            activations=tuple(row["activations"]),
            peak=row["peak"],
            row=row["row"],
            position=row["position"],
            document=self.documents(row["document"]),
            cut=(row["cut_before"], row["cut_after"]),
            **more,
        )

    def _measured_example(self, row: Mapping[str, Any], effects: Mapping[str, Any]) -> Example:
        strata = ("top_rank", "interval", "interval_rank", "quantile", "quantile_rank")
        return self._example(
            row,
            strength=row["strength"],
            direct=_effects(effects.get("direct")),
            ablation=_effects(effects.get("ablation")),
            **{name: row[name] for name in strata},
        )

    def _tail(self, row: Mapping[str, Any], tail: Mapping[str, Any], parts: "_Parts") -> TailCard:
        sign = tail["sign"]
        mine = tuple(one for one in parts.labels if one.sign == sign)
        documents = zip(tail["top_documents"], tail["top_document_counts"], strict=True)
        return TailCard(
            sign=sign,
            count=tail["count"],
            density=tail["density"],
            max=tail["max"],
            mean=tail["mean"],
            label=mine[0].text if mine else row["auto_label_pos" if sign > 0 else "auto_label_neg"],
            histogram=Histogram(low=0.0, high=tail["max"], counts=tuple(tail["histogram"])),
            intervals=_intervals(tail),
            quantile_edges=tuple(tail["quantile_edges"]),
            examples=parts.examples.get(sign, ()),
            near_misses=parts.near_misses.get(sign, ()),
            profile=parts.profile.get(sign, ()),
            cooccurring=tuple(
                _cooccurring(one, parts.names) for one in parts.cooccurring.get(sign, ())
            ),
            positions=self._positions(tail["positions"]),
            n_documents=tail["n_documents"],
            top_documents=tuple((self.documents(one), count) for one, count in documents),
            promoted=self._token_effects(parts.logits, sign, sign),
            suppressed=self._token_effects(parts.logits, -sign, sign),
            labels=mine,
        )

    def _token_effects(self, logits: Rows, side: int, sign: int) -> tuple[TokenEffect, ...]:
        rows = [row for row in logits if row["side"] == side]
        texts = self.strings([row["token_id"] for row in rows])
        return tuple(
            TokenEffect(token_id=row["token_id"], token=text, effect=sign * row["effect"])
            for row, text in zip(rows, texts, strict=True)
        )

    def _profile(self, latent: int) -> dict[int, tuple[ProfileEntry, ...]]:
        families = "array_position(['token', 'bigram', 'trigram', 'next'], family)"
        rows = self._of("profiles", latent, f"{families}, count_rank NULLS LAST, enriched_rank")
        names = [field.name for field in fields(ProfileEntry) if field.name != "token_ids"]
        return {
            sign: tuple(
                ProfileEntry(
                    token_ids=tuple(row["token_ids"]), **{name: row[name] for name in names}
                )
                for row in mine
            )
            for sign, mine in _by_sign(rows).items()
        }

    def _positions(self, counts: Sequence[int]) -> tuple[float, ...]:
        measured = self.about["positions"]
        return tuple(
            count / total if total else 0.0 for count, total in zip(counts, measured, strict=True)
        )

    def _labels(
        self, latent: int, annotations: tuple[Annotation, ...], explanations: Rows
    ) -> tuple[Label, ...]:
        """People's first, then language models' by score, then the automatic ones, best first."""
        human = [
            Label(
                latent=latent, sign=one.sign, kind="human", text=one.label, score=None,
                score_name="", source=one.author or "a person",
            )
            for one in annotations
            if one.label
        ]  # fmt: skip
        model = [
            Label(
                latent=latent, sign=row["sign"], kind="llm", text=row["text"], score=row["score"],
                score_name=row["score_name"] or "", source=row["model"],
            )
            for row in explanations
        ]  # fmt: skip
        rows = self._of("labels", latent, "sign DESC, best DESC, kind = 'output', score DESC")
        automatic = [
            Label(**{name: value for name, value in row.items() if name != "best"}) for row in rows
        ]
        return (*human, *model, *automatic)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class _Parts:
    """What was read about a latent, for both of its sides."""

    logits: Rows
    labels: tuple[Label, ...]
    examples: dict[int, tuple[Example, ...]]
    near_misses: dict[int, tuple[Example, ...]]
    profile: dict[int, tuple[ProfileEntry, ...]]
    cooccurring: dict[int, Rows]
    names: dict[int, str]


def _by_sign(rows: Rows) -> dict[int, Rows]:
    found: dict[int, Rows] = defaultdict(list)
    for row in rows:
        found[row["sign"]].append(row)
    return found


def _cooccurring(row: Mapping[str, Any], names: Mapping[int, str]) -> Cooccurring:
    return Cooccurring(
        latent=row["other"],
        sign=row["other_sign"],
        both=row["n_both"],
        phi=row["phi"],
        jaccard=row["jaccard"],
        npmi=row["npmi"],
        label=names[row["other"]],
    )


def _histogram(row: Mapping[str, Any]) -> Histogram:
    return Histogram(low=row["low"], high=row["high"], counts=tuple(row["counts"]))


def _intervals(tail: Mapping[str, Any]) -> tuple[Interval, ...]:
    if not tail["count"]:
        return ()
    n, top = len(tail["intervals"]), tail["max"]
    return tuple(
        Interval(low=top * i / n, high=top * (i + 1) / n, count=count, share=count / tail["count"])
        for i, count in enumerate(tail["intervals"])
    )


def _effects(values: Sequence[float | None] | None) -> tuple[float | None, ...] | None:
    return None if values is None else tuple(values)
