"""Run the notebooks in their order, and keep what they print and draw.

    python notebooks/run.py                  # at full size; outputs are stored in the notebooks
    python notebooks/run.py --small OUT      # as a check: small, in folder OUT, nothing is stored

Each notebook has one cell tagged "parameters"; --small puts other values in its place.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SMALL = {
    "1_train": """\
run = Path("runs/quickstart")
positions, held_out_share = 24_000, 0.3
train_tokens, d_sae, k = 24_576, 256, 8
hook = "blocks.2.hook_resid_post"
""",
    "3_steer": """\
run = "runs/quickstart/topk"
concept = ["war", "army", "battle"]
config = SteeringConfig(strengths=(0.4,), max_new_tokens=4)
""",
    "4_probe": """\
run = "runs/quickstart/topk"
per_document, length = 1, 12
""",
    "6_geometry": """\
run = Path("runs/quickstart/topk")
config = SurveyConfig(max_tokens=8_000, lobes=(2, 4), draws=2, shuffles=10)
""",
    "5_circuits": """\
from saelab.run_folders import dictionary_of
dictionaries = dictionary_of("runs/quickstart/topk")
prompt, answers = "The capital of France is", (" Paris", " London")
config = TraceConfig(max_latents=12)
""",
    "2_read_a_latent": """\
run = Path("runs/quickstart/topk")
words = "war"
prompt = "The Congress shall have power to declare war."
""",
}
"""Parameters of a check, by notebook; one that is not here runs as it stands."""


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", help="which notebooks, such as 1_train (all)")
    parser.add_argument("--small", type=Path, metavar="OUT", help="check them in this folder")
    arguments = parser.parse_args()
    paths = sorted(HERE.glob("*.ipynb"))
    if unknown := set(arguments.names) - {path.stem for path in paths}:
        parser.error(f"no notebook {', '.join(sorted(unknown))} in {HERE}")
    for path in paths:
        if not arguments.names or path.stem in arguments.names:
            sys.stderr.write(f"{path.name}\n")
            _run(path, arguments.small)
    return 0


def _run(path: Path, small: Path | None) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    if small is not None and path.stem in SMALL:
        _parameters(notebook, path)["source"] = SMALL[path.stem]
    folder = HERE if small is None else small
    client = NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(folder)}})
    client.execute()
    if small is None:
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # times of day
            if cell.cell_type == "code":  # progress bars and warnings name this machine's folders
                cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
        nbformat.write(notebook, path)


def _parameters(notebook: Any, path: Path) -> Any:
    tagged = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    if len(tagged) != 1:
        sys.exit(f"{path}: {len(tagged)} cells are tagged 'parameters'; there must be one")
    return tagged[0]


if __name__ == "__main__":
    sys.exit(main())
