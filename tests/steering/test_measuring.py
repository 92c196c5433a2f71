"""A direction that is planted to work is told from pushes that only disturb, and costs are real."""

import dataclasses
import json
import math
from typing import Any

import pytest
import torch

from saelab.activation_functions import AbsTopK, TopK
from saelab.errors import CheckpointError, ConfigError
from saelab.fidelity import next_token_kl
from saelab.models import load_model
from saelab.sae import SAE
from saelab.steering import (
    Detector,
    Direction,
    Push,
    PushAlong,
    Scorer,
    SteeringConfig,
    SteeringReport,
    Words,
    intervene,
    latent_direction,
    latents_for_words,
    mean_norm,
    measure_steering,
    output_scores,
    side_by_side,
    word_tokens,
)
from saelab.steering.ratings import halves
from tests.tiny_models import sentences, tiny_language_model, tiny_llama, tiny_tokenizer

HOOK = "blocks.2.hook_resid_post"
PROMPTS = ["The cat", "A dog ran", "The dog"]
HELD_OUT = sentences(2)
CONFIG = SteeringConfig(strengths=(0.5, 2.0), max_new_tokens=5)


@pytest.fixture(scope="module")
def model():
    model: Any = tiny_language_model()
    model._end_token_ids = frozenset()
    return model


@pytest.fixture(scope="module")
def sae(model):
    """A dictionary whose latent 0 writes what makes the letter "e" likely, through the final norm's
    gain, and whose latent 1 writes the opposite."""
    sae = SAE(model.d_model, 24, TopK(3), hook=HOOK, seed=1)
    gain = model.module.model.norm.weight
    e = model.encode("e")[0]
    with torch.no_grad():
        sae.W_dec[0] = torch.nn.functional.normalize(model.module.lm_head.weight[e] * gain, dim=0)
        sae.W_dec[1] = -sae.W_dec[0]
    return sae


@pytest.fixture(scope="module")
def report(model, sae):
    return measure_steering(
        model,
        [latent_direction(sae, 0), latent_direction(sae, 1)],
        prompts=PROMPTS,
        concept=["e"],
        held_out=HELD_OUT,
        sae=sae,
        config=CONFIG,
    )


def test_the_planted_latent_gains_more_than_any_control_and_its_opposite_loses(report):
    planted, opposite, *controls = report.curves
    assert [one.control for one in report.curves] == [False, False, True, True]
    weak, strong = planted.points
    assert report.gain(strong) > report.gain(weak) > 0.5
    assert report.gain(opposite.points[1]) < report.gain(opposite.points[0]) < 0
    for control in controls:
        assert report.gain(control.points[1]) < report.gain(weak)
    assert all(one.text == "eeeee" for one in strong.outcomes)


def test_every_push_has_the_same_length_and_costs_more_when_it_is_longer(report, model):
    norm = mean_norm(model, HOOK, PROMPTS)
    assert report.norms == {HOOK: pytest.approx(norm)}
    for curve in report.curves:
        assert [one.length for one in curve.points] == pytest.approx([0.5 * norm, 2 * norm])
        weak, strong = curve.points
        assert 0 < weak.kl_held_out < strong.kl_held_out
    assert report.clean.kl_held_out == 0 == report.clean.kl


@pytest.mark.parametrize("place", [1, 2])
def test_a_point_is_what_one_would_measure_by_hand(report, model, sae, place):
    """Every number of one prompt at one strength, from logits, the prompt all by itself."""
    point = report.curves[0].points[0]
    one = point.outcomes[place]
    row = torch.tensor([[0, *model.encode(PROMPTS[place])]])
    start = row.shape[1]
    push = PushAlong(latent_direction(sae, 0).of_norm(1.0), point.length)
    with intervene(model, [push]):
        ids = model.generate(row, 5)
        steered = model.logits(ids)[0, start - 1 : -1].double().log_softmax(-1)
    clean = model.logits(ids)[0, start - 1 : -1].double().log_softmax(-1)
    new = ids[0, start:]
    assert 0 not in new.tolist(), "a text that ends early is cut"
    alone = model.logits(torch.cat([row[0, :1], new])[None])[0, :-1].double().log_softmax(-1)
    places = torch.arange(len(new))
    loss, loss_alone = -clean[places, new].mean(), -alone[places, new].mean()
    assert one.text == model.decode(new.tolist())
    assert one.concept == pytest.approx(float(steered[:, model.encode("e")[0]].mean()), abs=1e-5)
    assert one.loss == pytest.approx(float(loss), abs=1e-5)
    assert one.relevance == pytest.approx(float(loss_alone - loss), abs=1e-5)
    kl = (clean.exp() * (clean - steered)).sum(-1).mean()
    assert one.kl == pytest.approx(float(kl), abs=1e-5)
    pairs = list(zip(new[:-1].tolist(), new[1:].tolist(), strict=True))
    assert one.repetition == pytest.approx(1 - len(set(pairs)) / 4)


