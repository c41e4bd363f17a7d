"""Every field of `FitConfig` has its type and its range."""

import dataclasses
import math
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

from ebm_pp import ConfigError, FitConfig
from ebm_pp.config import Range, _checked

RULES = get_type_hints(FitConfig, include_extras=True)
NUMBERS = {name: rule for name, rule in RULES.items() if get_args(rule) and
           isinstance(get_args(rule)[-1], Range)}  # fmt: skip
WHOLE = [name for name, rule in NUMBERS.items() if get_args(rule)[0] is int]
WORDS = ["objective", "generator_loss", "offset"]


def below(span):
    return span.low if span.open else span.low - (1 if span.low == int(span.low) else 1e-6)


def refused(name, value):
    """By the rule itself: in the tests beartype would refuse a wrong type before FitConfig can."""
    with pytest.raises(ConfigError, match=rf"FitConfig\({name}=") as caught:
        _checked(name, value, RULES[name])
    assert isinstance(caught.value, ValueError)
    return str(caught.value)


def test_every_field_has_a_rule():
    assert {*NUMBERS, *WORDS, "progress"} == {
        field.name for field in dataclasses.fields(FitConfig)
    }


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, "5", [1], torch.tensor(1.0), True, np.array([1.0])]
)
def test_what_is_no_number_in_range_is_refused(name, value):
    kind = "a whole number" if name in WHOLE else "a number"
    told = refused(name, value)
    assert f"={value!r}): expected {kind} {get_args(NUMBERS[name])[-1]}.\n" in told


@pytest.mark.parametrize("name", NUMBERS)
def test_the_ends_of_a_range_belong_to_it_and_no_more(name):
    span = get_args(NUMBERS[name])[-1]
    refused(name, below(span))
    refused(name, span.high * (2 if name in WHOLE else 1.01))
    if not span.open:
        value = int(span.low) if name in WHOLE else span.low
        assert getattr(FitConfig(**{name: value}), name) == value


@pytest.mark.parametrize("name", WHOLE)
def test_a_fraction_is_no_count(name):
    refused(name, 2.5)
    refused(name, 100.0)
    assert _checked(name, np.int64(30), RULES[name]) == 30


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("value", ["", "Newton", "reverse-kl", 1, None])
def test_unknown_words_are_refused(name, value):
    words = get_args(RULES[name])
    assert f"expected one of {', '.join(map(repr, words))}." in refused(name, value)
    assert [_checked(name, word, RULES[name]) for word in words] == list(words)


@pytest.mark.parametrize("value", [0, 1, "yes", None])
def test_progress_is_true_or_false(value):
    assert f"progress={value!r}): expected True or False." in refused("progress", value)


def test_numbers_become_plain_ones():
    given = {"clip": np.float32(2), "nu": 3, "rounds": np.int32(4), "progress": np.bool_(False)}
    plain = [_checked(name, value, RULES[name]) for name, value in given.items()]
    assert [type(value) for value in plain] == [float, float, int, bool]
    assert FitConfig(energy_decay=None).energy_decay is None


@pytest.mark.parametrize("preset", ["fast", "thorough", "given"])
def test_presets_are_checked_too(preset):
    with pytest.raises(ConfigError, match="clip"):
        getattr(FitConfig, preset)(clip=-5.0)


def test_a_pool_that_tells_nothing_is_refused():
    with pytest.raises(
        ConfigError, match=r"FitConfig\(pool=15\): expected a whole number from 16"
    ):
        FitConfig(pool=15)
    assert FitConfig(pool=16).pool == 16
