"""Figures hold what was found and its null; the program prints them for a trained run."""

import json

import pytest
import torch

from probes import geometry as probe
from saelab import SAE, ActivationStore
from saelab.activation_functions import AbsTopK, TopK
from saelab.errors import DataError
from saelab.geometry import AgainstNull, dark_matter, error_scaling, galaxy, match
from saelab.geometry.figures import (
    against_null_figure,
    dark_matter_figure,
    error_scaling_figure,
    matching_figure,
    spectrum_figure,
)
from saelab.planted import PlantedAtoms


def traces(figure):
    return figure.to_plotly_json()["data"]


def test_a_number_is_drawn_with_every_draw_of_its_null():
    one = AgainstNull(value=0.5, draws=(0.1, 0.2), null="shuffled")
    null, own = traces(against_null_figure({"AMI": one}, "AMI"))
    assert list(null["x"]) == [0.1, 0.2]
    assert list(own["x"]) == [0.5]
    with pytest.raises(DataError, match="no number"):
        against_null_figure({}, "AMI")


def test_the_fitted_line_passes_through_the_middle_of_its_range():
    found = galaxy(torch.randn(300, 40) * torch.arange(1, 41) ** -0.5, n_null=2, ranks=(3, 30))
    random, own, line = traces(spectrum_figure(found))
    assert list(own["y"]) == pytest.approx(list(found.spectrum), rel=1e-6)
    assert len(random["x"]) == 40
    assert list(line["x"]) == [3, 30]
    assert line["y"][1] < own["y"][2] and line["y"][0] > own["y"][29]


def test_matched_latents_are_all_in_the_histogram():
    a = torch.randn(30, 8)
    (bars,) = traces(matching_figure(match(a, a)))
    assert sum(bars["y"]) == 30
    assert bars["y"][-1] == 30


def test_error_figures_hold_both_parts_and_a_point_a_token():
    x = PlantedAtoms(d=12, n_atoms=20, offset=0.0).sample(300, seed=0)
    saes = [SAE(12, n, TopK(3)) for n in (20, 40)]
    found = dark_matter(saes[0], x[:200], x[200:])
    linear, nonlinear = traces(dark_matter_figure({"run": found}))
    assert linear["y"][0] + nonlinear["y"][0] == pytest.approx(found.fvu)
    assert len(traces(error_scaling_figure(error_scaling(saes, x)))[1]["x"]) == 300


@pytest.mark.parametrize("activation", [TopK(4), AbsTopK(4)], ids=str)
def test_everything_is_measured_of_a_dictionary_signed_or_not(activation):
    x = PlantedAtoms(d=16, n_atoms=40, signed=True).sample(1200, seed=0)
    sae = SAE(16, 40, activation)
    store = ActivationStore.from_tensor(x)
    with probe.ProgressBar("Measuring") as bar:
        found, directions = probe.measure(
            sae, store, max_tokens=1200, chunk_tokens=1, lobes=[2], affinity="phi", n_null=2,
            bar=bar,
        )  # fmt: skip
    scales = {scale for scale, _, _ in found.rows()}
    assert scales == {"crystals", "lobes", "galaxy", "pairs", "error"}
    assert len(probe.table(found)) > 15
    html = probe.page(found, sae, directions, "<b>run")
    assert "<b>run" not in html
    assert "Every number beside its null" in html
    json.dumps([one.to_json() for _, _, one in found.rows()], allow_nan=False)
    both = {"<b>first": found, "second": found}
    lines = probe.table_of_runs(both)
    assert len(lines) == 1 + 2 * (len(found.rows()) + 4)
    assert sum("<b>first" in line for line in lines) == sum("second" in line for line in lines)
    assert "<b>first" not in probe.page_of_runs(both)


def test_the_program_has_help(capsys):
    with pytest.raises(SystemExit) as end:
        probe.main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "usage: python -m probes.geometry" in said
    assert "Li et al. 2024" in said


def test_a_run_that_is_not_there_is_one_line(capsys, tmp_path):
    assert probe.main([str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err
    assert probe.main([]) == probe.main(["a", "--runs", "b"]) == 2
    assert capsys.readouterr().err.count("Name one run, or several after --runs") == 2
