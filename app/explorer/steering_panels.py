"""The parts of the steering page: what is pushed, both texts, the next token, the cost."""

import tempfile
from pathlib import Path

import streamlit as st
import torch
from explorer import loaders, pages, panels, style, text
from explorer.pushes import HOW, MOST, Pushes, interventions, written

from saelab.atlas import Atlas
from saelab.errors import ConfigError, SaelabError
from saelab.steering import (
    Direction,
    Scale,
    SideBySide,
    SteeringConfig,
    SteeringReport,
    latent_direction,
    measure_steering,
    save_interventions,
)
from saelab.steering.strength_figure import strength_figure

__all__ = [
    "add_latent",
    "cost",
    "sliders",
    "snippet",
    "strongest",
    "take_away",
    "texts",
    "tokens_after",
]

PROMPTS = ("The", "I think that", "Yesterday we went to", "The most important thing is")
"""Continued together with the reader's own, so that one prompt's luck is not the whole curve."""
STRENGTHS = (0.1, 0.2, 0.4, 0.8)
N_HELD_OUT = 6


def strongest(atlas: Atlas | None, latent: int) -> float:
    """The largest activation on the atlas's text: a natural unit; 10 where it is not known."""
    if atlas is None:
        return 10.0
    found = float(atlas.latents("latent = ?", parameters=[latent])["strongest"].iloc[0])
    return found or 10.0


def sliders(name: str, atlas: Atlas | None, how: str, pushes: Pushes) -> Pushes:
    """A slider per latent; what they say."""
    labels = {} if atlas is None else atlas.labels([latent for latent, _ in pushes])
    found = []
    for latent, value in pushes:
        top = 3.0 if HOW[how] is Scale else 2 * strongest(atlas, latent)
        low, high = min(-top, value), max(top, value)
        link = panels.latent_link(latent, name)
        st.html(
            f'<div class="sl sl-h">{link}'
            f'<span class="sl-small">{text.safe(labels.get(latent, ""))}</span></div>'
        )
        found.append(
            (
                latent,
                st.slider(
                    f"Latent {latent}",
                    float(f"{low:.3g}"),
                    float(f"{high:.3g}"),
                    min(max(value, float(f"{low:.3g}")), float(f"{high:.3g}")),
                    step=float(f"{(high - low) / 100:.1g}"),
                    label_visibility="collapsed",
                    key=f"slider {latent} {value:.4g} {how}",
                ),
            )
        )
    return tuple(found)


def add_latent(atlas: Atlas | None, d_sae: int, pushes: Pushes) -> None:
    """A box to add a latent by number or words, and buttons to take one away."""
    if len(pushes) < MOST:
        st.text_input(
            "Add a latent",
            key="add",
            placeholder="number, label, token or words",
            on_change=lambda: _add(atlas, d_sae, pushes),
        )
    if said := st.session_state.pop("not added", ""):
        st.html(f'<div class="sl sl-small">{text.safe(said)}</div>')
    for latent, _ in pushes if len(pushes) > 1 else ():
        left = tuple(one for one in pushes if one[0] != latent)
        st.button(f"Without {latent}", key=f"without {latent}", on_click=_set, args=(left,))


def _set(pushes: Pushes) -> None:
    st.query_params["push"] = written(pushes)


def _add(atlas: Atlas | None, d_sae: int, pushes: Pushes) -> None:
    asked = st.session_state["add"].strip()
    st.session_state["add"] = ""
    latent = int(asked) if asked.isdecimal() and len(asked) < 9 else None
    if latent is None and atlas is not None and asked:
        hits = atlas.search(asked, limit=1)
        latent = hits[0].latent if hits else None
    if latent is None or latent >= d_sae:
        st.session_state["not added"] = f"No latent was found for {asked[:60]!r}."
        return
    _set((*pushes, (latent, strongest(atlas, latent))))


def texts(found: SideBySide) -> None:
    """Both continuations next to each other, with the words that differ marked."""
    clean, steered = text.differing(found.clean, found.steered)
    left, right = st.columns(2, gap="medium")
    for column, title, inside, perplexity in (
        (left, "As it is", clean, found.perplexity_clean),
        (right, "Steered", steered, found.perplexity_steered),
    ):
        with column:
            panels.heading(title, f"perplexity {perplexity:.3g} to the model as it is")
            quiet = f'<span class="cut">{text.safe(found.prompt)}</span>'
            st.html(f'<div class="sl sl-text sl-running"><bdi>{quiet}{inside}</bdi></div>')


def tokens_after(found: SideBySide) -> None:
    """The next token's distribution before and after."""
    panels.heading(
        "The next token", f"probabilities that changed most; KL {found.kl_prompt:.3g} nats"
    )
    rows = [
        [
            f"<bdi>{text.shown(one.token)}</bdi>",
            f"{one.clean:.1%}",
            f"{one.steered:.1%}",
            text.bar(one.steered - one.clean),
        ]
        for one in found.next_tokens
    ]
    panels.table(["token", "as it is", "steered", "change"], rows, {1, 2})