def test_a_text_ends_at_its_first_special_token(model):
    """A direction that makes the end of text likely; what follows it would be filling."""
    with torch.no_grad():
        end = model.module.lm_head.weight[0] * model.module.model.norm.weight
    ending = Direction(vector=end.clone(), hook=HOOK, name="end")
    ask = {"concept": ["e"], "held_out": HELD_OUT[:1]}
    config = dataclasses.replace(CONFIG, strengths=(5.0,))
    found = measure_steering(model, [ending], prompts=PROMPTS[:1], config=config, **ask)
    assert [one.text for one in found.curves[0].points[0].outcomes] == ["<|endoftext|>"]
    assert found.curves[0].points[0].outcomes[0].repetition == 0


def test_side_effects_average_over_all_held_out_predictions(report, model, sae):
    point = report.curves[0].points[0]
    push = PushAlong(latent_direction(sae, 0).of_norm(1.0), point.length)
    losses, kls, clean_losses = [], [], []
    for text in HELD_OUT:
        row = torch.tensor([[0, *model.encode(text)]])
        clean = model.logits(row)[0, :-1]
        with intervene(model, [push]):
            steered = model.logits(row)[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(steered, row[0, 1:], reduction="none"))
        clean_losses.append(torch.nn.functional.cross_entropy(clean, row[0, 1:], reduction="none"))
        kls.append(next_token_kl(clean, steered))
    assert point.ce_held_out == pytest.approx(float(torch.cat(losses).mean()), abs=1e-5)
    assert point.kl_held_out == pytest.approx(float(torch.cat(kls).mean()), abs=1e-6)
    change = float(torch.cat(losses).mean() - torch.cat(clean_losses).mean())
    assert report.ce_change(point) == pytest.approx(change, abs=1e-5)


def test_turning_a_direction_and_its_strengths_mirrors_the_sweep(model, sae, report):
    turned = measure_steering(
        model,
        [dataclasses.replace(-latent_direction(sae, 0), name="turned")],
        prompts=PROMPTS,
        concept=["e"],
        held_out=HELD_OUT,
        config=dataclasses.replace(CONFIG, strengths=(-2.0, -0.5)),
    )
    for there, back in zip(report.curves[0].points, reversed(turned.curves[0].points), strict=True):
        assert back.strength == -there.strength
        assert back.outcomes == there.outcomes
        assert (back.ce_held_out, back.kl_held_out) == (there.ce_held_out, there.kl_held_out)


def test_the_report_survives_its_file_and_an_altered_one_is_refused(report, tmp_path):
    path = report.save(tmp_path / "report.json")
    assert SteeringReport.load(path) == report
    found = json.loads(path.read_text())
    del found["clean"]
    path.write_text(json.dumps(found))
    with pytest.raises(CheckpointError, match="altered"):
        SteeringReport.load(path)
    path.write_text('{"format": "something"}')
    with pytest.raises(CheckpointError, match="not a steering report"):
        SteeringReport.load(path)


def test_controls_are_in_every_figure_and_texts_are_escaped(report, tmp_path):
    for figure in (report.figure(), report.figure("perplexity"), report.figure("ce_held_out")):
        names = [trace.name for trace in figure.data]
        assert names == ["latent 0", "latent 1", "random direction 0", report.curves[3].name]
        assert [trace.line.dash for trace in figure.data] == [None, None, "dot", "dot"]
        assert all(trace.x[0] == figure.data[0].x[0] for trace in figure.data), "all start clean"
    with pytest.raises(ConfigError, match="none of kl_held_out"):
        report.figure("price")
    evil = dataclasses.replace(report.clean.outcomes[0], text="<script>alert(1)</script>")
    clean = dataclasses.replace(report.clean, outcomes=(evil, *report.clean.outcomes[1:]))
    page = dataclasses.replace(report, clean=clean).save_html(tmp_path / "page.html").read_text()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_a_stopped_sweep_goes_on_without_measuring_again(model, sae, report, tmp_path):
    def sweep(strengths, **settings):
        return measure_steering(
            model,
            [latent_direction(sae, 0)],
            prompts=PROMPTS,
            held_out=HELD_OUT,
            config=dataclasses.replace(CONFIG, strengths=strengths),
            folder=tmp_path,
            **{"concept": ["e"], **settings},
        )

    sweep((0.5,))
    before = sorted(tmp_path.iterdir())
    assert len(before) == 3  # unsteered, the latent, a random direction
    stamps = [path.stat().st_mtime_ns for path in before]
    again = sweep((0.5, 2.0))
    assert again.curves[0] == report.curves[0]
    assert len(list(tmp_path.iterdir())) == 5
    assert [path.stat().st_mtime_ns for path in before] == stamps
    sweep((0.5,), concept=["a"])  # another concept shares nothing
    assert len(list(tmp_path.iterdir())) == 8


