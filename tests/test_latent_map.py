"""The map of all latents: who lies where, what is chosen on it, and how much is sent."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from saelab.atlas import MapConfig, make_map
from saelab.errors import ConfigError
from saelab.latent_map import COLORS, LAYOUTS, inside, latent_map, map_points, nearest_on_map
from tests.atlas.cases import built


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    return make_map(built(tmp_path_factory.mktemp("map") / "atlas"), MapConfig(method="pca"))


def some_points(n: int, label: str = "war") -> pd.DataFrame:
    draw = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "latent": np.arange(n, dtype=np.int32),
            "x": draw.integers(-10_000, 10_000, n).astype(np.int16),
            "y": draw.integers(-10_000, 10_000, n).astype(np.int16),
            "density": draw.uniform(1e-5, 0.2, n).astype(np.float32),
            "positive": draw.uniform(0, 1, n).astype(np.float32),
            "kurtosis": draw.uniform(0, 30, n).astype(np.float32),
            "label": [label] * n,
            "kind": ["token"] * n,
        }
    )


def test_points_lie_where_the_tables_say(atlas):
    found = map_points(atlas, LAYOUTS[0]).set_index("latent")
    stored = atlas.arrow("decoder_map").to_pandas().set_index("latent")
    assert list(found.index) == list(stored.index)
    assert np.abs(found[["x", "y"]] - 10_000 * stored[["x", "y"]]).to_numpy().max() <= 0.51
    firing = map_points(atlas, LAYOUTS[1]).set_index("latent")
    rows = atlas.latents("count > 0").set_index("latent")
    assert np.allclose(firing["x"], 1000 * np.log10(rows["density"]), atol=0.51)
    assert np.allclose(firing["y"], 1000 * np.log10(rows["strongest"]), atol=0.51)
    assert np.allclose(firing["positive"], rows["count_pos"] / rows["count"])
    with pytest.raises(ConfigError, match="There is no map"):
        map_points(atlas, "elsewhere")


def test_a_persons_label_is_a_kind_of_its_own(atlas):
    latent = int(map_points(atlas, LAYOUTS[0])["latent"].iloc[0])
    atlas.annotate(latent, label="mine")
    row = map_points(atlas, LAYOUTS[0]).iloc[0]
    assert (row["kind"], row["label"]) == ("human", "mine")


def test_who_is_inside_an_outline_by_hand():
    # An arrow head: the notch at (5, 2) is outside.
    arrow = [(0, 0), (5, 4), (10, 0), (5, 10)]
    x, y = np.array([5, 5, 1, 9, 20]), np.array([2, 6, 1, 1, 5])
    assert inside(arrow, x, y).tolist() == [False, True, True, True, False]
    assert inside(arrow[::-1], x, y).tolist() == inside(arrow, x, y).tolist()
    assert not inside([], x, y).any()


def test_the_nearest_on_the_map_begin_with_the_latent_itself():
    points = some_points(200)
    found = nearest_on_map(points, 17, n=9)
    assert found[0] == 17 and len(set(found)) == 9
    places = points.set_index("latent")[["x", "y"]].astype(float)
    away = ((places - places.loc[17]) ** 2).sum(axis=1)
    assert sorted(away[found]) == sorted(away)[:9]
    assert nearest_on_map(points, 500) == []


def test_sixty_five_thousand_latents_travel_in_about_a_megabyte():
    from plotly.io import to_json

    points = some_points(65_536, "a label of some words that nobody could read at once")
    for color in COLORS:
        sent = to_json(latent_map(points, LAYOUTS[0], color), validate=False)
        assert sent is not None and len(sent) < 1_200_000


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("color", COLORS)
def test_every_map_can_be_drawn_and_shows_every_latent_once(atlas, layout, color):
    points = map_points(atlas, layout)
    figure: Any = latent_map(points, layout, color, [(0, 0), (5, 0), (5, 5)])
    shown = [latent for trace in figure.data for latent in trace.customdata.tolist()]
    assert sorted(shown) == points["latent"].tolist()
    assert figure.layout.selections[0].path == "M0,0L5,0L5,5Z"


def test_a_ring_is_drawn_around_one_latent(atlas):
    points = map_points(atlas, LAYOUTS[0])
    one = points.iloc[3]
    figure: Any = latent_map(points, LAYOUTS[0], COLORS[0], ringed=int(one["latent"]))
    assert (figure.data[-1].x[0], figure.data[-1].y[0]) == (one["x"], one["y"])
    without: Any = latent_map(points, LAYOUTS[0], COLORS[0], ringed=10**6)
    assert len(without.data) == 1


def test_labels_are_shown_as_they_are_written():
    figure: Any = latent_map(some_points(5, "<b>war</b>"), LAYOUTS[0], COLORS[0])
    assert figure.data[0].text[0] == "&lt;b&gt;war&lt;/b&gt;"


def test_nothing_to_show_is_an_empty_map():
    for color in COLORS:
        latent_map(some_points(0), LAYOUTS[1], color)
