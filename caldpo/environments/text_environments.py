"""List the environments of generated texts by name."""

from __future__ import annotations

from typing import Any

from caldpo.environments.arithmetic.arithmetic_environment import Arithmetic
from caldpo.environments.reviews.review_environment import Reviews
from caldpo.environments.text_environment import TextEnvironment

TEXT_ENVIRONMENTS: dict[str, TextEnvironment[Any]] = {e.name: e for e in (Reviews(), Arithmetic())}
