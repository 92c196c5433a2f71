"""The programs that read several hook points run end to end, and so does a set of transcoders."""

import importlib
import json
from pathlib import Path

import pytest
import torch

from probes import effective_dimension as dimension_probe
from saelab import SAE, tokens
from saelab.cross_layer import CrossLayerTranscoder
from saelab.crosscoders import Crosscoder
from saelab.errors import CheckpointError, ConfigError
from saelab.evaluation import evaluate
from saelab.harvesting import harvest
from saelab.models import load_model
from saelab.recipes.skip_transcoder import SkipTranscoderRecipe
from saelab.recipes.transcoder import TranscoderRecipe
from saelab.store import ActivationStore
from saelab.transcoder_sets import TranscoderSetConfig, load_set, measure_set, train_set

PAIRED = ("cross_layer_transcoder", "crosscoder", "skip_transcoder", "transcoder")
SMALL = ["--d-sae", "64", "--tokens", "4096", "--batch-size", "256", "--k", "8"]
pytestmark = pytest.mark.filterwarnings("ignore:.*latents", "ignore:.*shuffle window")


@pytest.fixture(scope="module")
def acts(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, tiny_text_file: Path
) -> Path:
    folder = tmp_path_factory.mktemp("transcoder-programs") / "acts"
    model = load_model(tiny_model_folder)
    hooks = [f"blocks.{i}.{end}" for i in (0, 1) for end in ("mlp.hook_in", "hook_mlp_out")]
    harvest(model, tokens.from_text(model, tiny_text_file, length=32), hooks, folder)
    return folder


def run(name: str, *words: object) -> int:
    return importlib.import_module(f"trainers.{name}").main([str(word) for word in words])


@pytest.mark.parametrize("name", ["transcoder", "skip_transcoder"])
def test_a_transcoder_is_made_of_the_mlp_whose_input_the_store_reads(
    name: str, acts: Path, tmp_path: Path
) -> None:
    assert run(name, acts, tmp_path / "run", *SMALL) == 0
    sae = SAE.load(tmp_path / "run" / "sae")
    assert (sae.hook, sae.hook_out) == ("blocks.0.mlp.hook_in", "blocks.0.hook_mlp_out")
    assert (sae.W_skip is not None) == (name == "skip_transcoder")
    found = evaluate(sae, ActivationStore.open(acts))
    assert found.fvu is not None and found.fvu < 0.9
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(64))


@pytest.mark.parametrize("rule", ["batch_topk", "abs_topk", "jumprelu"])
def test_a_transcoder_takes_other_rules(rule: str, acts: Path, tmp_path: Path) -> None:
    words = [*SMALL, "--rule", rule, "--hook", "blocks.1.mlp.hook_in"]
    assert run("transcoder", acts, tmp_path / "run", *words) == 0
    sae = SAE.load(tmp_path / "run" / "sae")
    assert sae.activation.name == rule.replace("_", "")
    assert sae.hook_out == "blocks.1.hook_mlp_out"


def test_a_zero_start_leaves_norms_free(acts: Path, tmp_path: Path) -> None:
    recipe = SkipTranscoderRecipe(d_sae=64, start="zero")
    assert recipe.training().decoder == "free" and recipe.training().center == "mean"
    assert not recipe.dictionary(ActivationStore.open(acts)).W_dec.any()
    assert run("skip_transcoder", acts, tmp_path / "run", *SMALL, "--start", "zero") == 0
    assert SAE.load(tmp_path / "run" / "sae").W_dec.any()


def test_a_store_without_an_mlp_is_refused_with_what_to_do(acts: Path) -> None:
    store = ActivationStore.open(acts)
    with pytest.raises(ConfigError, match=r"Name both ends: --hook and --hook-out"):
        TranscoderRecipe().dictionary(store.at("blocks.0.hook_mlp_out"))
    with pytest.raises(ConfigError, match=r"has no blocks\.9\.hook_mlp_out"):
        TranscoderRecipe(hook_out="blocks.9.hook_mlp_out").dictionary(store)


def test_a_crosscoder_of_layers_and_of_two_models(acts: Path, tmp_path: Path) -> None:
    assert run("crosscoder", acts, tmp_path / "one", *SMALL) == 0
    assert len(Crosscoder.load(tmp_path / "one" / "sae").sites) == 4
    sites = ["--site", "first:blocks.1.hook_mlp_out", "--site", "other:blocks.1.hook_mlp_out"]
    words = [*SMALL, *sites, "--other", acts, "--rule", "relu"]
    assert run("crosscoder", acts, tmp_path / "two", *words) == 0
    found = Crosscoder.load(tmp_path / "two" / "sae")
    assert found.relative_norms().shape == (2, 64)


