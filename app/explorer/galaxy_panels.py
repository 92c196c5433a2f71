"""What shape is the whole cloud of directions? Spectrum, dimensions, how close pairs come."""

from typing import Any

import streamlit as st
from explorer import exports, panels

from saelab.geometry import AgainstNull
from saelab.geometry.figures import spectrum_figure
from saelab.geometry_survey import GeometrySurvey

__all__ = ["show"]

DIMENSIONS = {
    "n_99": "directions that hold 99% of the spread",
    "effective_rank": "by the entropy of singular values",
    "spectral_rank": "by the entropy of variances",
    "participation": "by the inverse participation ratio",
}


def show(name: str, survey: GeometrySurvey) -> None:  # noqa: ARG001 - what every part is given
    """The part of the page."""
    cloud = survey.galaxy
    low, high = cloud.law.ranks
    left, right = st.columns([0.58, 0.42], gap="large")
    with left:
        panels.heading("Is it round?", "a ball would be flat")
        figure = spectrum_figure(cloud)
        figure.update_layout(
            height=430, legend={"x": 0.02, "y": 0.02, "yanchor": "bottom", "xanchor": "left"}
        )
        figure.update_xaxes(dtick=1)
        figure.update_yaxes(dtick=1, exponentformat="power")
        exports.chart(figure, "spectrum", lambda: _rows(survey), key="spectrum")
        st.html(
            f'<div class="sl sl-small">A ball has a slope of 0. The line explains '
            f"{cloud.law.r2:.1%} of ranks {low} to {high} and says nothing about others.</div>"
        )
    with right:
        panels.stats(
            [
                (
                    f"steepness over ranks {low} to {high} "
                    f"(random directions {cloud.steepness.mean:.3f})",
                    f"{cloud.steepness.value:.3f}",
                ),
                (
                    "clustering entropy (Gaussian of the same covariance "
                    f"{cloud.clustering.mean:.2f} ± {cloud.clustering.spread:.2f})",
                    f"{cloud.clustering.value:.2f} nats",
                ),
            ]
        )
        panels.heading("How many dimensions does it use?", f"of {cloud.d}; four definitions")
        panels.table(
            ["definition", "directions", "random ones"],
            [
                [what, f"{getattr(cloud.dimensions, key):,.0f}",
                 f"{getattr(cloud.null_dimensions, key):,.0f}"]
                for key, what in DIMENSIONS.items()
            ],
            {1, 2},
        )  # fmt: skip
        panels.heading("How close do two come?", "beside random directions")
        panels.table(
            ["number", "found", "null", "excess"],
            [[what, *_cells(one)] for what, one in survey.pairs.items()],
            {1, 2, 3},
        )


def _cells(one: AgainstNull) -> list[str]:
    return [f"{one.value:.3f}", f"{one.mean:.3f} ± {one.spread:.3f}", f"{one.excess:+.3f}"]


def _rows(survey: GeometrySurvey) -> list[dict[str, Any]]:
    cloud = survey.galaxy
    pairs = zip(cloud.spectrum, cloud.null_spectrum, strict=True)
    return [
        {"rank": rank, "variance": own, "variance_of_random_directions": null}
        for rank, (own, null) in enumerate(pairs, start=1)
    ]