def test_the_strength_is_chosen_on_one_half_and_reported_on_the_other(report):
    """Two strengths; the first is better on prompt 1 only, the second on prompts 0 and 2 only."""
    clean = report.clean
    bars = report.concept["bars"]

    def outcome(good, place):
        base = clean.outcomes[place]
        return dataclasses.replace(base, concept=base.concept + (bars[1] if good else 0.0))

    def point(strength, goods):
        outcomes = tuple(outcome(good, place) for place, good in enumerate(goods))
        return dataclasses.replace(clean, strength=strength, outcomes=outcomes)

    points = (point(0.5, (False, True, False)), point(2.0, (True, False, True)))
    curve = dataclasses.replace(report.curves[0], points=points)
    assert report.ratings(points[1])[0] == (2, 2, 2)
    chosen = report.chosen(curve)
    assert (chosen.strength, chosen.score_choosing, chosen.score) == (2.0, 2.0, 0.0)
    # What the reporting half says has no say in the choice.
    flipped = dataclasses.replace(curve, points=(points[0], point(2.0, (True, True, True))))
    assert report.chosen(flipped).strength == 2.0
    tied = dataclasses.replace(curve, points=(points[1], point(0.1, (True, False, True))))
    assert report.chosen(tied).strength == 0.1


def test_halves_share_no_prompt_and_cover_all():
    for n in range(2, 9):
        choosing, reporting = halves(n)
        assert sorted(choosing + reporting) == list(range(n))


def test_the_other_concepts_are_scored_on_what_is_written(model, sae):
    direction = Direction(vector=sae.W_dec[0].detach() * 3, hook=HOOK, name="e")
    count = Scorer(function=lambda text: text.count("e"), name="count of e", bars=(1.0, 3.0))
    probe = Detector(direction=direction, bars=(0.5, 1.0))
    for concept in (count, probe):
        found = measure_steering(
            model,
            [direction],
            prompts=PROMPTS[:2],
            concept=concept,
            held_out=HELD_OUT[:1],
            config=dataclasses.replace(CONFIG, strengths=(2.0,)),
        )
        assert found.concept["name"] == concept.name
        outcomes = found.curves[0].points[0].outcomes
        if concept is count:
            assert [one.concept for one in outcomes] == [5.0, 5.0]
            continue
        for one in outcomes:  # read by the unsteered model: the push itself counts for nothing
            row = torch.tensor([[0, *model.encode(one.prompt + one.text)]])
            h = model.activations(row, [HOOK])[HOOK][0, -5:]
            assert one.concept == pytest.approx(float((h @ sae.W_dec[0].detach()).mean()), abs=1e-4)


def test_output_scores_tell_the_latent_that_reaches_the_output(model, sae):
    found = output_scores(model, sae, [0, 1, 2, 3], n_tokens=3)
    assert found.lowered is None
    assert found.raised[0] == found.raised[:3].max()
    one_by_one = [float(output_scores(model, sae, [i], n_tokens=3).raised[0]) for i in range(4)]
    assert found.raised.tolist() == pytest.approx(one_by_one, abs=1e-5)


def test_output_scores_by_their_definition(model, sae):
    found = output_scores(model, sae, [5], n_tokens=4)
    effects = model.logit_effects(sae.W_dec[5:6].detach())[0]
    wanted = effects.topk(4).indices
    row = torch.tensor([[0, *model.encode("From my experience,")]])
    x = model.activations(row, [HOOK])[HOOK][0, -1:]
    length = 10 * float(sae.encode(x).values.max())
    assert found.length == pytest.approx(length, rel=1e-5)
    with intervene(model, [Push(sae, {5: length})], positions=slice(-1, None)):
        p = model.logits(row)[0, -1].double().softmax(-1)
    rank = int(min((p > p[token]).sum() for token in wanted))
    assert float(found.raised[0]) == pytest.approx(
        float(p[wanted].max()) * (1 - rank / len(p)), abs=1e-5
    )


