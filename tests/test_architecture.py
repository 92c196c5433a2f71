"""The shape of the code base: which file may import which, checked on the syntax tree."""

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LAYERS = (
    "errors",
    "untrusted_text",
    "files",
    "signals",
    "distributed",
    "sparse_codes",
    "kernels",
    "proximal",
    "zipf_curve",
    "activation_functions",
    "normalization",
    "dictionary_files",
    "pair_forward",
    "directions",
    "sae",
    "pursuit",
    "decoder_norms",
    "objectives",
    "hook_points",
    "models",
    "corpora",
    "tokens",
    "store",
    "harvesting",
    "metrics",
    "effective_dimension",
    "decoder_geometry",
    "planted",
    "run_folders",
    "training",
    "crosscoders",
    "cross_layer",
    "same_model",
    "positions",
    "fidelity",
    "finetuning",
    "measuring",
    "replacement_model",
    "plots",
    "norm_geometry",
    "report",
    "evaluation_page",
    "evaluation",
    "latent_tails",
    "logit_effects",
    "latent_page",
    "latents",
    "atlas",
    "formats",
    "steering",
    "probing",
    "codebooks",
    "yardstick",
    "graphs",
    "circuits",
    "attention_circuits",
    "transcoder_circuits",
    "code_circuits",
    "shift",
    "patching",
    "geometry",
    "documents",
    "embeddings",
    "geometry_survey",
    "run_summaries",
    "run_figures",
    "prompts",
    "recipes",
    "sweeps",
    "transcoder_sets",
    "transcoder_sets_page",
    "pareto",
    "atlas_figures",
    "latent_map",
    "lobe_figures",
    "crystal_figures",
    "family_figures",
    "document_figures",
    "planning",
    "doctor",
    "quickstart",
    "cli",
    "__main__",
)
"""Modules and sub-packages of saelab; each imports only from those before it."""

HEAVY = frozenset(
    {
        "datasets",
        "duckdb",
        "numba",
        "pandas",
        "plotly",
        "pyarrow",
        "sklearn",
        "streamlit",
        "tensorboard",
        "tqdm",
        "transformer_lens",
        "transformers",
        "umap",
        "wandb",
    }
)
"""Imported inside the functions that use them, so that `import saelab` costs no more than torch."""

OUTSIDE = frozenset({"app", "benchmarks", "notebooks", "probes", "tests", "trainers"})
"""Folders beside the library, which it never imports."""

PROGRAMS = frozenset({"app", "benchmarks", "probes", "trainers"})
"""Folders of programs, which meet on disk and never import each other."""


def violations(root: Path, layers: tuple[str, ...] = LAYERS) -> list[str]:
    """Every broken rule in a source tree, as `file:line: what`."""
    found = []
    for path in sorted((root / "saelab").rglob("*.py")):
        found += _in_library(path, root, layers)
    for folder in sorted(PROGRAMS):
        for path in sorted((root / folder).rglob("*.py")):
            for line, module, _ in _imports(path, root):
                if module.partition(".")[0] in (PROGRAMS | {"tests"}) - {folder}:
                    found.append(f"{_at(path, root, line)}: {folder} imports {module}")
    present = {_unit(path, root) for path in (root / "saelab").rglob("*.py")} - {""}
    missing = sorted(present - set(layers))
    return found + [
        f"saelab.{unit}: not in LAYERS; give it a place in the order" for unit in missing
    ]


def _in_library(path: Path, root: Path, layers: tuple[str, ...]) -> list[str]:
    found = []
    own = _unit(path, root)
    for line, module, at_top in _imports(path, root):
        place = _at(path, root, line)
        package, _, rest = module.partition(".")
        if module.startswith("."):
            found.append(f"{place}: relative import of {module}")
        if package in OUTSIDE:
            found.append(f"{place}: the library imports {module}")
        if package in HEAVY and at_top:
            found.append(f"{place}: {package} is imported at the top; import it where it is used")
        unit = rest.partition(".")[0]
        if package == "saelab" and own and unit and own != unit:
            order = {name: index for index, name in enumerate(layers)}
            if order.get(unit, -1) > order.get(own, len(layers)):
                found.append(f"{place}: {own} imports {unit}, which comes after it")
        if package == "saelab" and own and not unit:
            found.append(f"{place}: {own} imports the package itself; import the module it needs")
    return found


def lens_users(root: Path) -> list[str]:
    """Files of the library that import transformer_lens."""
    return [
        path.relative_to(root).as_posix()
        for path in sorted((root / "saelab").rglob("*.py"))
        if any(
            module.partition(".")[0] == "transformer_lens" for _, module, _ in _imports(path, root)
        )
    ]


