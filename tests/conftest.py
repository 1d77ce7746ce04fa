"""Fixtures that several rooms share."""

import pathlib

import pytest

import test_score  # noqa: F401  isort: skip
import train
from tests.helpers import run, six_steps, tiny_checkpoint


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> pathlib.Path:
    """Stage 2 from nothing: it runs the base and Stage I first, a few steps each."""
    out = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "STAGES", six_steps())
        assert run("--stage", 2, "--out", out) == 0
    return out / "puzzle"


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(train, "STAGES", six_steps())


@pytest.fixture(scope="session")
def chatty(tmp_path_factory) -> pathlib.Path:
    """A tiny random Qwen2 with a tokenizer of its own and ChatML."""
    return tiny_checkpoint(tmp_path_factory.mktemp("chatty"), "chatml")
