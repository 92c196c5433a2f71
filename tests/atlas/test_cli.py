"""Does `saelab atlas` do what its help says?"""

import pytest

from saelab.activation_functions import AbsTopK
from saelab.atlas import Atlas
from saelab.cli import main
from saelab.sae import SAE


@pytest.fixture
def run(tmp_path):
    sae = SAE(32, 48, AbsTopK(4), hook="blocks.1.hook_resid_post", seed=1)
    sae.save(tmp_path / "run" / "sae")
    return tmp_path / "run"


def words(run, model, text, *more):
    fixed = ("--length", "24", "--max-tokens", "1200", "--outlier-factor", "none")
    return ["atlas", str(run), "--model", str(model), "--text", str(text), *fixed, *more]


def test_an_atlas_is_built_in_the_run_folder_and_said_to_be(
    run, tiny_model_folder, tiny_text_file, capsys
):
    assert main(words(run, tiny_model_folder, tiny_text_file)) == 0
    shown = capsys.readouterr().out
    atlas = Atlas.open(run / "atlas")
    assert f"of 48 latents fire on {atlas.n_tokens:,} tokens" in shown
    assert atlas.about["config"]["max_tokens"] == 1200
    assert atlas.about["n_rows"] == 50


def test_other_settings_need_rebuild(run, tiny_model_folder, tiny_text_file, capsys):
    assert main(words(run, tiny_model_folder, tiny_text_file)) == 0
    other = words(run, tiny_model_folder, tiny_text_file, "--top", "2")
    assert main(other) == 2
    assert "--rebuild" in capsys.readouterr().err
    assert main([*other, "--rebuild"]) == 0
    assert Atlas.open(run / "atlas").about["config"]["top"] == 2


def test_a_run_without_sources_needs_a_model_and_a_text(run, capsys):
    assert main(["atlas", str(run)]) == 2
    assert "--model NAME --text SOURCE" in capsys.readouterr().err