def test_a_cross_layer_transcoder_of_all_mlps_of_the_store(
    acts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("cross_layer_transcoder", acts, tmp_path / "run", *SMALL) == 0
    clt = CrossLayerTranscoder.load(tmp_path / "run" / "clt")
    assert clt.hooks == ("blocks.0.mlp.hook_in", "blocks.1.mlp.hook_in")
    assert "blocks.1.hook_mlp_out: fvu" in capsys.readouterr().out


@pytest.mark.parametrize("name", [*PAIRED, "transcoder_set"])
def test_a_program_has_help_with_the_paper_and_its_flags(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run(name, "--help")
    said = capsys.readouterr().out
    assert end.value.code == 0 and f"usage: python -m trainers.{name}" in said
    assert "20" in said and "--seed" in said


# Sets


TINY = TranscoderSetConfig(
    layers=(0, 2),
    d_sae=48,
    k=6,
    tokens=1536,
    batch_size=128,
    window_tokens=512,
    start_tokens=256,
    rows_per_batch=4,
    checkpoint_every_tokens=384,
    lr=1e-2,
)


@pytest.fixture(scope="module")
def model(tiny_model_folder):
    return load_model(tiny_model_folder)


@pytest.fixture(scope="module")
def text(model, tiny_text_file):
    return tokens.from_text(model, tiny_text_file, length=32)


@pytest.fixture(scope="module")
def finished_set(model, text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "set"
    train_set(model, text, folder, TINY)
    return folder


def test_a_set_has_every_layers_transcoder_by_what_it_reads(finished_set, model, text):
    found = load_set(finished_set)
    assert list(found) == ["blocks.0.mlp.hook_in", "blocks.2.mlp.hook_in"]
    assert all(sae.hook_out == hook.replace("mlp.hook_in", "hook_mlp_out")
               for hook, sae in found.items())  # fmt: skip
    quality = measure_set(model, found, text, max_tokens=500, replacement_rows=4)
    assert all(one.fvu is not None and one.fvu < 1 for one in quality.layers.values())
    assert quality.together is not None and len(quality.together.layers) == 2
    json.dumps(quality.to_json())


def test_a_set_stopped_and_resumed_has_the_same_bits(finished_set, model, text, tmp_path):
    class Stop(Exception):
        pass

    steps = 0

    def progress(*_):
        nonlocal steps
        steps += 1
        if steps in (5, 16):  # between two layers' turns, with one of them ahead
            raise Stop

    for _ in range(2):
        with pytest.raises(Stop):
            train_set(model, text, tmp_path / "set", TINY, progress=progress)
    with pytest.raises(CheckpointError, match="is not finished: layer_00, layer_02 lack"):
        load_set(tmp_path / "set")
    resumed = train_set(model, text, tmp_path / "set", TINY)
    for hook, sae in load_set(finished_set).items():
        for name, value in sae.state_dict().items():
            assert torch.equal(resumed[hook].state_dict()[name], value), name


def test_the_model_runs_once_for_all_layers_starts(model, text, tmp_path):
    """Four hook points of two layers are sampled from the same few passes."""
    passes = 0
    original = model.activations

    def counted(*arguments, **named):
        nonlocal passes
        passes += 1
        return original(*arguments, **named)

    model.activations = counted
    try:
        train_set(model, text, tmp_path / "set", TINY)
    finally:
        del model.activations
    rows = 1536 + 2 * 512 + 3 * 256  # trained on, loaded ahead, sampled with some to spare
    assert passes <= rows / (4 * 31) + 12


def test_another_set_in_the_same_folder_is_refused(finished_set, model, text):
    other = TranscoderSetConfig(layers=(0,), d_sae=48, k=6, tokens=1536, batch_size=128)
    with pytest.raises(ConfigError, match="holds another set: its config and layers differ"):
        train_set(model, text, finished_set, other)
    with pytest.raises(CheckpointError, match=r"set\.json"):
        load_set(finished_set.parent)


def test_the_program_trains_measures_and_shows_a_set(
    tiny_model_folder, tiny_text_file, tmp_path, capsys
):
    words = ["--preset", "ci", "--model", tiny_model_folder, "--text", tiny_text_file]
    words += ["--tokens", "512", "--length", "32", "--d-sae", "32", "--k", "4"]
    assert run("transcoder_set", tmp_path / "set", *words, "--measure-rows", "4") == 0
    said = capsys.readouterr().out
    assert "blocks.1.mlp.hook_in" in said and "all 2 layers replaced" in said
    page = (tmp_path / "set" / "quality.html").read_text()
    assert "Which layers are hard?" in page and "http-equiv" in page
    quality = json.loads((tmp_path / "set" / "quality.json").read_text())
    assert set(quality["layers"]) == {"blocks.0.mlp.hook_in", "blocks.1.mlp.hook_in"}


def test_the_dimension_probe_prints_a_table_and_writes_a_page(acts, tmp_path, capsys):
    assert dimension_probe.main([str(acts), "--out", str(tmp_path / "p.html")]) == 0
    said = capsys.readouterr().out
    assert said.count("standardized") == 4 and "blocks.1.hook_mlp_out" in said
    assert "share of the directions" in (tmp_path / "p.html").read_text()  # by layer


def test_the_dimension_probe_measures_every_layer_of_a_model_as_it_does_a_store(
    acts, tiny_model_folder, tiny_text_file, tmp_path, capsys
):
    out, words = tmp_path / "p.html", ["--max-tokens", "600", "--site", "hook_mlp_out"]
    where = ["--model", str(tiny_model_folder), "--text", str(tiny_text_file), "--out", str(out)]
    assert dimension_probe.main([*words, *where]) == 0
    said = capsys.readouterr().out
    lines = said[said.index("n_99 of plain") :].splitlines()
    assert lines[1].split() == ["layer", "hook_mlp_out"]
    assert [line.split()[0] for line in lines[2:4]] == ["0", "1"]
    assert all(0 < float(line.split()[1]) <= 1 for line in lines[2:4])
    assert "of layer" in out.read_text()
    assert dimension_probe.main([str(acts), "--site", "hook_mlp_out"]) == 2
    assert "own hook points" in capsys.readouterr().err
