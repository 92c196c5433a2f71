"""Is the map of decoder directions made as asked, kept, and the same however often?"""

import math
import sys

import pytest
import torch

from saelab.activation_functions import TopK
from saelab.atlas import Atlas, MapConfig, make_map
from saelab.atlas import decoder_map as mapping
from saelab.cli import main
from saelab.errors import CheckpointError, ConfigError
from tests.atlas.cases import built, dictionary, signed

PCA = MapConfig(method="pca")


@pytest.fixture
def atlas(tmp_path):
    return built(tmp_path / "atlas")


def points(atlas):
    return {row["latent"]: (row["x"], row["y"]) for row in atlas.arrow("decoder_map").to_pylist()}


def test_an_atlas_without_a_map_opens_and_has_an_empty_table(atlas):
    assert atlas.decoder_map is None
    assert atlas.sql("SELECT count(*) AS n FROM decoder_map")["n"].tolist() == [0]
    with pytest.raises(ConfigError, match="no table 'decoder_map'"):
        atlas.arrow("decoder_map")


def test_principal_components_of_planted_directions_are_found(tmp_path):
    # Directions in a plane of the 32 dimensions, so the map is that plane, turned.
    sae = dictionary(TopK(4))
    angles = torch.linspace(0, 3, sae.d_sae)
    plane = torch.linalg.qr(torch.randn(32, 2, generator=torch.Generator().manual_seed(5)))[0]
    flat = torch.stack([angles.cos(), angles.sin()], 1) @ plane.T
    with torch.no_grad():
        sae.W_dec.copy_(flat)
    made = make_map(built(tmp_path, sae), PCA)
    assert made.decoder_map is not None
    assert made.decoder_map["explained"] == pytest.approx(1, abs=1e-4)
    found = points(made)
    assert sorted(found) == made.latents("count > 0")["latent"].tolist()
    scale = None
    for one in list(found)[:6]:
        for other in list(found)[6:12]:
            true = float((flat[one] - flat[other]).norm())
            ratio = math.dist(found[one], found[other]) / true
            scale = scale or ratio
            assert ratio == pytest.approx(scale, rel=0.01)
    assert max(abs(v) for point in found.values() for v in point) == pytest.approx(1, abs=1e-5)


def test_the_map_does_not_depend_on_which_way_a_latent_points(tmp_path):
    sae, turned = signed(), signed()
    with torch.no_grad():
        for latent in (3, 7, 8, 21):
            turned.W_dec[latent] *= -1
            turned.W_enc[:, latent] *= -1
            turned.b_enc[latent] *= -1
    one, other = (make_map(built(tmp_path / n, s), PCA) for n, s in (("a", sae), ("b", turned)))
    uneven = one.latents("count > 0 AND count_pos <> count_neg")["latent"].tolist()
    assert {3, 7, 8, 21} & set(uneven)
    assert len(uneven) == one.count("count > 0"), "a tie would be turned by its maximum"
    for latent, point in points(one).items():
        assert points(other)[latent] == pytest.approx(point, abs=2e-3)


def test_a_map_is_kept_until_another_is_asked_for(atlas):
    made = make_map(atlas, PCA)
    before = (made.folder / "decoder_map.parquet").stat().st_mtime_ns
    again = make_map(made, PCA)
    assert (again.folder / "decoder_map.parquet").stat().st_mtime_ns == before
    assert points(Atlas.open(atlas.folder, verify=True)) == points(made)
    assert len(made.sql("SELECT x, y FROM decoder_map WHERE latent < 10")) > 0
    (made.folder / "decoder_map.parquet").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"decoder_map\.parquet"):
        Atlas.open(atlas.folder)


def test_neighbors_found_before_an_interruption_are_not_found_again(atlas, monkeypatch):
    monkeypatch.setattr(mapping, "LATENTS_AT_ONCE", 8)
    _, unit = mapping._directions(atlas)
    whole = mapping._neighbors(unit, 3, atlas, None)
    parts = sorted((atlas.folder / "work" / "map").iterdir())
    assert len(parts) == math.ceil(len(unit) / 8)
    parts[1].write_bytes(b"half of it")
    parts[2].unlink()
    kept = parts[0].stat().st_mtime_ns
    again = mapping._neighbors(unit, 3, atlas, None)
    assert parts[0].stat().st_mtime_ns == kept
    for one, other in zip(whole, again, strict=True):
        assert torch.equal(one, other)
    cosine = (unit @ unit.T).abs().fill_diagonal_(-1)  # signed: an opposite direction is near
    assert torch.allclose(again[1], cosine.topk(3, dim=1).values, atol=1e-5)


def test_a_umap_without_its_package_says_how_to_get_it(atlas, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ConfigError, match=r"pip install 'saelab\[map\]'.*--method pca"):
        make_map(atlas, MapConfig())


@pytest.mark.slow  # the first import compiles for a minute
def test_a_umap_keeps_planted_clusters_together_and_is_the_same_again(tmp_path):
    pytest.importorskip("umap")
    sae = dictionary(TopK(4))
    generator = torch.Generator().manual_seed(2)
    centers = torch.randn(4, 32, generator=generator)
    cluster = torch.arange(sae.d_sae) % 4
    with torch.no_grad():
        sae.W_dec.copy_(centers[cluster] + 0.2 * torch.randn(sae.d_sae, 32, generator=generator))
    config = MapConfig(n_neighbors=5)
    one = make_map(built(tmp_path / "a", sae), config)
    other = make_map(built(tmp_path / "b", sae), config)
    assert points(one) == points(other)
    found = points(one)
    for latent, point in found.items():
        near = min((x for x in found if x != latent), key=lambda x: math.dist(point, found[x]))
        assert cluster[near] == cluster[latent]
    assert one.decoder_map is not None and "umap-learn" in one.decoder_map["versions"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_neighbors": 1}, "at least 2"),
        ({"min_dist": 2.0}, "from 0 to 1"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        MapConfig(**settings)


def test_the_verb_makes_it_and_says_how_much_it_shows(atlas, capsys):
    assert main(["map", str(atlas.folder.parent), "--method", "pca"]) == 0
    shown = capsys.readouterr().out
    assert "PCA of the unit decoder directions" in shown and "of their variance" in shown
    assert Atlas.open(atlas.folder).decoder_map is not None
