"""The house: dependencies point one way, and the README begins with its two commands."""

import ast
import sys

from tests.helpers import ROOT


def test_run_time_packages_are_the_four_named():
    """The code imports torch, numpy, tiktoken and tqdm, and the dependencies point one way. What
    judges answers needs the standard library alone, and what shares a process with a stranger's
    program nothing of ours but its confinement."""
    below = {"model", "score", "rewards", "data", "fast", "pretrained"}
    ours = below | {"verifiers", "train", "training"}
    allowed = {
        "model.py": {"fast", "pretrained"},
        "rewards.py": {"verifiers"},
        "verifiers/__init__.py": set(),
        "verifiers/latex.py": set(),
        "verifiers/answers.py": {"verifiers.latex"},
        "verifiers/sandbox.py": {"verifiers.worker"},
        "verifiers/worker.py": {"verifiers.confine"},
        "verifiers/confine.py": set(),
        "score.py": {"model", "fast", "data"},
        "train.py": below | {"training"},
        "training/__init__.py": set(),
        "training/processes.py": {"fast"},
        "training/checkpoints.py": {"data", "model", "training.processes"},
        "training/settings.py": {"data", "score", "pretrained"}
        | {"training.checkpoints", "training.processes"},
        "training/flags.py": {"data", "score", "training.settings"},
        "training/memory.py": {"data", "score", "model", "fast"}
        | {"training.processes", "training.settings"},
        "training/report.py": {"data", "model", "score"}
        | {"training.checkpoints", "training.processes", "training.settings"},
        "training/results.py": {"data", "score", "training.checkpoints", "training.settings"},
        "fast/__init__.py": set(),
        "fast/attention.py": {"fast.head"},
        "fast/cache.py": set(),
        "fast/graphs.py": set(),
        "fast/head.py": set(),
        "fast/linear.py": set(),
        "fast/processes.py": set(),
        "data/__init__.py": {"data", "rewards"},
        "data/task.py": set(),
        "data/arithmetic.py": {"data", "rewards"},
        "data/draws.py": set(),
        "data/hendrycks.py": {"data", "rewards"},
        "data/in_words.py": {"data", "rewards"},
        "data/programs.py": {"data", "rewards"},
        "data/text.py": {"data", "pretrained"},
        "pretrained/__init__.py": set(),
        "pretrained/weights.py": set(),
        "pretrained/tokenizer.py": {"pretrained"},
        "pretrained/chat.py": {"pretrained"},
    }
    for name, mine in allowed.items():
        imported = set()
        for node in ast.walk(ast.parse((ROOT / name).read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, name
                imported.add(node.module)
        top = {module: module.split(".")[0] for module in imported}
        within = {module for module in imported if top[module] in ours}
        assert all(module in mine or top[module] in mine for module in within), name
        others = {top[module] for module in imported - within} - set(sys.stdlib_module_names)
        packages = {"torch", "numpy", "tiktoken", "tqdm"}
        if name == "rewards.py" or name.startswith("verifiers/"):
            packages = set()
        optional = {"triton"} if name == "model.py" else set()
        assert others - optional <= packages, name
    rooms = ("data", "fast", "pretrained", "training", "verifiers")
    files = [path for room in rooms for path in ROOT.glob(f"{room}/*.py")]
    assert {str(path.relative_to(ROOT)) for path in files} <= allowed.keys()


def test_the_readme_begins_with_its_two_commands():
    """CI takes the second from there."""
    first, second = (ROOT / "README.md").read_text().split("```sh\n")[1:3]
    assert first.split("\n```")[0].endswith("&& python train.py --stage 1")
    assert second.split("\n```")[0].endswith("&& pytest")
