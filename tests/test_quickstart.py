"""The main job from end to end: small on a tiny model, and (slow) on the default model and text."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from saelab import SAE, ConfigError, Interrupted
from saelab.quickstart import QuickstartConfig, QuickstartResult, quickstart

STAGES = [
    "Load the model",
    "Read and split the text",
    "Harvest activations",
    "Train the dictionary",
    "Evaluate on held-out text",
    "Look at the latents",
]


@contextmanager
def silent(name: str) -> Iterator[Callable[..., None]]:  # noqa: ARG001
    """A stage that shows nothing."""
    yield lambda *_: None


@pytest.fixture
def small(tiny_model_folder: Path, tiny_text_file: Path) -> QuickstartConfig:
    return QuickstartConfig(
        model=str(tiny_model_folder),
        text=str(tiny_text_file),
        hook="blocks.1.hook_resid_post",
        length=32,
        harvest_tokens=8000,
        held_out_tokens=2000,
        loss_tokens=256,
        d_sae=64,
        k=4,
        train_tokens=8192,
        batch_size=512,
    )


def documents_of(tokens) -> set[int]:
    return {*tokens.document.unique().tolist()} - {-1}


def test_the_stages_are_announced_in_order(tmp_path, small):
    seen: list[str] = []

    def stage(name: str):
        seen.append(name)
        return silent(name)

    result = quickstart(tmp_path, small, stage=stage)
    assert seen == STAGES
    assert not documents_of(result.train_tokens) & documents_of(result.held_out)
    assert result.store.n_tokens <= result.train_tokens.n_kept
    assert result.evaluation.data["tokens"]["sha256"] == result.held_out.sha256
    assert all(page.exists() for page in result.pages)


def test_interrupted_in_any_stage_it_goes_on_and_ends_with_the_same_bits(tmp_path, small):
    whole = quickstart(tmp_path / "whole", small, stage=silent)

    def stopping_in(wanted: str):
        @contextmanager
        def stage(name: str) -> Iterator[Callable[..., None]]:
            calls = [0]

            def progress(*_) -> None:
                calls[0] += 1
                if name == wanted and calls[0] == 3:
                    raise KeyboardInterrupt

            yield progress

        return stage

    for name in STAGES[2:4]:
        with pytest.raises((KeyboardInterrupt, Interrupted)):
            quickstart(tmp_path / "cut", small, stage=stopping_in(name))
    finished = quickstart(tmp_path / "cut", small, stage=silent)
    weights = "topk/sae/sae_weights.safetensors"
    assert (tmp_path / "cut" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()
    assert finished.evaluation.summary() == whole.evaluation.summary()


def test_other_settings_in_the_same_folder_are_refused(tmp_path, small):
    import dataclasses

    quickstart(tmp_path, small, stage=silent)
    with pytest.raises(ConfigError, match="holds another run"):
        quickstart(tmp_path, dataclasses.replace(small, k=5), stage=silent)


@pytest.mark.parametrize("field", ["harvest_tokens", "d_sae", "batch_size"])
def test_sizes_must_be_positive(field):
    sizes: dict[str, Any] = {field: 0}
    with pytest.raises(ConfigError, match=f"{field}=0"):
        QuickstartConfig(**sizes)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> QuickstartResult:
    """The default model, text and hook point; a tenth of the default sizes or less."""
    config = QuickstartConfig(
        harvest_tokens=24_000,
        held_out_tokens=4_000,
        loss_tokens=1_024,
        d_sae=1152,
        train_tokens=131_072,
        batch_size=1024,
    )
    return quickstart(tmp_path_factory.mktemp("real"), config, stage=silent)


@pytest.mark.slow
def test_a_dictionary_of_the_default_model_keeps_most_of_its_predictions(real):
    report = real.evaluation
    assert report.losses is not None
    # the model reads this text: 49,152 tokens guessed uniformly would cost ln 49152 = 10.8
    assert report.losses.ce_clean < 5
    assert report.fvu < 0.5
    assert report.l0 == pytest.approx(32, rel=0.05)
    assert report.ce_recovered_zero > 0.9
    assert report.ce_recovered_mean > 0.8
    assert report.losses.ce_clean < report.losses.ce_spliced < report.losses.ce_mean


@pytest.mark.slow
def test_no_held_out_document_of_the_default_text_was_trained_on(real):
    assert not documents_of(real.train_tokens) & documents_of(real.held_out)
    assert real.overlap["share"] < 0.05
    assert real.overlap["duplicate_rows"] == 0


@pytest.mark.slow
def test_the_saved_dictionary_of_the_default_model_is_the_trained_one(real):
    x = real.store.sample(256)
    loaded = SAE.load(real.run / "sae")
    assert loaded.metadata["model"]["name"] == "smollm2"
    assert loaded(x).equal(real.training.sae(x))


@pytest.mark.slow
def test_latents_of_the_default_model_are_described_with_their_contexts(real):
    chosen = real.first_look.pick(5)
    assert len(chosen) == 5
    for latent in chosen:
        said = real.first_look.describe(latent)
        assert "promotes" in said
        assert "«" in said
