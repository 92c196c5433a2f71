"""The page of circuits: graphs from disk and traced here, pruned, grouped, changed, taken away."""

import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from streamlit.testing.v1 import AppTest

from saelab.circuits import reopen
from saelab.cli import main
from saelab.files import write_json
from saelab.graphs import AttributionGraph
from saelab.models import load_model
from saelab.run_folders import HarvestSource, dictionary_of, record_store
from tests.circuits.circuit_cases import transcoder
from tests.explorer_runs import HOSTILE, PLAIN
from tests.test_explorer_browser import (
    BROWSER,
    ROOT,
    browser,  # noqa: F401 - a fixture
    keep,
    settled,
    visit,  # noqa: F401 - a fixture
)
from tests.tiny_models import tiny_llama, tiny_tokenizer

APP = ROOT / "app"
SECONDS = 90.0
PROMPT = f"the old {HOSTILE[0]} ship came home from"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of two transcoders, one with an atlas, and two graphs of one prompt."""
    root = tmp_path_factory.mktemp("circuits")
    words = (*PLAIN, *HOSTILE[:-1])
    tiny_llama(d_vocab=2 + len(words)).save_pretrained(root / "model")
    tiny_tokenizer(words).save_pretrained(root / "model")
    model = load_model(root / "model", device="cpu")
    runs = root / "runs"
    HarvestSource.asked(str(root / "model"), []).save(runs / "store")
    layers = []
    for layer in (0, 2):
        sae = transcoder(layer, dtype=torch.float32)
        sae.metadata["model"] = model.identity.to_json()
        sae.metadata["data"] = {"model": model.identity.to_json()}
        sae.save(runs / "set" / f"layer_{layer:02d}")
        record_store(runs / "set" / f"layer_{layer:02d}", runs / "store")
        layers.append({"layer": layer, "hook": sae.hook, "folder": f"layer_{layer:02d}"})
    write_json(runs / "set" / "set.json", {"format": "saelab-transcoder-set", "layers": layers})
    text = root / "text.jsonl"
    text.write_text((json.dumps({"text": " ".join(words * 3)}) + "\n") * 20)
    first = runs / "set" / "layer_00"
    asked = ["--text", str(text), "--model", str(root / "model")]
    assert main(["atlas", str(first), *asked]) == 0
    folders = [str(runs / "set" / f"layer_{layer:02d}") for layer in (0, 2)]
    trace = ["trace", *folders, "--prompt", PROMPT, "--model", str(root / "model")]
    trace += ["--max-latents", "30", "--device", "cpu"]
    assert main([*trace, "--out", str(runs / "graphs" / "whole.json")]) == 0
    whole(runs).prune(0.6).save(runs / "graphs" / "pruned.json")
    return runs


@pytest.fixture
def app(runs, monkeypatch):
    """The page at an address."""
    monkeypatch.setattr(sys, "argv", ["streamlit_app.py", str(runs)])

    def opened(**parameters: object) -> AppTest:
        test = AppTest.from_file(str(APP / "streamlit_app.py"), default_timeout=SECONDS)
        test.switch_page("views/circuits.py")
        for name, value in {"run": "set/layer_00", **parameters}.items():
            test.query_params[name] = str(value)
        return fine(test.run())

    return opened


def fine(test: AppTest) -> AppTest:
    assert not test.exception, [one.message for one in test.exception]
    assert not test.error, [one.value for one in test.error]
    return test


def html_of(test: AppTest) -> str:
    bodies = [str(one.proto.body) for one in test.get("html")]
    return "\n".join(body for body in bodies if not body.startswith("<style>"))


def button(test: AppTest, label: str) -> Any:
    return next(one for one in test.button if label in one.label)


def drawn(test: AppTest) -> dict[str, Any]:
    """The figure as it went to the browser."""
    return json.loads(test.get("plotly_chart")[0].proto.spec)


def nodes_drawn(test: AppTest) -> set[str]:
    return {one for trace in drawn(test)["data"] for one in trace.get("customdata", []) if one}


def whole(runs: Path) -> AttributionGraph:
    return AttributionGraph.load(runs / "graphs" / "whole.json")


def test_a_saved_graph_is_shown_with_scores_floors_and_what_its_nodes_are(app, runs):
    graph = whole(runs)
    test = app(graph="graphs/whole", keep=100, edges=100, node=graph.nodes[0].id)
    html = html_of(test)
    assert "the 2 transcoders of <b>set</b>" in html and "of influence ends at the prompt" in html
    assert html.count("with no latents") == 2
    assert nodes_drawn(test) == {node.id for node in graph.nodes}
    # The first latent is of layer 0, which has an atlas; its label is in the drawing as well.
    assert "Fires most on" in html and "What it reads" in html and "all of it sums to" in html
    assert "saelab atlas" in html_of(app(graph="graphs/whole", node=_latent(graph, 2).id))
    for hostile in HOSTILE[:4]:
        assert hostile not in html
        assert hostile not in json.dumps(drawn(test)).encode().decode("unicode_escape")


def _latent(graph: AttributionGraph, layer: int) -> Any:
    return next(one for one in graph.nodes if one.kind == "latent" and one.layer == layer)


def test_the_slider_prunes_and_a_pinned_node_stays(app, runs):
    few = app(graph="graphs/whole", keep=20)
    more = app(graph="graphs/whole", keep=90)
    assert nodes_drawn(few) < nodes_drawn(more)
    gone = sorted(nodes_drawn(more) - nodes_drawn(few))[0]
    assert nodes_drawn(app(graph="graphs/whole", keep=20, pin=gone)) == {*nodes_drawn(few), gone}
    expected = whole(runs).prune(0.2, 0.8)
    assert nodes_drawn(few) == {node.id for node in expected.nodes}
    quiet = app(graph="graphs/whole", keep=90, errors="false")
    kinds = {whole(runs).node(one).kind for one in nodes_drawn(quiet)}
    assert kinds == {"token", "latent", "logit"}
    as_saved = app(graph="graphs/pruned")
    assert as_saved.select_slider(key="keep").disabled
    assert len(nodes_drawn(as_saved)) == len(AttributionGraph.load(runs / "graphs" / "pruned.json"))


def test_a_prompt_is_traced_here_and_the_address_brings_it_back(app):
    test = app()
    test.text_input(key="traced prompt").set_value("the ship came home")
    test.text_input(key="traced target").set_value(" ship")
    fine(button(test, "Trace").click().run())
    assert test.query_params["prompt"] == "the ship came home"
    assert "lead to" in html_of(test) and "<b>ship</b>" in html_of(test)
    alone = app(prompt="the ship came home", latents=50, **{"with": "set/layer_02"})
    assert "Taken apart with set/layer_02" in html_of(alone)


def test_pins_and_groups_are_in_the_address(app, runs):
    graph = whole(runs)
    first, second = (node.id for node in graph.nodes[:2])
    test = app(graph="graphs/whole", keep=100, node=first)
    fine(next(one for one in test.button if one.key == "pin it").click().run())
    assert test.query_params["pin"] == first
    test.text_input(key="group name").set_value("ships: <b>old</b>")
    fine(button(test, "Put it there").click().run())
    assert test.query_params["groups"] == f"ships  <b>old</b>:{first}"
    assert "ships  &lt;b&gt;old&lt;/b&gt;" in html_of(test)
    both = app(graph="graphs/whole", keep=100, groups=f"a:{first},{second}", view="supernodes")
    assert "a" in nodes_drawn(both) and not {first, second} & nodes_drawn(both)
    fine(button(both, "Dissolve a").click().run())
    assert "groups" not in both.query_params
    alike = app(graph="graphs/whole", keep=100, edges=100, alike=0.1)
    groups = graph.group_by_influence(0.1).groups
    assert groups and html_of(alike).count("◯") == min(len(groups), 12)


def test_a_change_is_predicted_and_measured_in_the_model(app, runs):
    graph = whole(runs)
    node = _latent(graph, 2)
    test = app(graph="graphs/whole", node=node.id, factor=2.0, words="true")
    assert "measure it" in html_of(test)
    assert "\u2192" in json.dumps(drawn(test), ensure_ascii=False)
    fine(next(one for one in test.button if one.key == "measure").click().run())
    saes = [dictionary_of(runs / "set" / f"layer_{layer:02d}") for layer in (0, 2)]
    opened = reopen(load_model(runs.parent / "model", device="cpu"), saes, graph)
    for effect in opened.measured({node.id: 2 * node.value}).topk(3).values.tolist():
        assert f"{effect:+.3f}" in html_of(test)
    fine(next(one for one in test.button if one.key == "check").click().run())
    assert "Cosine of predicted and measured" in html_of(test)
    token = app(graph="graphs/whole", node=next(n.id for n in graph.nodes if n.kind == "token"))
    assert "Only a latent" in html_of(token)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ({"graph": "../../etc/passwd"}, "There is no graph"),
        ({"graph": "graphs/whole", "groups": "x"}, "must be up to"),
        ({"graph": "graphs/whole", "pin": ",".join(map(str, range(99)))}, "at most"),
        ({"prompt": "the", "with": "../set"}, "There are no dictionaries"),
        ({"prompt": "the ship " * 80, "latents": 50}, "max_tokens=64"),
        ({"prompt": "the ship", "target": " a ship"}, "and a target is one"),
    ],
)
def test_an_address_that_means_nothing_is_explained(app, address, said):
    assert said in html_of(app(**address))


def test_without_dictionaries_or_model_the_page_says_why(runs, app, tmp_path, monkeypatch):
    whole(runs).save(tmp_path / "alone.json")
    monkeypatch.setattr(sys, "argv", ["streamlit_app.py", str(tmp_path)])
    test = app(run="", graph="alone")
    assert "are not under" in html_of(test)
    assert next(one for one in test.button if one.key == "measure").disabled
    (tmp_path / "alone.json").unlink()
    from explorer import circuit_loaders  # type: ignore[import-not-found]

    circuit_loaders._graphs.clear()
    empty = app(run="")
    assert "nothing to trace with" in html_of(empty)
    assert "trainers.transcoder_set" in empty.code[0].value
    assert circuit_loaders.why_not(circuit_loaders.Source("x", ("x",), "")).startswith("x does not")


def test_every_format_is_made_when_asked(app, runs):
    app(graph="graphs/whole")
    from explorer import graph_files  # type: ignore[import-not-found]

    graph = whole(runs).prune(0.6)
    made = {name: graph_files.file_of(graph, name) for name in graph_files.FILES}
    path = runs.parent / "again.json"
    path.write_bytes(made["saelab"])
    assert AttributionGraph.load(path) == graph
    assert {"nodes", "links"} <= set(json.loads(made["neuronpedia"]))
    assert b"<graphml" in made["graphml"] and made["dot"].startswith(b"digraph")
    assert "elements" in json.loads(made["cytoscape"])
    assert zipfile.ZipFile(io.BytesIO(made["csv"])).namelist() == ["edges.csv", "nodes.csv"]


# In a browser


@pytest.fixture(scope="module")
def address(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running explorer."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "saelab", "explore", str(runs), "--port", str(port)]
    log = (tmp_path_factory.getbasetemp() / "circuits.log").open("wb")
    server = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
    try:
        for _ in range(240):
            try:
                with urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=2):
                    break
            except OSError:
                assert server.poll() is None, "the explorer stopped: see circuits.log"
                time.sleep(0.5)
        yield f"http://localhost:{port}"
    finally:
        server.terminate()
        server.wait(120)
        log.close()


@pytest.mark.skipif(
    BROWSER is None and not os.environ.get("CI"),
    reason="no Chromium was found; `make browser` installs Debian's",
)
@pytest.mark.slow
def test_in_a_browser_a_click_chooses_a_node_and_a_button_gives_a_file(visit):  # noqa: F811
    page = visit("/circuits?run=set/layer_00&graph=graphs/whole&keep=90", "dark")
    assert page.locator('[data-testid="stException"], [data-testid="stAlert"]').count() == 0
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(wide) <= 1, "the page scrolls sideways at 1280 px"
    page.wait_for_selector(".js-plotly-plot .nsewdrag")
    # Where plotly has drawn a logit, in pixels of the window.
    spot = page.evaluate(
        """() => {
            const plot = document.querySelector('.js-plotly-plot'), full = plot._fullLayout;
            const trace = plot.data.find(one => (one.name || '').startsWith('hexagon'));
            const box = plot.querySelector('.nsewdrag').getBoundingClientRect();
            return [box.x + full.xaxis.l2p(trace.x[0]), box.y + full.yaxis.l2p(trace.y[0]),
                    trace.customdata[0]];
        }"""
    )
    page.mouse.move(spot[0] - 3, spot[1])
    page.mouse.move(spot[0], spot[1], steps=3)
    page.mouse.click(spot[0], spot[1])
    page.wait_for_url(f"**node={spot[2]}**")
    settled(page)
    keep(page, "circuits_dark")
    with page.expect_download() as download:
        page.get_by_role("button", name="saelab JSON").click()
    graph = AttributionGraph.load(download.value.path())
    assert graph.pruning is not None and spot[2] in {node.id for node in graph.nodes}
