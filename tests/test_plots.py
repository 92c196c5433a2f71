import pytest

from saelab import plots
from saelab.errors import DataError


def drawn(figure):
    """The traces as plain dictionaries."""
    return figure.to_plotly_json()["data"]


def axis_titles(figure):
    axes = [value for key, value in figure.to_plotly_json()["layout"].items() if "axis" in key]
    return [axis["title"]["text"] for axis in axes if axis.get("title")]


def test_the_density_figure_shows_every_count_at_its_place():
    figure = plots.density_figure([-2.0, -1.0, 0.0], [3, 5], 100)
    assert list(drawn(figure)[0]["y"]) == [3, 5]
    assert list(drawn(figure)[0]["x"]) == [-1.5, -0.5]
    assert list(figure.to_plotly_json()["layout"]["xaxis"]["ticktext"]) == [
        "1 in 100",
        "1 in 10",
        "every token",
    ]
    assert axis_titles(figure) == ["density, share of 100 tokens (log scale)", "latents"]


def test_a_count_histogram_loses_nothing_when_it_groups():
    figure = plots.count_histogram([1] * 1000, unit="active latents", weight="tokens", mean=499.5)
    assert sum(drawn(figure)[0]["y"]) == 1000
    assert len(drawn(figure)[0]["y"]) <= 80
    assert figure.to_plotly_json()["layout"]["annotations"][0]["text"] == "mean 499.5"
    assert axis_titles(figure) == ["active latents", "tokens"]


def test_the_neighbor_figure_colors_the_signs_and_keeps_both_ends():
    figure = plots.neighbor_figure([-1.0, -0.9, 0.0, 1.0], n_bins=4)
    assert list(drawn(figure)[0]["y"]) == [2, 0, 1, 1]
    negative, positive = [plots.NEGATIVE] * 2, [plots.POSITIVE] * 2
    assert list(drawn(figure)[0]["marker"]["color"]) == negative + positive


def test_training_curves_have_one_panel_per_recorded_number_against_tokens():
    rows = [
        {"step": step, "tokens": 100 * step, "loss": 1 / step, "fvu": 0.5, "l0": None}
        for step in (1, 2, 3)
    ]
    rows[1]["dead_share"] = 0.25
    figure = plots.training_curves(rows)
    assert [list(trace["x"]) for trace in drawn(figure)] == [
        [100, 200, 300],
        [100, 200, 300],
        [200],
    ]
    assert list(drawn(figure)[2]["y"]) == [0.25]
    assert set(axis_titles(figure)) == {
        "loss",
        "FVU (share of variance missed)",
        "dead share of latents",
        "training tokens",
    }


def test_training_curves_of_nothing_say_what_is_missing():
    with pytest.raises(DataError, match=r"None of the 1 metrics rows has loss, fvu, l0"):
        plots.training_curves([{"tokens": 3}])


def test_the_signed_scale_goes_from_blue_through_the_ground_to_orange():
    places = [place for place, _ in plots.SIGNED_SCALE]
    assert places == [0.0, 0.25, 0.5, 0.75, 1.0]
    low, high = plots.SIGNED_SCALE[0][1], plots.SIGNED_SCALE[-1][1]
    assert int(str(low)[5:7], 16) > int(str(low)[1:3], 16), "the negative end is blue"
    assert int(str(high)[1:3], 16) > int(str(high)[5:7], 16), "the positive end is orange"


def test_light_and_dark_templates_differ_in_ink_alone_not_in_structure():
    light, dark = plots.template(), plots.template(dark=True)
    assert light["layout"].keys() == dark["layout"].keys()
    assert light["layout"]["font"]["color"] != dark["layout"]["font"]["color"]
