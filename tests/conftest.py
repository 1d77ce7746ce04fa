"""Fixtures that several rooms share, and how `pytest` by itself runs everything."""

import os
import pathlib

import pytest

for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
    os.environ.pop(name, None)  # some clusters set them

import test_score  # noqa: F401  isort: skip  (it sets what torch and Triton read when imported)
import train
from tests.helpers import run, six_steps, tiny_checkpoint


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """`pytest` without a file runs one process a core, at most four, each with one thread. A
    process begins with its share of the tests in their order, so that it makes few fixtures twice;
    one that has none left takes half of what another still has to do."""
    no_file = config.args_source == config.ArgsSource.TESTPATHS
    free = getattr(config.option, "numprocesses", 0) is None  # xdist is there, and no -n was given
    if no_file and free and not hasattr(config, "workerinput"):  # else processes start processes
        config.option.numprocesses, config.option.maxprocesses = "logical", 4
        config.option.dist = "worksteal"
        os.environ.setdefault("OMP_NUM_THREADS", "1")


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
