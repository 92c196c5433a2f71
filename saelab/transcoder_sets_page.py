"""How good is a set of transcoders? Every layer's numbers, and all layers at once."""

from typing import TYPE_CHECKING

from saelab.plots import template
from saelab.report import Card, Panel, Table, figures_page
from saelab.transcoder_sets import SetQuality, TranscoderSetConfig

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["set_page", "set_table"]


def set_table(quality: SetQuality) -> list[str]:
    """The numbers as lines of text, one a layer and one for all."""
    lines = [f"{'reads':28} {'FVU':>7} {'L0':>6} {'dead':>7}"]
    for hook, one in quality.layers.items():
        lines.append(f"{hook:28} {one.fvu or 0:7.3f} {one.l0 or 0:6.1f} {one.dead_share or 0:7.1%}")
    if (all_of := quality.together) is not None:
        lines.append(
            f"all {len(all_of.layers)} layers replaced: KL {all_of.kl:.3f} nats (zeros "
            f"{all_of.kl_zero:.3f}), CE {all_of.ce_clean:.3f} -> {all_of.ce_replaced:.3f} (zeros "
            f"{all_of.ce_zero:.3f}), recovered {_share(all_of.ce_recovered)}, same top token "
            f"{all_of.top1_agreement:.1%}"
        )
    return lines


def set_page(quality: SetQuality, model: str, config: TranscoderSetConfig) -> str:
    """A self-contained HTML page.

    Args:
        quality: As `measure_set` gives it.
        model: Its name.
        config: How the set was trained.
    """
    fvus = [one.fvu or 0.0 for one in quality.layers.values()]
    cards = [
        Card(name="layers", value=str(len(fvus)), note="MLPs with a transcoder"),
        Card(
            name="FVU",
            value=f"{min(fvus):.3f} to {max(fvus):.3f}",
            note="share of an MLP's output variance that is missed",
        ),
    ]
    rows = [
        (hook, f"{one.fvu or 0:.3f}", f"L0 {one.l0 or 0:.1f}, {one.dead_share or 0:.1%} dead")
        for hook, one in quality.layers.items()
    ]
    tables = [Table(title="FVU by layer", rows=rows)]
    if (all_of := quality.together) is not None:
        cards += [
            Card(
                name="CE recovered",
                value=_share(all_of.ce_recovered),
                note="of what zeros in all these layers cost, with all of them replaced",
            ),
            Card(
                name="same top token",
                value=f"{all_of.top1_agreement:.1%}",
                note="of predictions, with all layers replaced",
            ),
        ]
        tables.append(
            Table(
                title="All layers replaced at once",
                rows=[
                    ("KL", f"{all_of.kl:.3f} nats", "from the untouched model"),
                    ("KL of zeros", f"{all_of.kl_zero:.3f} nats", "the same for zero ablation"),
                    ("CE", f"{all_of.ce_replaced:.3f} nats", f"untouched {all_of.ce_clean:.3f}"),
                    ("CE of zeros", f"{all_of.ce_zero:.3f} nats", "the same for zero ablation"),
                    (
                        "replaced",
                        f"{all_of.replaced_share:.1%}",
                        "of kept positions after position 0; the rest are norm outliers",
                    ),
                ],
            )
        )
    n_tokens = next(iter(quality.layers.values())).n_tokens
    return figures_page(
        eyebrow="Transcoder set",
        title=f"How well do transcoders stand in for the MLPs of {model}?",
        lead=f"{config.d_sae:,} latents a layer, {config.k} per token, {config.tokens:,} training "
        f"tokens{', with a skip connection' if config.skip else ''}.",
        warnings=[],
        cards=cards,
        panels=[
            Panel(
                title="Which layers are hard?",
                caption=f"FVU of every layer on {n_tokens:,} held-out tokens: 0 is perfect, 1 is "
                "as good as the mean.",
                figure=_bars(list(quality.layers), fvus),
            )
        ],
        tables=tables,
        notes=[
            "Reconstruction is measured on the untouched model's activations; the replaced model's "
            "transcoders read what the layers before them made.",
        ],
    )


def _bars(hooks: list[str], fvus: list[float]) -> "Figure":
    import plotly.graph_objects as go

    names = [hook.split(".")[1] for hook in hooks]
    figure = go.Figure(
        go.Bar(x=names, y=fvus, hovertemplate="layer %{x}<br>FVU %{y:.3f}<extra></extra>")
    )
    figure.update_xaxes(title="layer", type="category")
    figure.update_yaxes(title="FVU (share of variance missed)", rangemode="tozero")
    figure.update_layout(template=template(), showlegend=False)
    return figure


def _share(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.1%}"
