"""The wheel holds saelab and nothing else, and works where the source tree is not."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from this tree, with the backend that is installed here."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_installs_saelab_and_no_other_name(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.partition("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"saelab"}
    assert len(top) == 2


def test_the_wheel_has_every_file_of_the_library(wheel: Path) -> None:
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("saelab/")}
    source = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "saelab").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    source |= {
        f"saelab/explorer_app/{path.relative_to(ROOT / 'app').as_posix()}"
        for path in (ROOT / "app").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "saelab/py.typed" in inside
    assert inside == source


def test_the_wheel_carries_its_licence_and_the_command(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (info,) = {n.partition("/")[0] for n in archive.namelist() if ".dist-info/" in n}
    assert "MIT License" in archive.read(f"{info}/licenses/LICENSE").decode()
    assert "saelab = saelab.cli:main" in archive.read(f"{info}/entry_points.txt").decode()


def test_the_installed_wheel_works_away_from_the_source_tree(wheel: Path, tmp_path: Path) -> None:
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, "--target", tmp_path, wheel], check=True)
    # -I shuts out PYTHONPATH and the current folder; what an editable install puts on the path
    # comes after our folder, and the printed place shows which one was imported
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import saelab, torch\n"
        "from saelab.cli import main\n"
        "print(saelab.__file__)\n"
        "sae = saelab.SAE(4, 8, saelab.TopK(2))\n"
        "print(sae(torch.eye(4)).shape[0], main(['train', 'nowhere', '--out', 'x']))\n"
    )
    command = [sys.executable, "-I", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    place, result = done.stdout.splitlines()
    assert place == str(tmp_path / "saelab" / "__init__.py")
    assert result == "4 2"
