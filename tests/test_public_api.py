"""The names users rely on: present, documented, sorted, and cheap to import."""

import inspect
import subprocess
import sys

import pytest

import saelab
from tests.test_architecture import HEAVY

PROMISED = {
    *("SAE", "ActivationStore", "Normalization", "SparseCodes", "Tokens"),
    *("AbsTopK", "BatchAbsTopK", "BatchTopK", "GroupMax", "JumpReLU", "ReLU", "TopK"),
    *("EvaluateConfig", "Evaluation", "FirstLook", "HarvestConfig", "LanguageModel"),
    *("TrainConfig", "TrainResult", "Trainer"),
    *("corpora", "export", "formats", "objectives", "tokens"),
    *("evaluate", "harvest", "load_model", "look", "sweep", "train"),
    *("SaelabError", "CheckpointError", "ConfigError", "CorpusError", "DataError"),
    *("DiskFullError", "FolderBusyError", "FormatError", "HookPointError", "Interrupted"),
    *("ModelError", "ShapeError", "StoreError"),
    *("Atlas", "AtlasConfig", "build_atlas"),
    *("Choice", "Gated", "GradientTopK", "MatchingPursuit", "NormMatching", "SparseCoding"),
    *("FinetuneConfig", "FinetuneResult", "finetune"),
    *("CrossLayerTranscoder", "train_cross_layer", "Crosscoder", "train_crosscoder"),
    *("replacement_effects", "load_set", "train_set"),
    *("ablate", "clamp", "intervene", "scale", "splice", "steer"),
    *("TraceConfig", "trace"),
}


def test_the_public_names_are_exactly_the_promised_ones() -> None:
    assert set(saelab.__all__) == PROMISED


def test_the_public_names_are_sorted_and_each_is_there_once() -> None:
    assert len(saelab.__all__) == len(set(saelab.__all__))
    # ruff's order for __all__: SCREAMING_CASE, then CamelCase, then snake_case
    kinds = [(0 if n.isupper() else 1 if n[0].isupper() else 2, n) for n in saelab.__all__]
    assert kinds == sorted(kinds)


@pytest.mark.parametrize("name", sorted(PROMISED))
def test_every_public_name_is_documented(name: str) -> None:
    text = inspect.getdoc(getattr(saelab, name))
    assert text
    assert len(text.splitlines()[0]) > 10
    assert not text.startswith(f"{name}("), "this is the docstring that @dataclass makes up"


@pytest.mark.parametrize("name", sorted(n for n in PROMISED if inspect.isclass(getattr(saelab, n))))
def test_every_public_method_is_documented(name: str) -> None:
    cls = getattr(saelab, name)
    bare = [
        member
        for member, value in vars(cls).items()
        if not member.startswith("_")
        and (inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod))
        and not inspect.getdoc(getattr(cls, member))
    ]
    assert not bare


def test_every_error_is_public_and_a_saelab_error() -> None:
    from saelab import errors

    assert set(errors.__all__) <= set(saelab.__all__)
    assert all(issubclass(getattr(errors, name), saelab.SaelabError) for name in errors.__all__)


def test_harvest_evaluate_train_and_look_are_functions_and_tokens_is_a_module() -> None:
    assert all(
        inspect.isfunction(f)
        for f in (saelab.harvest, saelab.evaluate, saelab.train, saelab.look, saelab.load_model)
    )
    assert inspect.ismodule(saelab.tokens)
    assert inspect.isfunction(saelab.tokens.from_text)


def test_importing_saelab_imports_nothing_heavy_beyond_torch() -> None:
    program = (
        "import sys, torch; before = set(sys.modules); import saelab; "
        "print(*sorted({m.partition('.')[0] for m in set(sys.modules) - before}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    new = set(done.stdout.split())
    assert "saelab" in new
    assert not new & HEAVY
    # whatever else a new dependency would bring in has to be added here on purpose
    third_party = new - set(sys.stdlib_module_names) - {"saelab"}
    expected = {"einops", "jaxtyping", "numpy", "safetensors", "wadler_lindig"}
    assert {name for name in third_party if not name.startswith("_")} <= expected
