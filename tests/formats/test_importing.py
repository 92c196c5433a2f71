"""`saelab import` and `saelab export`, and the check against what was recorded."""

from pathlib import Path

import pytest
import torch

from saelab import SAE, ActivationStore, ConfigError, TopK, formats
from saelab.cli import main
from saelab.formats.checking import check
from tests.formats.cases import GOLDEN, MLP, dictionary

HOOK = "blocks.3.hook_resid_post"


def lines_of(capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    capsys.readouterr()
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out.splitlines()


def error_of(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_import_says_what_it_read_and_saves_it(tmp_path: Path, capsys) -> None:
    folder = GOLDEN / "dictionary_learning/theirs/AutoEncoderTopK"
    lines = lines_of(capsys, "import", folder, "--out", tmp_path / "own")
    assert lines[0] == "dictionary_learning: 6 -> 16 latents -> 6, TopK(k=4)"
    assert lines[1] == f"Hook point: {HOOK}. Model: EleutherAI/pythia-70m-deduped."
    assert lines[2] == f"Saved: {tmp_path / 'own'}"
    own, theirs = SAE.load(tmp_path / "own"), formats.read(folder)
    x = torch.randn(8, 6)
    assert torch.equal(own(x), theirs(x))
    assert own.metadata["imported"]["files"].keys() >= {"ae.pt", "config.json"}


def test_import_takes_everything_that_the_files_do_not_say(capsys) -> None:
    words = ["--input-scale", 0.375, "--hook", "blocks.1.hook_resid_pre", "--format", "saelens"]
    lines = lines_of(capsys, "import", GOLDEN / "saelens/theirs/flat_scaled", *words)
    assert "blocks.1.hook_resid_pre" in lines[1]
    set_folder = GOLDEN / "saelens/elsewhere/qwen3-0.6b-transcoders"
    lines = lines_of(capsys, "import", set_folder, "--layer", 0, "--hook-out", "somewhere")
    assert "blocks.0.mlp.hook_in -> somewhere" in lines[1]


def test_what_cannot_be_imported_is_one_line(tmp_path: Path, capsys) -> None:
    refused = error_of(capsys, "import", GOLDEN / "saelens/theirs/layer_norm")
    assert refused.startswith("saelab: ")
    assert "each token is scaled by its own standard deviation" in refused
    assert "There is no file or folder" in error_of(capsys, "import", tmp_path / "nothing")
    unknown = error_of(capsys, "import", "gpt2-small-res-jbb/x")
    assert "no release 'gpt2-small-res-jbb' is known. There is gpt2-small-res-jb" in unknown


# the check


def store_of(sae: SAE, noise: float = 0.0) -> ActivationStore:
    """Activations that the dictionary reconstructs but for some noise."""
    x = 3 * torch.randn(3000, sae.d_in)
    y = sae(x).detach()
    y = y + noise * torch.randn_like(y)
    return ActivationStore.from_tensor({str(sae.hook): x, str(sae.hook_out): y})


def test_a_transcoder_is_checked_against_what_it_should_write() -> None:
    sae = dictionary("topk", **MLP)
    found = check(sae, store_of(sae), 2048)
    x = 3 * torch.randn(3000, 6)
    assert found.n_tokens == 2048
    assert found.explained_variance == pytest.approx(1.0, abs=1e-5)
    assert found.l0 == pytest.approx(float(sae.encode(x).l0().float().mean()), abs=0.2)
    assert found.doubts == []
    noisy = check(sae, store_of(sae, noise=30.0), 2048)
    assert noisy.explained_variance is not None
    assert noisy.explained_variance < 0.9


def test_numbers_far_from_the_recorded_ones_are_a_doubt() -> None:
    sae = dictionary("topk", **MLP)
    sae.metadata["imported"] = {"recorded": {"l0": 60.0, "explained_variance": 0.7}}
    doubts = check(sae, store_of(sae)).doubts
    assert len(doubts) == 2
    assert "where 60.0 was recorded" in doubts[0]
    assert "the explained variance is 1.000 where 0.700 was recorded" in doubts[1]
    sae.metadata["imported"] = {"recorded": {"l0": 3.9, "explained_variance": 0.98}}
    assert check(sae, store_of(sae)).doubts == []


def test_a_dictionary_read_wrongly_is_worse_than_the_mean() -> None:
    sae = dictionary("topk", **MLP)
    store = store_of(sae)
    with torch.no_grad():
        sae.W_dec.copy_(sae.W_dec.flip(1))
    (doubt,) = check(sae, store).doubts
    assert "worse than predicting the mean" in doubt


def test_a_store_without_the_hook_point_or_of_another_width_is_refused() -> None:
    sae = dictionary("topk")
    with pytest.raises(ConfigError, match=r"needs blocks\.3\.hook_resid_post, 6 wide"):
        check(sae, ActivationStore.from_tensor({"hook_embed": torch.randn(50, 6)}))
    with pytest.raises(ConfigError, match=r"the store holds blocks\.3\.hook_resid_post \(7\)"):
        check(sae, ActivationStore.from_tensor({HOOK: torch.randn(50, 7)}))


@pytest.fixture(scope="module")
def harvested(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, tiny_text_file: Path
) -> Path:
    folder = tmp_path_factory.mktemp("harvest") / "acts"
    words = ["harvest", "--model", tiny_model_folder, "--text", tiny_text_file]
    words += ["--hook", "blocks.1.hook_resid_post", "--length", 32, "--out", folder]
    assert main([str(word) for word in [*words, "--max-tokens", 4000]]) == 0
    return folder


def test_import_checks_on_a_harvested_store(harvested: Path, tmp_path: Path, capsys) -> None:
    store = ActivationStore.open(harvested)
    sae = SAE(store.d_in, 64, TopK(8), hook=store.hook)
    sae.metadata["model"] = {"name": "tiny"}
    formats.export(sae, tmp_path / "theirs", "saelens")
    words = ["import", tmp_path / "theirs", "--check", harvested, "--check-tokens", 1000]
    lines = lines_of(capsys, *words)
    assert lines[2].startswith("On 1,000 tokens")
    assert lines[3].split() == ["l0", "8.0", "(not", "recorded)"]
    assert lines[4].split()[:2] == ["explained", "variance"]


# export


def test_export_writes_other_formats_and_sets(tmp_path: Path, capsys) -> None:
    for layer in range(2):
        places = {name: hook.replace("3", str(layer)) for name, hook in MLP.items()}
        dictionary("topk", **places).save(tmp_path / f"layer{layer}")
    runs = [tmp_path / "layer0", tmp_path / "layer1"]
    out = ["--out", tmp_path / "set", "--format", "circuit-tracer"]
    (line,) = lines_of(capsys, "export", *runs, *out)
    assert line.endswith("set: config.yaml, layer_0.safetensors, layer_1.safetensors")
    assert list(formats.read_set(tmp_path / "set")) == [0, 1]


def test_what_cannot_be_exported_is_one_line(tmp_path: Path, capsys) -> None:
    dictionary("groupmax").save(tmp_path / "own")
    error = error_of(capsys, "export", tmp_path / "own", "--out", tmp_path / "out")
    assert "SAELens has no dictionary with the activation function GroupMax" in error
    unknown = ["export", tmp_path / "own", "--out", tmp_path / "out", "--format", "onnx"]
    assert "There is no export format 'onnx'" in error_of(capsys, *unknown)
