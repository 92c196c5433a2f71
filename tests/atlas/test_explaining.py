"""Are latents described and judged as they should be? Against a real HTTP server."""

import re

import pytest

from saelab.atlas.endpoint import Endpoint
from saelab.atlas.explaining import ExplainConfig, explain, explain_cost
from saelab.atlas.explanations import Explanations
from saelab.atlas.windows_shown import Judgement, numbers_in, split_examples
from saelab.errors import ConfigError, ModelError
from tests.atlas.cases import built


def none(question):
    return "none" if "Description:" in question else "something"


@pytest.fixture
def atlas(tmp_path):
    return built(tmp_path, top=6, per_quantile=4, near_misses=8)


def alive(atlas, n=2):
    query = "SELECT latent FROM tails WHERE count >= 20 GROUP BY latent HAVING count(*) = 2 LIMIT ?"
    return atlas.sql(query, [n])["latent"].tolist()


def test_a_judge_that_says_none_gets_one_half_balanced_and_ten_in_fourteen_raw(serve, atlas):
    latents = alive(atlas)
    server = serve(none)
    table = explain(atlas, server.endpoint, latents, ExplainConfig(scorers=("detection",)))
    assert table["detection"].tolist() == [0.5] * len(latents) * 2
    for score in Explanations(atlas.folder / "explanations.sqlite").scores():
        details = score["details"]
        assert (details["positives"], details["negatives"]) == (4, 10)
        assert details["accuracy"] == pytest.approx(10 / 14)
        assert details["f1"] == details["recall"] == 0
        assert details["precision"] is None


def test_a_judge_that_sees_the_activations_gets_full_marks(serve, atlas):
    latents = alive(atlas, 1)
    card = atlas.latent(latents[0])
    firing = {tail.sign: {one.tokens for one in tail.examples} for tail in card.tails}
    texts = {" ".join("".join(tokens).split()) for some in firing.values() for tokens in some}

    def knowing(question):
        if "Which of these" not in question:
            return "something"
        windows = re.findall(r"^(\d+)\. (.*)$", question, re.M)
        return str([int(number) for number, window in windows if window in texts])

    table = explain(atlas, serve(knowing).endpoint, latents, ExplainConfig(scorers=("detection",)))
    assert min(table["detection"].tolist()) >= 0.9


def test_guessing_the_true_activations_correlates_perfectly(serve, atlas):
    latents = alive(atlas, 1)
    tails = {t.sign: t for t in atlas.latent(latents[0]).tails}
    windows = [one for tail in tails.values() for one in (*tail.examples, *tail.near_misses)]

    def simulating(question):
        if "How active" not in question:
            return "something"
        listed = re.findall(r"^\d+: (.*)$", question, re.M)
        for one in windows:
            if [repr(token) for token in one.tokens] == listed:
                top = tails[one.sign].max
                return str([round(10 * max(0, one.sign * v) / top) for v in one.activations])
        return str([0] * len(listed))

    config = ExplainConfig(scorers=("simulation",))
    table = explain(atlas, serve(simulating).endpoint, latents, config)
    assert min(table["simulation"].tolist()) > 0.95


def test_what_cannot_be_read_is_no_score(serve, atlas):
    config = ExplainConfig(scorers=("detection", "fuzzing", "simulation", "output"))
    table = explain(atlas, serve(lambda _: "who knows").endpoint, alive(atlas, 1), config)
    assert all(
        table[name].isna().to_numpy().all() for name in ("detection", "fuzzing", "simulation")
    )
    assert table["output"].tolist() == [0.0, 0.0]


def test_the_output_judge_who_finds_the_promoted_tokens_is_right(serve, atlas):
    (latent,) = alive(atlas, 1)
    own = {
        ", ".join(repr(one.token) for one in tail.promoted) for tail in atlas.latent(latent).tails
    }

    def choosing(question):
        lists = re.findall(r"^(\d+)\. (.*)$", question, re.M)
        return str([int(number) for number, words in lists if words in own])

    config = ExplainConfig(scorers=("output",))
    table = explain(atlas, serve(choosing).endpoint, [latent], config)
    assert table["output"].tolist() == [1.0, 1.0]


