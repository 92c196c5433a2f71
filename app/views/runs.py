"""Which dictionary should I trust? Every run, what it reached, and how it got there."""

import streamlit as st
from explorer import loaders, pages, panels, style, text

from saelab.run_figures import runs_figure, training_figure
from saelab.run_summaries import RunSummary

st.title("Runs")
found = loaders.runs()
if not found:
    panels.empty(
        f"There are no runs in {loaders.root()}.",
        "A run is a dictionary in training or trained; this makes a first one in ten minutes.",
        "saelab quickstart --out runs/quickstart",
    )
    st.stop()

corpora = sorted({one.corpus for one in found.values() if one.corpus})
panels.lead(
    f"{len(found)} {'run' if len(found) == 1 else 'runs'} under "
    f"<b>{text.safe(loaders.root().name)}</b>, trained on "
    f"{text.safe(' and '.join(corpora) or 'unnamed text')}. Numbers are on held-out text where a "
    "run was evaluated, else on its last training batch."
)


def row(one: RunSummary) -> dict[str, object]:
    """A line of the table."""
    return {
        "run": one.name,
        "family": one.family,
        "latents": one.d_sae,
        "L0": one.measured("l0"),
        "FVU": one.measured("fvu"),
        "CE recovered": one.evaluation.get("ce_recovered_zero"),
        "dead": one.measured("dead_share"),
        "trained": min(1.0, one.tokens / one.budget) if one.budget else None,
        "atlas": one.has_atlas,
        "hook point": one.hook,
    }


left, right = st.columns([0.56, 0.44], gap="large")
with left:
    chosen = st.dataframe(
        [row(one) for one in found.values()],
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        key="runs",
        column_config={
            "L0": st.column_config.NumberColumn(format="%.1f", help="latents active per token"),
            "FVU": st.column_config.NumberColumn(
                format="%.3f", help="share of variance missed; 0 is perfect"
            ),
            "CE recovered": st.column_config.NumberColumn(
                format="%.3f", help="share of the loss recovered against zeroing the hook point"
            ),
            "dead": st.column_config.NumberColumn(format="percent"),
            "trained": st.column_config.ProgressColumn(format="percent", min_value=0, max_value=1),
        },
    )
    picked = chosen["selection"]["rows"]
    name = list(found)[picked[0]] if picked else st.query_params.get("run", next(iter(found)))
with right:
    st.plotly_chart(style.themed(runs_figure(list(found.values()))), theme=None, key="pareto")

one = found[name] if name in found else next(iter(found.values()))
st.subheader(f"How {one.name} was trained")
metrics = one.metrics()
if metrics:
    st.plotly_chart(style.themed(training_figure(metrics, one.events())), theme=None, key="curves")
else:
    panels.empty("No training curves.", "This dictionary came without the log of its training.")
for event in one.events():
    st.html(
        f'<div class="sl sl-small">step {int(event["step"]):,}: {text.safe(event["message"])}</div>'
    )
if one.has_atlas:
    pages.link("latents", f"Browse the latents of {one.name}", run=one.name)
