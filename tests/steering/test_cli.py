"""`saelab steer`: one prompt both ways, a recipe, a sweep's page; run for real on a tiny model."""

import json
from pathlib import Path

import pytest

from saelab import SAE, TopK, tokens
from saelab.cli import main
from saelab.models import load_model
from saelab.run_folders import HarvestSource, record_store
from saelab.steering import Push, SteeringReport, side_by_side
from trainers import yapo

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model_folder) -> Path:
    """A run folder as `saelab train` leaves it, with an untrained dictionary."""
    folder = tmp_path_factory.mktemp("steer")
    model = load_model(str(tiny_model_folder), device="cpu")
    sae = SAE(model.d_model, 24, TopK(3), hook=HOOK, seed=1)
    sae.metadata["model"] = model.identity.to_json()
    sae.save(folder / "topk" / "sae")
    held_out = tokens.from_text(model, [f"Letter {i}: abc def ghi." for i in range(9)], length=24)
    held_out.save(folder / "acts" / "tokens" / "held_out")
    HarvestSource(model=str(tiny_model_folder), text=["x"]).save(folder / "acts")
    record_store(folder / "topk", folder / "acts")
    return folder / "topk"


def said(capsys, *words) -> str:
    status = main([str(word) for word in ["steer", *words]])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out


def complaint(capsys, *words) -> str:
    assert main([str(word) for word in ["steer", *words]]) == 2
    found = capsys.readouterr().err
    assert found.count("\n") == 1
    return found


def test_a_prompt_is_continued_both_ways_and_the_recipe_does_it_again(
    run, tiny_model_folder, capsys, tmp_path
):
    recipe = tmp_path / "recipe.json"
    common = [run, "--prompt", "The cat", "--max-new-tokens", 4]
    first = said(capsys, *common, "--latent", 5, "--strength", "-3.5", "--recipe", recipe)
    model = load_model(str(tiny_model_folder), device="cpu")
    sae = SAE.load(run / "sae")
    wanted = side_by_side(model, [Push(sae, {5: -3.5})], "The cat", max_new_tokens=4)
    assert f"{wanted.kl_prompt:.3f} nats after the prompt" in first
    assert f"{wanted.perplexity_steered:,.1f} steered" in first
    assert f"{wanted.next_tokens[0].clean:7.2%}" in first
    assert json.loads(recipe.read_text())["interventions"][0]["values"] == {"5": -3.5}
    again = said(capsys, *common, "--recipe", recipe)
    assert again.splitlines() == first.splitlines()[:-1]


def test_a_sweep_leaves_a_page_and_numbers_with_controls(run, capsys, tmp_path):
    page = tmp_path / "page.html"
    out = said(
        capsys,
        *(run, "--latent", 5, "--sweep", "--strength", 0.5, "--strength", -1, "--word", "e"),
        *("--prompt", "The cat", "--prompt", "A dog", "--max-new-tokens", 3, "--out", page),
    )
    report = SteeringReport.load(page.with_suffix(".json"))
    assert [one.strength for one in report.curves[0].points] == [-1.0, 0.5]
    assert [one.control for one in report.curves] == [False, True, True]
    assert page.stat().st_size > 10_000
    for curve in report.curves:
        assert any(line.startswith(curve.name) for line in out.splitlines())
    assert len(list((tmp_path / "page" / "points").iterdir())) == 7


def test_mistakes_are_one_line(run, capsys, tmp_path):
    assert "--prompt" in complaint(capsys, run, "--latent", 1, "--strength", 1)
    assert "Nothing to push" in complaint(capsys, run, "--prompt", "a")
    wrong = ["--latent", 1, "--latent", 2, "--latent", 3, "--strength", 1, "--strength", 2]
    assert "3 latents and 2 strengths" in complaint(capsys, run, "--prompt", "a", *wrong)
    beyond = ["--latent", 99, "--strength", 1]
    assert "no latent 99" in complaint(capsys, run, "--prompt", "a", *beyond)
    assert "Nothing to sweep" in complaint(capsys, run, "--sweep")
    missing = ["--recipe", tmp_path / "none.json"]
    assert "missing" in complaint(capsys, run, "--prompt", "a", *missing)


def test_the_yapo_program_writes_a_recipe_that_steer_reads(run, capsys, tmp_path):
    rows = [{"prompt": f"The {one}", "chosen": "ee", "rejected": "aa"} for one in ("cat", "dog")]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(json.dumps(row) for row in rows))
    for name, flags in (("sparse", []), ("dense", ["--dense"])):
        recipe = tmp_path / f"{name}.json"
        words = [run, pairs, recipe, "--steps", 8, "--warmup", 2, "--lr", 0.1, *flags]
        assert yapo.main([str(word) for word in words]) == 0
        assert "numbers moved" in capsys.readouterr().out
        out = said(capsys, run, "--recipe", recipe, "--prompt", "The cat", "--max-new-tokens", 3)
        assert "KL(clean || steered): 0.000" not in out
    pairs.write_text('{"prompt": "a"}')
    assert yapo.main([str(run), str(pairs), str(tmp_path / "x.json")]) == 2
    assert "line 1: each line must be" in capsys.readouterr().err