def _imports(path: Path, root: Path) -> Iterator[tuple[int, str, bool]]:
    """(line, module, whether it is imported when the file is) for every import of a file.

    `from saelab import tokens` counts as an import of saelab.tokens; what only the type checker
    reads (`if TYPE_CHECKING:`) counts for the layers but is never a cost, so not as at the top.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    yield from _walk(tree, root, at_top=True)


def _walk(node: ast.AST, root: Path, at_top: bool) -> Iterator[tuple[int, str, bool]]:
    for child in ast.iter_child_nodes(node):
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield child.lineno, alias.name, at_top
        elif isinstance(child, ast.ImportFrom):
            module = "." * child.level + (child.module or "")
            for alias in child.names:
                part = root / "saelab" / alias.name
                is_part = module == "saelab" and (part.is_dir() or part.with_suffix(".py").exists())
                yield child.lineno, f"saelab.{alias.name}" if is_part else module, at_top
        else:
            yield from _walk(child, root, at_top and not (inside or for_types))


def _unit(path: Path, root: Path) -> str:
    """The module or sub-package of saelab a file belongs to; "" for saelab/__init__.py."""
    first = path.relative_to(root / "saelab").parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def _at(path: Path, root: Path, line: int) -> str:
    return f"{path.relative_to(root).as_posix()}:{line}"


def test_every_import_in_the_tree_follows_the_rules() -> None:
    found = violations(ROOT)
    assert not found, "\n".join(found)


def test_only_one_module_imports_transformer_lens() -> None:
    users = {_unit(ROOT / user, ROOT) for user in lens_users(ROOT)}
    assert users <= {"models"}
    assert len(lens_users(ROOT)) <= 1


def test_every_layer_exists() -> None:
    present = {_unit(path, ROOT) for path in (ROOT / "saelab").rglob("*.py")}
    gone = sorted(set(LAYERS) - present)
    assert not gone, f"in LAYERS but not in saelab: {gone}"


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("files.py", "from saelab.sae import SAE", "files imports sae, which comes after it"),
        ("files.py", "from saelab import sae", "files imports sae, which comes after it"),
        ("files.py", "def f():\n    import saelab.sae", "files imports sae"),
        ("sae.py", "from .errors import ConfigError", "relative import"),
        ("sae.py", "from saelab import SAE", "sae imports the package itself"),
        ("sae.py", "import trainers.topk", "the library imports trainers.topk"),
        ("sae.py", "def f():\n    from tests import tiny_models", "the library imports tests"),
        ("sae.py", "from transformers import AutoModel", "transformers is imported at the top"),
        ("sae.py", "class A:\n    import tqdm", "tqdm is imported at the top"),
        (
            "sae.py",
            "try:\n    import numba\nexcept ImportError: ...",
            "numba is imported at the top",
        ),
        ("new.py", "", "saelab.new: not in LAYERS"),
        ("new/part.py", "", "saelab.new: not in LAYERS"),
        ("../trainers/topk.py", "import probes.pos", "trainers imports probes.pos"),
    ],
)
def test_a_planted_violation_is_found(
    tmp_path: Path, file: str, source: str, complaint: str
) -> None:
    _plant(tmp_path, file, source)
    found = violations(tmp_path)
    assert len(found) == 1
    assert complaint in found[0]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("sae.py", "from saelab.errors import ConfigError\nfrom saelab import files"),
        ("sae.py", "def f():\n    import transformers"),
        ("sae.py", "if TYPE_CHECKING:\n    from transformers import PreTrainedModel"),
        ("kernels/a.py", "from saelab.kernels.b import c"),
        ("__init__.py", "from saelab.sae import SAE"),
        ("../tests/test_sae.py", "import trainers.topk"),
        ("../trainers/topk.py", "import saelab\nfrom trainers.relu import Config"),
    ],
)
def test_what_is_allowed_is_not_complained_about(tmp_path: Path, file: str, source: str) -> None:
    _plant(tmp_path, file, source)
    assert violations(tmp_path) == []


def test_a_second_user_of_transformer_lens_is_found(tmp_path: Path) -> None:
    _plant(tmp_path, "models.py", "def f():\n    import transformer_lens.config")
    _plant(tmp_path, "sae.py", "def f():\n    from transformer_lens import TransformerBridge")
    assert lens_users(tmp_path) == ["saelab/models.py", "saelab/sae.py"]


def _plant(root: Path, file: str, source: str) -> None:
    for name in ("errors", "files", "sae"):
        path = root / "saelab" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    path = root / "saelab" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(source), encoding="utf-8")
