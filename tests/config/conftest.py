"""A small package in the place of caldpo, whose signatures the tests read."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import dedent

import pytest

from caldpo.config import signatures as source

FILES = {
    "losses/base.py": """
        from typing import Literal
        from torch import nn
        from caldpo.config.bounds import Positive
        Divergence = Literal["js", "kl"]

        class Base(nn.Module):
            def __init__(self, beta: Positive = 0.1) -> None: ...

        class Bare(nn.Module):
            pass

        class Foreign(SomethingElse):
            pass
    """,
    "losses/f.py": """
        from __future__ import annotations
        import torch
        import typing
        from dataclasses import dataclass, field
        from typing import Annotated, ClassVar, Literal, TypedDict
        from pydantic import Field
        from caldpo.config.bounds import Positive as Above
        from caldpo.losses.base import Base, Bare, Divergence

        Rate = Annotated[float, Field(ge=0, lt=0.5)]

        class Inherits(Base):
            pass

        class Nothing(Bare):
            pass

        class Message(TypedDict):
            role: str

        class F(Base):
            @validated
            def __init__(
                self, only, /, policy: torch.Tensor, beta: Above, kind: Divergence = "js", rate: "Rate" = 0.0,
                *, inner: Base | None = None, message: Message = None, maybe: typing.Optional[int] = None,
                **more,
            ) -> None: ...

            @classmethod
            def from_name(cls, name: str, size: int = 1): ...

            @staticmethod
            def make(name: str): ...

        @dataclass
        class Parent:
            a: int
            shared: ClassVar[int] = 3

        @dataclass(frozen=True)
        class Child(Parent):
            b: list[str] = field(default_factory=list)
            c: float = field(init=False)
            d: float = field(repr=False)

        def build(x: int, y: "float | None" = None, z=1): ...
    """,
    "parts.py": """
        from dataclasses import dataclass
        from typing import Literal
        from torch import Tensor
        from caldpo.config.bounds import FolderName, Fraction, NonNegativeInt, Positive

        @dataclass
        class Settings:
            name: FolderName
            seed: NonNegativeInt
            reward_beta: Positive
            behave: str = "finish"

        class Loss:
            def __init__(self, beta: Positive = 0.1, targets: Literal["fixed", "scores"] = "fixed") -> None: ...

        class Smooth:
            def __init__(self, beta: Positive = 0.1, label_smoothing: float = 0.0) -> None: ...

        class Narrow:
            def __init__(self, beta: Fraction = 0.1) -> None: ...

        class Schedule:
            def __init__(self, decay: Literal["constant", "linear", "cosine"]) -> None: ...

        class Optim:
            def __init__(self, lr: Positive, schedule: Schedule, beta1: float = 0.9) -> None: ...

        class Model:
            def __init__(self, path: str, size: int = 1) -> None: ...

        class Module:
            def __init__(self, policy: Tensor, loss: Loss, scale: float) -> None: ...

        class Trainer:
            def __init__(self, devices: int = 1) -> None: ...
    """,
}


@pytest.fixture
def package(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Signatures are read from FILES."""
    folder = tmp_path_factory.mktemp("package")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(dedent(text))
    monkeypatch.setitem(source._FOLDERS, "caldpo", folder)
    source.read_signature.cache_clear()
    yield
    source.read_signature.cache_clear()
