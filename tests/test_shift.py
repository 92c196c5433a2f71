"""SHIFT on a planted spurious direction: taking it out frees the classifier, nothing else does."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from probes import shift as probe
from saelab.activation_functions import AbsTopK, ReLU
from saelab.errors import ConfigError, DataError
from saelab.probing import LinearProbe, PooledTexts, fit_probe, pooled_texts
from saelab.sae import SAE
from saelab.shift import Shift, ShiftConfig, attribute_judge, margin_effects, shift

D, N = 24, 1200
WANTED, ATTRIBUTE = 1, 0
"""Latents that hold the class and the attribute."""
CONFIG = ShiftConfig(n_judged=12, n_random=8)


def oracle(sign: torch.Tensor | None = None) -> SAE:
    """One latent a coordinate, signed."""
    sae = SAE(D, D, AbsTopK(D), pre_bias=False)
    rows = torch.eye(D) if sign is None else torch.diag(sign)
    with torch.no_grad():
        sae.W_enc.copy_(rows)
        sae.W_dec.copy_(rows)
    return sae


@cache
def planted() -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Texts of two tokens: a loud attribute, a quieter class, and noise; all four combinations."""
    generator = torch.Generator().manual_seed(3)
    attribute, wanted = torch.arange(N) % 2, (torch.arange(N) // 2) % 2
    x = 0.5 * torch.randn(N, 2, D, generator=generator)
    x[:, :, ATTRIBUTE] = (6.0 * attribute - 3.0)[:, None]
    x[:, :, WANTED] += (1.6 * wanted - 0.8)[:, None]
    return x.flatten(0, 1), wanted.numpy(), attribute.numpy()


def texts_of(sae: SAE) -> PooledTexts:
    x, _, _ = planted()
    return pooled_texts(sae, x, torch.arange(N).repeat_interleave(2))


def rows() -> dict[str, np.ndarray]:
    """Training on texts whose attribute is their class; the rest for judge, balanced and test."""
    _, wanted, attribute = planted()
    order = np.random.default_rng(0).permutation(N)
    agree = order[(wanted == attribute)[order]]
    rest = np.setdiff1d(order, agree[:300])
    parts = np.random.default_rng(1).permutation(rest)
    return {"ambiguous": agree[:300], "judge": parts[:150], "balanced": parts[150:400],
            "test": parts[400:]}  # fmt: skip


def run(sae: SAE | None = None, config: ShiftConfig = CONFIG) -> Shift:
    texts = texts_of(sae or oracle())
    _, wanted, attribute = planted()
    parts = rows()
    return shift(
        texts, wanted, attribute,
        ambiguous=parts["ambiguous"], test=parts["test"],
        judge=attribute_judge(texts, parts["judge"], wanted, attribute),
        judge_rows=parts["judge"], balanced_rows=parts["balanced"], config=config,
    )  # fmt: skip


def test_taking_out_the_spurious_latent_frees_the_classifier() -> None:
    found = run()
    # Both halves of the one latent, and nothing else, are judged spurious.
    assert {ATTRIBUTE, ATTRIBUTE + D} <= set(found.ablated)
    assert not {WANTED, WANTED + D} & set(found.ablated)
    assert set(found.judged[:2]) == {ATTRIBUTE, ATTRIBUTE + D}
    # An oracle explains everything.
    assert found.of_latents == pytest.approx(1.0, abs=1e-5)
    assert found.before.worst < 0.3
    assert found.before.attribute > 0.9
    assert found.after.worst > 0.8
    assert found.retrained.worst > 0.85
    assert found.retrained.attribute == pytest.approx(0.5, abs=0.06)
    assert found.balanced is not None and found.balanced.worst > 0.8


def test_random_ablation_does_not_help() -> None:
    # Among few latents the spurious one is drawn now and then: those draws are no control.
    found = run(config=ShiftConfig(n_judged=2, n_random=12))
    assert len(found.random) == len(found.random_retrained) == 12
    worst = sorted(one.worst for one in found.random)
    assert worst[6] == pytest.approx(found.before.worst, abs=0.15)
    assert sorted(one.worst for one in found.random_retrained)[6] < 0.4


def test_judging_nothing_spurious_changes_nothing() -> None:
    texts, (_, wanted, attribute), parts = texts_of(oracle()), planted(), rows()
    found = shift(
        texts, wanted, attribute, ambiguous=parts["ambiguous"], test=parts["test"],
        judge=lambda _: [], config=CONFIG,
    )  # fmt: skip
    assert found.ablated == ()
    assert found.after == found.before == found.random[0]
    assert found.retrained == found.before
    assert found.judge_only is None and found.balanced is None


def test_a_latent_turned_round_is_the_same_latent() -> None:
    sign = torch.where(torch.arange(D) % 2 == 0, -1.0, 1.0)
    first, second = run(), run(oracle(sign))
    # The attribute's latent is turned round, so its halves change places.
    halves = {(n + D) % (2 * D) if n % D % 2 == 0 else n for n in first.ablated}
    assert set(second.ablated) == halves
    assert second.after.worst == pytest.approx(first.after.worst, abs=1e-9)


def test_an_effect_is_what_ablation_takes_from_the_margin() -> None:
    texts, (_, wanted, _), train = texts_of(oracle()), planted(), rows()["ambiguous"]
    probe: LinearProbe = fit_probe(texts.x[train], wanted[train], strengths=(0.1,))
    effects = margin_effects(texts, train, wanted, probe)

    def margin(x: torch.Tensor) -> float:
        scores, positive = probe.scores(x[train]), wanted[train].astype(bool)
        return float(scores[positive].mean() - scores[~positive].mean()) / 2

    for half in (0, D, 5, 1 + D):
        taken = margin(texts.x) - margin(texts.without([half]))
        assert effects[half] == pytest.approx(taken, abs=1e-5)


def test_groups_are_counted_apart_and_alike() -> None:
    found = run().before
    assert set(found.groups) == {(a, b) for a in (False, True) for b in (False, True)}
    assert found.worst == min(found.groups.values())
    assert found.accuracy == pytest.approx(sum(found.groups.values()) / 4)
    agree = found.groups[False, False] + found.groups[True, True]
    against = found.groups[False, True] + found.groups[True, False]
    assert found.attribute == pytest.approx((agree + 2 - against) / 4)


def test_what_cannot_be_measured_is_refused() -> None:
    texts, (_, wanted, attribute), parts = texts_of(oracle()), planted(), rows()
    some = {"ambiguous": parts["ambiguous"], "judge": lambda _: []}
    with pytest.raises(DataError, match="in two of"):
        shift(texts, wanted, attribute, test=parts["ambiguous"], **some)
    agree = parts["test"][(wanted == attribute)[parts["test"]]]
    with pytest.raises(DataError, match="test rows have 2 of the four"):
        shift(texts, wanted, attribute, test=agree, **some)
    with pytest.raises(DataError, match="judge rows have 2 of the four"):
        attribute_judge(texts, agree, wanted, attribute)
    with pytest.raises(DataError, match="not shown"):
        shift(
            texts, wanted, attribute, ambiguous=parts["ambiguous"], test=parts["test"],
            judge=lambda _: [10_000],
        )  # fmt: skip
    with pytest.raises(ConfigError, match="n_judged=0"):
        ShiftConfig(n_judged=0)
    with pytest.raises(ConfigError, match="writes where it reads"):
        pooled_texts(SAE(D, 8, ReLU(), hook="a", hook_out="b"), torch.ones(N, D), torch.arange(N))


def test_the_probe_reads_reviews_and_says_what_became_of_the_classifier(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SAE(32, 64, AbsTopK(4), hook="blocks.1.hook_resid_post").save(tmp_path / "sae")
    folder = reviews(tmp_path)
    words = [str(tmp_path / "sae"), "--out", str(tmp_path / "found.json"), "--texts", "24"]
    words += ["--model", str(tiny_model_folder), "--data-folder", str(folder), "--judged", "6"]
    assert probe.main(words) == 0
    said = capsys.readouterr().out
    assert "96 reviews read" in said  # 24 ambiguous, and 4 + 8 + 6 of each of four kinds
    assert "latents hold" in said
    for name in ("before", "latents out", "trained anew", "random out", "rule's texts", "balanced"):
        assert f"\n  {name:14}" in said
    found = json.loads((tmp_path / "found.json").read_text())["by_judged"]["6"]
    assert set(found["ablated"]) <= set(found["judged"])
    assert len(found["random"]) == 20
    assert probe.main([*words, "--spurious", "exclamation"]) == 0
    assert "96 reviews read" in capsys.readouterr().out
    assert probe.main([*words[:3], "--texts", "900", *words[5:]]) == 2
    assert "1125 are needed" in capsys.readouterr().err


def reviews(folder: Path) -> Path:
    """The two data sets in the package's layout, one with five labels."""
    import pyarrow as pa

    data = folder / "sae_probes" / "data"
    (data / "cleaned_data").mkdir(parents=True)
    index = "Dataset Tag,Dataset save name,Data type\n"
    index += "movie_sent,cleaned_data/1_movie_sent.csv,Binary Classification\n"
    index += "yelp_data,cleaned_data/2_yelp_data.csv,Continuous Data\n"
    films = "".join(f"film {i} was {'great' if i % 2 else 'dull'},9,{i % 2}\n" for i in range(90))
    shops = "".join(
        f"shop no {i}: {'nice' * (i % 5)}{'!' if i % 2 else '.'},9,{i % 5}\n" for i in range(200)
    )
    files = {
        "probing_datasets_MASTER.csv": index,
        "cleaned_data/1_movie_sent.csv": "prompt,prompt_len,target\n" + films,
        "cleaned_data/2_yelp_data.csv": "prompt,prompt_len,target\n" + shops,
    }
    for name, content in files.items():
        with pa.output_stream(data / f"{name}.zst", compression="zstd") as stream:
            stream.write(content.encode())
    return folder


def test_the_probe_has_help_with_its_sources(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        probe.main(["--help"])
    said = capsys.readouterr().out
    assert end.value.code == 0
    assert "Marks et al. 2025" in said and "--seed" in said
