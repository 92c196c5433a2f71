"""Open our graphs and sets with circuit-tracer itself, and record what it makes of them.

Run by `make golden` where circuit-tracer, torch and transformers are installed, but not saelab:

    python tests/golden/circuit_tracer/make.py

graphs/<slug>.json      read by its own model of the file, entered in its index by its own function,
                        and by the page's own `formatData`, which needs node: <slug>.page.json
relu/, jumprelu/        opened by `load_transcoder_set`: expected.safetensors
"""

import json
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import torch
import yaml
from circuit_tracer.frontend.graph_models import Model
from circuit_tracer.frontend.utils import add_graph_metadata
from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set
from safetensors.torch import save_file

FOLDER = Path(__file__).parent
ASSETS = files("circuit_tracer") / "frontend" / "assets"


def read_graphs() -> None:
    folder = FOLDER / "graphs"
    known = json.loads((folder / "graph-metadata.json").read_text())
    for path in sorted(folder.glob("*.json")):
        if path.name == "graph-metadata.json" or path.name.endswith(".page.json"):
            continue
        text = path.read_text()
        model = Model.model_validate_json(text)
        assert len(model.nodes) == len(json.loads(text)["nodes"]), path
        mine = next(one for one in known["graphs"] if one["slug"] == model.metadata.slug)
        assert mine == json.loads(text)["metadata"], f"{path}: the index says otherwise"
        node = shutil.which("node")
        if node is None:
            raise SystemExit("The page's function needs node, which is not on the PATH.")
        made = subprocess.run(
            [node, str(FOLDER / "page.js"), str(ASSETS), str(path)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        path.with_suffix(".page.json").write_text(made.stdout)
    # Its own writer of the index finds ours readable, and leaves the other graphs in it.
    shutil.copy(folder / "graph-metadata.json", FOLDER / "index-again.json")
    add_graph_metadata({**known["graphs"][0], "slug": "another"}, str(FOLDER / "index-again.json"))
    again = json.loads((FOLDER / "index-again.json").read_text())
    (FOLDER / "index-again.json").unlink()
    assert again["graphs"][:-1] == known["graphs"]


def open_sets() -> None:
    for folder in (FOLDER / "relu", FOLDER / "jumprelu"):
        config = yaml.safe_load((folder / "config.yaml").read_text())
        paths = {n: str(folder / f"layer_{n}.safetensors") for n in range(2)}
        found = load_transcoder_set(
            paths,
            folder.name,
            config["feature_input_hook"],
            config["feature_output_hook"],
            device=torch.device("cpu"),
            lazy_encoder=False,
            lazy_decoder=False,
        )
        x = 5 * torch.randn(2, 24, 6, generator=torch.Generator().manual_seed(0)) + 1
        with torch.no_grad():
            latents = found.encode(x)
            recons = found.decode(latents, x)
        tensors = {"x": x, "latents": latents, "recons": recons}
        save_file(
            {name: one.contiguous() for name, one in tensors.items()},
            folder / "expected.safetensors",
        )


if __name__ == "__main__":
    read_graphs()
    open_sets()
