"""A latent's card in a notebook: what it shows, and that nothing in it acts."""

import re
from dataclasses import replace
from typing import Any

import pytest

from saelab.atlas import Example, Histogram, LatentCard, TailCard, TokenEffect
from saelab.atlas.inline import card_html, tokens_html
from tests.atlas.cases import built

HOSTILE = "<img src=x onerror=alert(1)>\u202e\0\n"


def tail(sign: int, tokens: tuple[str, ...], values: tuple[float, ...]) -> TailCard:
    example = Example(
        latent=7,
        sign=sign,
        number=0,
        token_ids=tuple(range(len(tokens))),
        tokens=tokens,
        activations=values,
        peak=1,
        strength=max(map(abs, values)),
        row=0,
        position=1,
        document="a text",
        cut=(True, False),
        top_rank=0,
    )
    names: dict[str, Any] = dict.fromkeys(TailCard.__dataclass_fields__, ())
    counted: dict[str, Any] = {
        "label": "",
        "n_documents": 1,
        "count": 3,
        "density": 0.1,
        "max": 4.0,
        "mean": 2.0,
    }
    effect = TokenEffect(token_id=3, token=HOSTILE, effect=-0.5)
    known: dict[str, Any] = {
        "sign": sign,
        "examples": (example,),
        "promoted": (effect,),
        "suppressed": (effect,),
        "histogram": Histogram(low=0.0, high=4.0, counts=(1, 2)),
    }
    chosen = {k: v for k, v in (names | counted | known).items() if k in names}
    return TailCard(**chosen)


def card(*tails: TailCard, **settings) -> LatentCard:
    names: dict[str, Any] = dict.fromkeys(LatentCard.__dataclass_fields__, ())
    known: dict[str, Any] = {
        "latent": 7,
        "label": HOSTILE,
        "signed": len(tails) > 1,
        "n_tokens": 30,
        "count": 3,
        "density": 0.1,
        "max": 4.0,
        "bias": 0.0,
        "enc_norm": 1.0,
        "dec_norm": 1.0,
        "enc_dec_cosine": None,
        "effects_missing": "",
        "logit_histogram": None,
        "logit_kurtosis": None,
        "tails": tails,
    }
    return LatentCard(**(names | known | settings))


def test_the_shade_is_linear_in_the_activation_and_says_its_sign():
    html = tokens_html(("a", "b", "c", "d"), (4.0, 2.0, 0.0, -4.0), 4.0)
    shades = re.findall(r"rgba\((\d+),\d+,\d+,([\d.]+)\)", html)
    assert [(color, float(alpha)) for color, alpha in shades] == [
        ("217", pytest.approx(0.62)),
        ("217", pytest.approx(0.31)),
        ("44", pytest.approx(0.62)),
    ]
    assert "<bdi>c</bdi>" in html and html.count("<span ") == 4


def test_both_sides_are_shown_and_nothing_hostile_acts():
    shown = card_html(card(tail(1, ("x", HOSTILE), (0.0, 4.0)), tail(-1, ("y", "z"), (0.0, -3.0))))
    assert "Above zero" in shown and "Below zero" in shown and "…<span" in shown
    assert "<img" not in shown and "\u202e" not in shown and "\0" not in shown
    assert "&lt;img src=x" in shown and "⟨202E⟩" in shown
    assert "1 in 10 of 30 tokens, at most 4" in shown and "-0.50" in shown


def test_a_latent_that_never_fired_says_so():
    silent = card(replace(tail(1, ("x", "y"), (0.0, 1.0)), count=0), count=0, density=0.0)
    assert "fired on none of 30 tokens" in card_html(silent)


def test_an_opened_atlas_shows_its_latents_in_a_notebook(tmp_path):
    atlas = built(tmp_path / "atlas")
    found = atlas.latents(order_by="density DESC", limit=1)
    one = atlas.latent(int(found["latent"].iat[0]))
    shown = one._repr_html_()
    assert f"Latent {one.latent}" in shown and "background:rgba(" in shown
