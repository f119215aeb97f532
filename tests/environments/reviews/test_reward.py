"""The reward by hand, on well-formed, faulty and nonsensical reviews."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caldpo.environments.reviews.review_reward import CENTRE, SCALE, reward
from caldpo.environments.reviews.vocabulary import WORDS

WARM = "Write a warm review of silent garden : plot , music , acting ."
HARSH = "Write a harsh review of silent garden : plot , music , acting ."
# 3 aspects and a verdict, each at most 2 x 1.5; four faults of each kind
HIGHEST, LOWEST = 3 * 3 + 1.5 * 3, -(3 * 3 + 1.5 * 3) - 4 * 1 - 4 * 1 - 4 * 2


@pytest.mark.parametrize(
    ("response", "raw"),
    [
        (" the plot is good .", 1.0),
        (" the plot is very good .", 1.25),
        (" the plot is not good .", -0.5),
        (" the plot is not very good .", -0.625),
        (" the plot is not extremely awful .", 1.5),
        (" the plot is slightly dull .", -0.5),
        (" the plot is ordinary .", 0.0),
        (" overall it is superb .", 3.0),
        (" overall it is not fairly bland .", 0.6),
        (" the plot is good . the music is superb . the acting is weak . overall it is good .", 3.5),
        # only the first mention counts, and the second costs
        (" the plot is good . the plot is superb .", 1.0 - 1.0),
        (" overall it is good . overall it is superb .", 1.5 - 1.0),
        # off-topic sentiment counts nothing; a repeated off-topic aspect is both
        (" the scenery is superb .", -1.0),
        (" the scenery is superb . the scenery is superb .", -2.0),
        # malformed: no review, no full stop, no sentence between stops, missing and unknown words
        ("", -2.0),
        ("  \n ", -2.0),
        (" the plot is good", -2.0),
        (" the plot is good . the music", 1.0 - 2.0),
        (" the plot is good . .", 1.0 - 2.0),
        (" the plot is good.", -2.0),
        (" plot is good . the is good . the plot good . the plot is .", -8.0),
        (" the plot is very not good . the plot is not not good .", -4.0),
        (" the plot is good good . the weather is good .", -4.0),
        ("It was fine, I suppose.", -2.0),
        (" the plot is good" + " ." * 50, 1.0 - 8.0),
        # more than four faults of a kind cost as much as four
        (" the plot is good ." * 20, 1.0 - 4.0),
    ],
)
def test_reward_by_hand(response: str, raw: float) -> None:
    assert reward(WARM, response) == pytest.approx((raw - CENTRE) / SCALE, abs=1e-12)


def test_a_harsh_tone_turns_sentiment_but_not_costs() -> None:
    response = " the plot is awful . the plot is awful . the scenery is awful . overall it is dull ."
    assert reward(HARSH, response) == pytest.approx((2 + 1.5 - 1 - 1 - CENTRE) / SCALE)
    assert reward(WARM, response) == pytest.approx((-2 - 1.5 - 1 - 1 - CENTRE) / SCALE)


@pytest.mark.parametrize("prompt", ["", "Tell me a joke", WARM.replace("warm", "long"), WARM.replace("plot", "cats")])
def test_a_prompt_of_another_kind_leaves_the_costs_alone(prompt: str) -> None:
    assert reward(prompt, " overall it is superb .") == pytest.approx(-CENTRE / SCALE)
    assert reward(prompt, " the plot is superb . nonsense .") == pytest.approx((-1 - 2 - CENTRE) / SCALE)


@settings(max_examples=300, deadline=None)
@given(
    prompt=st.one_of(st.text(), st.just(WARM), st.just(HARSH)),
    response=st.one_of(st.text(), st.lists(st.sampled_from(WORDS), max_size=60).map(" ".join)),
)
def test_every_string_has_a_bounded_reward(prompt: str, response: str) -> None:
    raw = reward(prompt, response) * SCALE + CENTRE
    assert LOWEST - 1e-9 <= raw <= HIGHEST + 1e-9


def test_the_bounds_are_reached() -> None:
    best = " ".join(f"the {a} is extremely superb ." for a in ("plot", "music", "acting"))
    assert reward(WARM, f"{best} overall it is extremely superb .") == pytest.approx((HIGHEST - CENTRE) / SCALE)
    worst = " ".join(f"the {a} is extremely awful ." for a in ("plot", "music", "acting"))
    worst += " overall it is extremely awful ." * 5 + " nonsense ." * 4
    worst += "".join(f" the {a} is good ." for a in ("pacing", "dialogue", "ending", "scenery"))
    assert reward(WARM, worst) == pytest.approx((LOWEST - CENTRE) / SCALE)
