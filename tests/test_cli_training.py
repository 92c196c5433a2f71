"""`saelab train`, `sweep` and `pareto`: every family, many at once, and compared."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from saelab import SAE, tokens
from saelab.cli import main
from saelab.harvesting import harvest
from saelab.models import load_model
from saelab.recipes import families, recipe_of

pytestmark = pytest.mark.filterwarnings("ignore:.*latents")
HOOKS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
SMALL = ["--d-sae", "64", "--tokens", "4096", "--batch-size", "512"]


@pytest.fixture(scope="module")
def acts(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, tiny_text_file: Path
) -> Path:
    folder = tmp_path_factory.mktemp("cli-training") / "acts"
    model = load_model(tiny_model_folder)
    harvest(model, tokens.from_text(model, tiny_text_file, length=32), HOOKS, folder)
    return folder


def said(capsys: pytest.CaptureFixture[str], *words: object, status: int = 0) -> str:
    found = main([str(word) for word in words])
    captured = capsys.readouterr()
    assert found == status, captured.err
    return captured.out if status == 0 else captured.err


@pytest.mark.parametrize("family", families())
def test_every_family_shows_its_paper_and_its_fields(
    family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["train", "--family", family, "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    recipe = recipe_of(family)
    assert (recipe.__doc__ or "").splitlines()[0] in text
    assert "20" in text.partition("positional arguments")[0], "no paper"
    for field in recipe.__dataclass_fields__:
        assert f"--{field.replace('_', '-')}" in text
    assert "--micro-batch-size" in text and "Hook point, if the store has several." in text


def test_every_trainer_is_a_family() -> None:
    programs = {
        path.stem
        for path in (Path(__file__).parent.parent / "trainers").glob("*.py")
        if "Recipe" in path.read_text()
    }
    assert programs == set(families())


def test_a_family_is_trained_by_the_verb_as_by_its_program(
    acts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from trainers import batch_topk

    flags = [*SMALL, "--k", "4", "--seed", "2"]
    text = said(capsys, "train", acts, "--out", tmp_path / "verb", "--family", "batch_topk", *flags)
    assert "4,096 tokens" in text and "Next: saelab evaluate" in text
    assert batch_topk.main([str(acts), str(tmp_path / "program"), *flags]) == 0
    one, other = (
        (tmp_path / name / "sae/sae_weights.safetensors").read_bytes()
        for name in ("verb", "program")
    )
    assert one == other
    recipe = json.loads((tmp_path / "verb" / "recipe.json").read_text())
    assert recipe["family"] == "batch_topk" and recipe["settings"]["k"] == 4.0


def test_the_loops_settings_are_flags_of_every_family(
    acts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", acts, "--out", tmp_path, "--family", "topk", *SMALL, "--k", "4"]
    said(capsys, *words, "--moments", "bfloat16", "--micro-batch-size", "128", "--warmup", "0")
    config = json.loads((tmp_path / "run.json").read_text())["config"]
    assert (config["moments"], config["micro_batch_size"]) == ("bfloat16", 128)
    assert (config["warmup"], config["batch_size"]) == (0.0, 512)


def test_a_sweep_and_its_page(
    acts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", acts, "--out", tmp_path, "--family", "topk,batch_topk", *SMALL]
    words += ["--k", "2,4", "--seed", "0,1", "--hook", HOOKS[1]]
    text = said(capsys, *words)
    assert "8 dictionaries, 32,768 tokens in all." in text
    runs = {path.parent.name for path in tmp_path.glob("*/run.json")}
    assert runs == {
        f"{family}-seed={seed}-k={k}"
        for family in ("topk", "batch_topk")
        for seed in (0, 1)
        for k in (2, 4)
    }
    sae = SAE.load(tmp_path / "batch_topk-seed=1-k=4" / "sae")
    assert sae.hook == HOOKS[1] and sae.activation.target_l0 == 4.0
    before = (tmp_path / "topk-seed=0-k=2/sae/sae_weights.safetensors").read_bytes()
    said(capsys, *words)
    assert (tmp_path / "topk-seed=0-k=2/sae/sae_weights.safetensors").read_bytes() == before
    text = said(capsys, "pareto", tmp_path, "--out", tmp_path / "page")
    assert text.startswith("8 runs; on the frontier of L0 and FVU:")
    assert (tmp_path / "page" / "pareto.html").stat().st_size > 100_000
    rows = json.loads((tmp_path / "page" / "pareto.json").read_text())["runs"]
    assert {(row["family"], row["seed"]) for row in rows} == {
        (family, seed) for family in ("topk", "batch_topk") for seed in (0, 1)
    }


def test_layers_are_swept_over_the_hook_points_of_one_store(
    acts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "sweep", acts, "--out", tmp_path, *SMALL, "--k", "2", "--hook", ",".join(HOOKS))
    hooks = {SAE.load(path.parent).hook for path in tmp_path.glob("*/sae/saelab.json")}
    assert hooks == set(HOOKS)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["train", "x", "--out", "y", "--family", "topkk"], "no family 'topkk'. Did you mean topk"),
        (["train", "x", "--out", "y", "--family", "topk", "--l1", "3"], "no flag --l1"),
        (
            ["sweep", "x", "--out", "y", "--k", "2,many"],
            "--k 2,many: many is no INT, which TopKRecipe needs",
        ),
        (["sweep", "x", "--out", "y", "--family", "topk,relux"], "no family 'relux'"),
        (["sweep", "x", "--out", "y", "--k", "2,0"], "TopK(k=0) keeps no latent"),
        (["sweep", "x", "--out", "y", "--lr", "1e-3,-1"], "TrainConfig(lr=-1.0) must be positive"),
        (["pareto", "nowhere"], "There is no folder nowhere"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], part: str, capsys: pytest.CaptureFixture[str], acts: Path
) -> None:
    line = said(capsys, *[acts if word == "x" else word for word in words], status=2)
    assert part in line and line.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("split", ["tokens", "latents"])
def test_torchrun_trains_one_dictionary_in_two_processes(
    split: str, acts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The program as a user starts it; benchmarks against one process are in test_distributed."""
    bin_folder = Path(sys.executable).parent
    launch = [bin_folder / "torchrun", "--standalone", "--nproc-per-node", "2", "--no-python"]
    words = ["train", acts, "--split", split, *SMALL, "--k", "4", "--log-every-tokens", "512"]
    together = [*launch, bin_folder / "saelab", *words, "--out", tmp_path / "two"]
    done = subprocess.run(
        [str(word) for word in together], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4,096 tokens") == 1, "only the first process speaks"
    said(capsys, *words, "--out", tmp_path / "one")
    one, two = (SAE.load(tmp_path / name / "sae") for name in ("one", "two"))
    torch.testing.assert_close(two.W_dec, one.W_dec, rtol=1e-3, atol=1e-4)
    rows = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("one", "two")]
    assert len(rows[0]) == len(rows[1]) == 8