def test_nothing_is_sent_when_the_cost_is_asked_and_it_is_what_is_sent_then(serve, atlas):
    server, latents = serve(none), alive(atlas)
    cost = explain_cost(atlas, server.endpoint, latents)
    assert server.requests == []
    explain(atlas, server.endpoint, latents)
    assert cost.requests == len(server.requests) == 3 * 2 * len(latents)
    assert cost.answered == 0
    sent = sum(len(m["content"]) for request in server.requests for m in request["messages"])
    assert cost.prompt_tokens == pytest.approx(sent / 4, rel=0.3)
    assert f"{cost.requests} requests" in cost.describe()
    again = explain_cost(atlas, server.endpoint, latents)
    assert (again.requests, again.answered) == (0, cost.requests)


def test_an_interrupted_run_asks_nothing_twice(serve, atlas):
    server, latents = serve(none), alive(atlas)
    calls = {"n": 0}

    def failing(question):
        calls["n"] += 1
        if calls["n"] == 4:
            return "not json"
        return none(question)

    broken = serve(failing)
    with pytest.raises(ModelError, match="answered something that is not JSON"):
        explain(atlas, broken.endpoint, latents)
    first = len(broken.requests)
    table = explain(atlas, broken.endpoint, latents)
    assert len(table) == 2 * len(latents)
    whole = explain_cost(atlas, server.endpoint, latents).requests
    assert len(broken.requests) == first + whole - 3


def test_cards_tables_and_search_know_the_description(serve, atlas):
    (latent,) = alive(atlas, 1)
    explain(atlas, serve(lambda q: "[1]" if "Desc" in q else "Talk of Xanadu").endpoint, [latent])
    card = atlas.latent(latent)
    assert card.label == "Talk of Xanadu"
    made = next(one for one in card.labels if one.kind == "llm")
    assert (made.source, made.score_name) == ("tester", "detection")
    assert 0 <= made.score <= 1
    assert atlas.search("xanadu")[0].field == "llm"
    assert atlas.latents("llm_label <> ''")["latent"].tolist() == [latent]
    assert len(atlas.sql("SELECT * FROM explanations")) == 2
    atlas.annotate(latent, label="mine")
    assert atlas.latent(latent).label == "mine"


def test_explaining_and_testing_windows_share_no_row(atlas):
    for latent in range(atlas.d_sae):
        for tail in atlas.latent(latent).tails:
            explaining, testing = split_examples(tail, 6, 4, 4)
            assert not {one.row for one in explaining} & {one.row for one in testing}
            assert len({one.row for one in testing}) == len(testing)


def test_a_busy_service_is_asked_again_and_a_refusal_is_not(serve, atlas, monkeypatch):
    (latent,) = alive(atlas, 1)
    busy = serve(none)
    busy.failures = [(503, "busy")]
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    explain(atlas, busy.endpoint, [latent], ExplainConfig(scorers=()))
    assert busy.headers[0]["Authorization"] == "Bearer secret"
    assert b"secret" not in (atlas.folder / "explanations.sqlite").read_bytes()
    refusing = serve(none)
    refusing.failures = [(401, "no"), (401, "no")]
    with pytest.raises(ModelError, match=r"does not answer \(401 Unauthorized\)"):
        explain(atlas, refusing.endpoint, [latent], ExplainConfig(scorers=()))
    assert len(refusing.headers) == 1


def test_a_service_that_is_not_there_is_said_to_be(atlas):
    nobody = Endpoint(url="http://127.0.0.1:9/v1", model="x", retries=0)
    with pytest.raises(ModelError, match="does not answer"):
        explain(atlas, nobody, alive(atlas, 1))


def test_judgements_by_hand():
    # named 1, 2, 9 of four positives (1-4) and six negatives: 2 hits, 1 false alarm
    judged = Judgement.of([1, 2, 9, 77], [True] * 4 + [False] * 6)
    assert (judged.hits, judged.false_alarms) == (2, 1)
    assert judged.balanced_accuracy == pytest.approx((2 / 4 + 5 / 6) / 2)
    assert judged.accuracy == pytest.approx(7 / 10)
    assert judged.precision == pytest.approx(2 / 3)
    assert judged.f1 == pytest.approx(2 * 2 / (3 + 4))


@pytest.mark.parametrize(
    ("reply", "numbers"),
    [("[1, 4]", [1, 4]), ("none", []), ("[]", []), ("1 and 3", [1, 3]), ("No idea", None)],
)
def test_replies_are_read(reply, numbers):
    assert numbers_in(reply) == numbers


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Endpoint(url="file:///etc/passwd", model="x"), "must begin with http"),
        (lambda: Endpoint(url="http://a", model=""), "say which model"),
        (lambda: ExplainConfig(scorers=("magic",)), "there are detection"),
        (lambda: ExplainConfig(positives=0), "must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
