"""List every word of the reviews environment, and the values of words that carry sentiment.

Only words that separate reviews from one another carry value, so that the reward can be checked by hand.
"""

from __future__ import annotations

TONES: dict[str, int] = {"warm": 1, "glowing": 1, "harsh": -1, "scathing": -1}
"""Tones a prompt asks for: praise (+1) or criticism (-1)."""

TITLE_FIRST = (
    "silent", "golden", "broken", "hidden", "crimson", "endless",
    "frozen", "distant", "paper", "iron", "velvet", "hollow",
)  # fmt: skip
TITLE_SECOND = (
    "harbor", "garden", "empire", "river", "mirror", "orchard",
    "signal", "winter", "castle", "horizon", "machine", "letter",
)  # fmt: skip

ASPECTS = ("plot", "acting", "music", "pacing", "dialogue", "ending", "scenery", "humour")

POLARITY: dict[str, int] = {
    "superb": 2, "brilliant": 2, "wonderful": 2, "stunning": 2,
    "good": 1, "solid": 1, "pleasant": 1, "engaging": 1,
    "average": 0, "ordinary": 0, "unremarkable": 0,
    "weak": -1, "dull": -1, "bland": -1, "clumsy": -1,
    "awful": -2, "dreadful": -2, "terrible": -2, "abysmal": -2,
}  # fmt: skip
"""Sentiment of an adjective standing alone."""

INTENSITY: dict[str, float] = {"slightly": 0.5, "fairly": 0.8, "very": 1.25, "extremely": 1.5}
"""Factor of an adverb on the adjective after it."""

NEGATION = "not"
NEGATION_FACTOR = -0.5
"""``not very good`` is mildly bad: negation turns the sign and halves the strength."""

SUBJECT = "the"  # "the <aspect> is ..."
VERDICT = ("overall", "it")  # "overall it is ..."
COPULA = "is"
STOP = "."

PROMPT_WORDS = ("Write", "a", "review", "of", ":", ",", STOP)

WORDS: tuple[str, ...] = tuple(
    dict.fromkeys(
        (
            *PROMPT_WORDS,
            SUBJECT,
            *VERDICT,
            COPULA,
            NEGATION,
            *INTENSITY,
            *POLARITY,
            *ASPECTS,
            *TONES,
            *TITLE_FIRST,
            *TITLE_SECOND,
        )
    )
)
"""All words, without repetition, in a fixed order."""