def cost(name: str, atlas: Atlas | None, how: str, pushes: Pushes, prompt: str) -> None:
    """Effect and cost against strength, with controls; measured when asked."""
    st.subheader("What does it cost?")
    with st.form("price", border=False):
        left, right = st.columns([0.75, 0.25], vertical_alignment="bottom")
        words = left.text_input(
            "Words you want more of", _promoted(atlas, pushes), max_chars=300,
            key=f"words {pushes[0][0]}",
            help="How likely the steered model finds them is the effect.",
        )  # fmt: skip
        asked = right.form_submit_button("Measure effect and cost")
    key = (name, pushes, prompt, words)
    if asked:
        try:
            st.session_state["cost"] = (key, _measured(name, atlas, pushes, prompt, words))
        except SaelabError as error:
            st.html(f'<div class="sl sl-empty">{text.safe(str(error))}</div>')
            return
    held: tuple[object, SteeringReport] | None = st.session_state.get("cost")
    if held is None or held[0] != key:
        other = "" if how == "add" else "Whatever is done above, this adds. "
        st.html(
            f'<div class="sl sl-small">{other}Pushes along this direction at several strengths, '
            "beside a random direction and a random latent pushed as far: an effect that these "
            "have too is an effect of pushing. Runs the model on "
            f"{len(PROMPTS) + 1} prompts for each of "
            f"{3 * len(STRENGTHS) + 1} points.</div>"
        )
        return
    report = held[1]
    st.plotly_chart(style.themed(strength_figure(report)), theme=None, key="curves")
    st.html(f'<div class="sl sl-small">{_read_out(report)}</div>')


def _read_out(report: SteeringReport) -> str:
    best = report.chosen(report.curves[0])
    controls = [report.chosen(one).score for one in report.curves if one.control]
    return (
        f"Overall score of 0 to 2 (concept, fluency and bond with the prompt): "
        f"<b>{best.score:.2f}</b> at {best.strength:g} times the mean |h|, the strength chosen on "
        f"half of the prompts and scored on the other half; at best {max(controls):.2f} for the "
        "controls. Fewer than ten prompts: a first look, not a result."
    )


def _promoted(atlas: Atlas | None, pushes: Pushes) -> str:
    """Words that the first latent promotes, to start from."""
    if atlas is None or not pushes:
        return ""
    latent, value = pushes[0]
    tails = atlas.latent(latent).tails
    effects = tails[0].promoted if value >= 0 else tails[0].suppressed
    tokens = [one.token.strip() for one in effects]
    words = [one for one in tokens if one.isalpha()] or [one for one in tokens if one.isprintable()]
    words = [one for one in words if one and "," not in one]
    return ", ".join(dict.fromkeys(words[:6]))


def _direction(name: str, pushes: Pushes) -> Direction:
    """All that is added, as one direction."""
    sae = loaders.dictionary(name)
    parts = [(latent_direction(sae, latent), value) for latent, value in pushes if value]
    if not parts:
        raise ConfigError("Every strength is zero: there is nothing to measure. Move a slider.")
    vector = torch.stack([value * one.vector for one, value in parts]).sum(0)
    named = " + ".join(one.name for one, _ in parts)
    return Direction(vector=vector, hook=parts[0][0].hook, name=named, made={"method": "steering"})


def _measured(
    name: str, atlas: Atlas | None, pushes: Pushes, prompt: str, words: str
) -> SteeringReport:
    concept = [word.strip() for word in words.split(",") if word.strip()]
    if not concept:
        raise ConfigError("Give at least one word, such as: ship, sea")
    held_out = (
        ["".join(one.tokens) for one in atlas.random_windows(pushes[0][0], n=N_HELD_OUT)]
        if atlas is not None
        else []
    )
    bar = st.progress(0.0, "Measuring …")

    def shown(done: int, total: int, what: str) -> None:
        bar.progress(min(1.0, done / total), f"Measuring {what} …")

    with loaders.model_lock:
        report = measure_steering(
            loaders.model(name),
            [_direction(name, pushes)],
            prompts=[prompt, *PROMPTS],
            concept=concept,
            held_out=held_out or list(PROMPTS),
            sae=loaders.dictionary(name),
            config=SteeringConfig(strengths=STRENGTHS, max_new_tokens=12),
            progress=shown,
        )
    bar.empty()
    return report


def take_away(name: str, how: str, pushes: Pushes) -> None:
    """The recipe as a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.json"
        save_interventions(path, interventions(loaders.dictionary(name), how, pushes))
        st.download_button(
            "Save as a recipe", path.read_bytes(), "recipe.json", "application/json",
            key="recipe", help="A small file that saelab.steering.load_interventions reads",
        )  # fmt: skip


def snippet(name: str, how: str, pushes: Pushes, prompt: str) -> None:
    """The same in Python."""
    kind = HOW[how].__name__
    values = ", ".join(f"{latent}: {value:.4g}" for latent, value in pushes)
    folder = loaders.run(name).folder
    place = folder / "sae" if (folder / "sae").is_dir() else folder
    with st.expander("The same in Python"):
        st.code(
            "import saelab\n"
            f"from saelab.steering import {kind}, side_by_side\n\n"
            f"model = saelab.load_model({loaders.model_source(name)!r})\n"
            f"sae = saelab.SAE.load({str(place)!r})\n"
            f"found = side_by_side(model, [{kind}(sae, {{{values}}})], {prompt!r})\n"
            "print(found.clean)\nprint(found.steered)",
            language="python",
        )
        pages.link("latent", "The page of the first latent", run=name, latent=pushes[0][0])
