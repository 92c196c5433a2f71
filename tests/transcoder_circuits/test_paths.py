"""Greedy paths: with no limit they are all paths, and what a step leaves sums to what it had."""

import math

import pytest
import torch

from saelab.attention_circuits import DirectAttribution, Source
from saelab.circuits import LocalReplacement, ReadOuts
from saelab.circuits.targets import read_out, resolve
from saelab.errors import ConfigError
from saelab.transcoder_circuits import Path, PathConfig, greedy_paths, sum_paths
from tests.attention_circuits.planted_induction import oracle_of_output, planted_induction, repeats
from tests.circuits.circuit_cases import PROMPT, model_of, transcoder
from tests.circuits.test_planted_network import PROMPT as PLANTED_PROMPT
from tests.circuits.test_planted_network import oracles, planted

SOME = pytest.mark.parametrize("name", ["neox", "gemma2"])
SHORT = PROMPT[:4]
EVERYTHING = PathConfig(depth=2, per_step=10**6, branches=10**6, first_position=True)


def small(name: str) -> tuple[LocalReplacement, ReadOuts]:
    """Two dictionaries, four tokens, and the last active latent of the later one."""
    replacement = LocalReplacement(
        model_of(name), [transcoder(0), transcoder(1)], SHORT, cut_heads=True,
        first_position_as_error=False,
    )  # fmt: skip
    last = int((replacement.latents.site == 1).nonzero()[-1])
    return replacement, replacement.readouts(torch.tensor([last]))[0]


@SOME
def test_without_a_limit_the_search_is_the_enumeration(name: str) -> None:
    replacement, target = small(name)
    direct = DirectAttribution(replacement)
    found = {
        path.steps: path.contribution for path in greedy_paths(replacement, target, EVERYTHING)
    }
    position = int(target.positions[0])
    first = direct.terms([target])
    expected: dict[tuple[Source, ...], float] = {}
    for source, value in zip(direct.sources(position), first.table()[0].tolist(), strict=True):
        if value:
            expected[(source,)] = value
        if source.kind == "head" and value:
            slope = first.head_slopes[0, source.layer or 0, source.number or 0]
            readout = direct.head_value(
                source.layer or 0, source.number or 0, position, source.position or 0, slope
            )
            factor = 1.0
        elif source.kind == "latent" and value:
            place = next(
                n for n in range(len(replacement.latents))
                if (int(replacement.latents.site[n]), int(replacement.latents.position[n]),
                    int(replacement.latents.index[n]))
                == (0, source.position, source.number)
            )  # fmt: skip
            readout = replacement.readouts(torch.tensor([place]))[0]
            # What the latent writes, along what the target reads, by hand.
            factor = value / float(replacement.latents.value[place])
        else:
            continue
        at = int(readout.positions[0])
        second = (direct.terms([readout]).table()[0] * factor).tolist()
        for further, part in zip(direct.sources(at), second, strict=True):
            if part:
                expected[source, further] = part
    assert found.keys() == expected.keys()
    for steps, value in expected.items():
        assert found[steps] == pytest.approx(value, abs=1e-10)


@SOME
def test_what_goes_on_from_a_step_sums_to_the_step(name: str) -> None:
    replacement, target = small(name)
    paths = greedy_paths(replacement, target, EVERYTHING)
    value = float(target.values(replacement.map.reads)[0])
    assert sum(p.contribution for p in paths if len(p.steps) == 1) == pytest.approx(value, abs=1e-9)
    for path in paths:
        if len(path.steps) == 1 and path.steps[0].kind in ("head", "latent"):
            further = [
                p.contribution for p in paths if p.steps[:1] == path.steps and len(p.steps) == 2
            ]
            assert sum(further) == pytest.approx(path.contribution, abs=1e-9)