def test_the_two_poles_of_a_signed_latent_trade_places_when_it_is_turned(model):
    def scores(sign):
        sae = SAE(model.d_model, 24, AbsTopK(3), hook=HOOK, seed=1)
        with torch.no_grad():
            sae.W_dec[4] *= sign
            sae.W_enc[:, 4] *= sign
        return output_scores(model, sae, [3, 4], n_tokens=5)

    one, turned = scores(1), scores(-1)
    assert one.lowered is not None and turned.lowered is not None
    assert torch.allclose(one.raised[1], turned.lowered[1], atol=1e-6)
    assert torch.allclose(one.lowered[1], turned.raised[1], atol=1e-6)
    assert torch.allclose(one.best, turned.best, atol=1e-6)


def test_latents_are_found_by_the_words_they_promote(model, sae):
    ids = word_tokens(model, ["e", "a"])
    effects = model.logit_effects(sae.W_dec.detach())
    ratio = effects[:, ids].mean(1) / effects.square().mean(1).sqrt()
    assert latents_for_words(model, sae, ids, 5) == ratio.topk(5).indices.tolist()
    ids = word_tokens(model, ["e"])
    assert latents_for_words(model, sae, ids, 1) == [0]
    scores = output_scores(model, sae, [0, 1, 2], tokens=ids, factor=100.0)
    # Ranks: the planted latent makes it the likeliest token, its opposite the unlikeliest.
    assert float(scores.raised[0]) > 100 * float(scores.raised[1:].max())


def test_the_output_score_goes_to_one_for_a_direction_that_only_one_token_reads():
    """Where W_U has a token along one axis alone, a strong push along it makes it certain."""
    inner = tiny_llama(2)
    with torch.no_grad():
        inner.lm_head.weight[:, 7] = 0
        inner.lm_head.weight[50] = 0
        inner.lm_head.weight[50, 7] = 3.0
        inner.model.norm.weight[7] = 1.0
        inner.lm_head.weight[:, 9] = 0  # and an axis that nothing reads
    own = load_model(inner, tokenizer=tiny_tokenizer(), name="one reader", device="cpu")
    sae = SAE(own.d_model, own.d_model, TopK(3), hook=HOOK, seed=1)
    with torch.no_grad():
        sae.W_dec.copy_(torch.eye(own.d_model))
    ids = torch.tensor([50])
    weak = output_scores(own, sae, [7], tokens=ids, factor=0.01)
    strong = output_scores(own, sae, [7, 9], tokens=ids, factor=1e4)
    assert float(strong.raised[0]) > 0.999 > float(weak.raised[0])
    assert float(strong.raised[1]) < 0.05


def test_side_by_side_agrees_with_the_models_own_numbers(model, sae):
    found = side_by_side(model, [Push(sae, {0: 30.0})], "The cat", max_new_tokens=4, n_next=3)
    assert found.steered == "eeee" != found.clean
    row = torch.tensor([[0, *model.encode("The cat")]])
    clean = model.logits(row)[0, -1].double().softmax(-1)
    with intervene(model, [Push(sae, {0: 30.0})]):
        steered = model.logits(row)[0, -1].double().softmax(-1)
    first = found.next_tokens[0]
    assert (first.token, first.id) == ("e", model.encode("e")[0])
    assert first.clean == pytest.approx(float(clean[first.id]), abs=1e-5)
    assert first.steered == pytest.approx(float(steered[first.id]), abs=1e-5)
    assert found.kl_prompt == pytest.approx(
        float((clean * (clean.log() - steered.log())).sum()), abs=1e-5
    )
    same = side_by_side(model, [Push(sae, {0: 0.0})], "The cat", max_new_tokens=4)
    assert same.clean == same.steered
    assert same.kl_text == 0 and same.perplexity_clean == same.perplexity_steered
    assert math.isfinite(same.perplexity_clean)


def test_mistakes_are_refused(model, sae):
    one = latent_direction(sae, 0)
    ask: dict[str, Any] = {"prompts": PROMPTS, "concept": ["e"], "held_out": HELD_OUT}
    with pytest.raises(ConfigError, match="no direction"):
        measure_steering(model, [], **ask)
    with pytest.raises(ConfigError, match="called 'latent 0'"):
        measure_steering(model, [one, one], **ask)
    with pytest.raises(ConfigError, match="single token"):
        measure_steering(model, [one], **{**ask, "concept": ["several letters"]})
    with pytest.raises(ConfigError, match="from 0, which is always measured"):
        SteeringConfig(strengths=(0.0, 1.0))
    with pytest.raises(ConfigError, match="Without a control"):
        SteeringConfig(random_directions=0)
    with pytest.raises(ConfigError, match="the smaller first"):
        Words(words=("e",), bars=(2.0, 1.0))
    with pytest.raises(ConfigError, match="0 to 23"):
        output_scores(model, sae, [24])
