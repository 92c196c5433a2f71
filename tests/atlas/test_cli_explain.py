"""Does `saelab explain` show the cost, send only when told, and go on where it stopped?"""

import pytest

from saelab.atlas import Atlas
from saelab.cli import main
from tests.atlas.cases import built


def answer(question):
    return "[1]" if "Description:" in question else "Talk of <b>Xanadu\x1b[31m"


@pytest.fixture
def folder(tmp_path):
    atlas = built(tmp_path / "atlas")
    atlas.annotate(_lively(atlas)[0], starred=True)
    atlas.close()
    return tmp_path


def _lively(atlas):
    query = "SELECT latent FROM tails WHERE count >= 20 GROUP BY latent HAVING count(*) = 2"
    return atlas.sql(query + " ORDER BY latent LIMIT 3")["latent"].tolist()


def words(run, server, *more):
    asked = ("--endpoint", server.endpoint.url, "--model", "tester", "--retries", "0")
    return ["explain", str(run), *asked, *more]


def test_the_cost_is_shown_first_and_nothing_is_sent_without_yes(folder, serve, capsys):
    server = serve(answer)
    assert main(words(folder, server, "--latents", "starred")) == 0
    shown = capsys.readouterr().out
    assert "1 latent of" in shown and server.endpoint.url in shown
    assert "6 requests: about" in shown and "Nothing was sent. Add --yes" in shown
    assert server.requests == []


def test_with_yes_the_descriptions_are_kept_and_asked_for_once(folder, serve, capsys, monkeypatch):
    monkeypatch.setenv("HERE_IS_THE_KEY", "secret")
    server = serve(answer)
    latent = _lively(Atlas.open(folder / "atlas"))[0]
    asked = words(folder, server, "--latents", str(latent), "--yes")
    assert main([*asked, "--key-variable", "HERE_IS_THE_KEY"]) == 0
    shown = capsys.readouterr().out
    assert "2 sides described" in shown and "detection" in shown and "fuzzing" in shown
    assert "Talk of <b>Xanadu" in shown and "\x1b" not in shown
    assert len(server.requests) == 6
    assert {one["Authorization"] for one in server.headers} == {"Bearer secret"}
    assert Atlas.open(folder / "atlas").latent(latent).label.startswith("Talk of")
    assert main(words(folder, server, "--latents", str(latent))) == 0  # free: no --yes needed
    assert "0 requests" in capsys.readouterr().out
    assert len(server.requests) == 6


def test_a_run_that_was_stopped_goes_on(folder, serve, capsys):
    first, second, _ = _lively(Atlas.open(folder / "atlas"))
    server = serve(answer)
    asked = words(folder, server, "--latents", f"{first},{second}", "--scorers", "detection")
    server.failures = [(200, "")]  # an empty answer: not JSON
    assert main([*asked, "--yes"]) == 2
    assert "not JSON" in capsys.readouterr().err
    assert main([*asked, "--yes"]) == 0
    assert len(server.requests) == 2 * 2 * 2
    assert "fuzzing" not in capsys.readouterr().out


def test_another_model_judges_where_it_is_asked_to(folder, serve):
    latent = _lively(Atlas.open(folder / "atlas"))[0]
    server, judge = serve(answer), serve(answer)
    asked = words(folder, server, "--latents", str(latent), "--yes")
    assert main([*asked, "--judge-endpoint", judge.endpoint.url, "--judge-model", "strict"]) == 0
    assert {one["model"] for one in server.requests} == {"tester"}
    assert {one["model"] for one in judge.requests} == {"strict"}
    assert (len(server.requests), len(judge.requests)) == (2, 4)


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("40", "there is no latent 40; the dictionary has 0 to 39"),
        ("3-", "neither a number nor a range"),
        ("9-3", "neither a number nor a range"),
        ("density > 2", "selects no latent"),
        ("nonsense", "DuckDB refuses"),
    ],
)
def test_latents_that_mean_nothing_are_refused(folder, serve, capsys, which, message):
    server = serve(answer)
    assert main(words(folder, server, "--latents", which, "--yes")) == 2
    assert message in capsys.readouterr().err
    assert server.requests == []


def test_a_condition_chooses_latents(folder, serve, capsys):
    atlas = Atlas.open(folder / "atlas")
    assert main(words(folder, serve(answer), "--latents", "density > 0.1")) == 0
    assert f"{atlas.count('density > 0.1')} latents" in capsys.readouterr().out