def test_both_signs_are_followed_unless_only_positive_ones_are_asked_for() -> None:
    replacement, target = small("llama")
    both = greedy_paths(replacement, target, PathConfig(depth=3, branches=30))
    assert any(path.contribution < 0 for path in both)
    positive = PathConfig(depth=3, branches=30, signs="positive")
    only = greedy_paths(replacement, target, positive)
    assert only and all(path.contribution > 0 for path in only)
    assert all(p.steps[0].kind != "head" or p.steps[0].position != 0 for p in both)
    assert len([p for p in both if len(p.steps) == 1]) == 10  # per_step
    assert len([p for p in both if len(p.steps) == 2]) == 30
    sizes = [abs(path.contribution) for path in both]
    assert sizes == sorted(sizes, reverse=True)


def test_the_weakest_latent_on_the_way_caps_a_path() -> None:
    a, b = Source("latent", 1, 0, 3, "x"), Source("token", None, 0, 7)
    assert Path((a, b), -5.0, 2.0).size("weakest") == -2.0
    assert Path((a, b), -5.0, 2.0).size() == -5.0
    assert Path((b,), 4.0, math.inf).size("weakest") == 4.0
    replacement, target = small("gpt2")
    for path in greedy_paths(replacement, target, PathConfig(measure="weakest")):
        if path.steps[0].kind == "latent":
            assert abs(path.size("weakest")) <= path.weakest < math.inf


def test_paths_put_together_count_each_prefix_once() -> None:
    replacement, target = small("neox")
    paths = greedy_paths(replacement, target, EVERYTHING)
    sums = sum_paths(paths)
    direct = sum(value for (_, to), value in sums.links.items() if to is None)
    assert direct == pytest.approx(float(target.values(replacement.map.reads)[0]), abs=1e-9)
    for source, value in sums.nodes.items():
        links = sum(part for (one, _), part in sums.links.items() if one == source)
        assert links == pytest.approx(value, abs=1e-10)


def test_paths_of_a_planted_network_follow_its_weights() -> None:
    model, weights = planted()
    replacement = LocalReplacement(
        model, oracles(), PLANTED_PROMPT, cut_heads=True, first_position_as_error=False
    )
    place = int((replacement.latents.site == 2).nonzero()[-1])
    target = replacement.readouts(torch.tensor([place]))[0]
    to = int(replacement.latents.index[place])
    for path in greedy_paths(replacement, target, PathConfig(depth=2)):
        steps = [step for step in path.steps if step.kind == "latent"]
        if abs(path.contribution) > 1e-9 and steps:
            assert (2, steps[0].number, to) in weights
        if abs(path.contribution) > 1e-9 and len(steps) == 2:
            assert (1, steps[1].number, steps[0].number) in weights


def test_the_strongest_path_of_a_repeat_is_the_compiled_one() -> None:
    row = repeats(1)[0][0]
    model = planted_induction()
    replacement = LocalReplacement(model, oracle_of_output(), row, cut_heads=True)
    earlier, last = int((row[:-1] == row[-1]).nonzero()[0]), len(row) - 1
    answer = int(row[earlier + 1])
    target = read_out(replacement.map.head, resolve(model, replacement.map.logits, [answer]), last)
    paths = greedy_paths(replacement, target, PathConfig(depth=3))
    longest = max((p for p in paths if len(p.steps) == 3), key=lambda p: p.contribution)
    assert [(s.kind, s.layer, s.position, s.number) for s in longest.steps] == [
        ("latent", 1, last, answer),
        ("head", 1, earlier + 1, 0),
        ("token", None, earlier + 1, answer),
    ]


def test_bad_questions_are_refused() -> None:
    replacement, target = small("gpt2")
    two = replacement.readouts(torch.arange(2))[0]
    with pytest.raises(ConfigError, match="one read-out; 2"):
        greedy_paths(replacement, two)
    with pytest.raises(ConfigError, match="branches=0"):
        PathConfig(branches=0)
    closed = LocalReplacement(model_of("gpt2"), transcoder(0), PROMPT)
    with pytest.raises(ConfigError, match="cut_heads=True"):
        greedy_paths(closed, target)
