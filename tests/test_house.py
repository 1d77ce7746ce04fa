"""The house: dependencies point one way, and the README begins with its two commands."""

import ast
import sys

from tests.helpers import ROOT


def test_run_time_packages_are_the_four_named():
    """The code imports torch, numpy, tiktoken and tqdm, and the dependencies point one way. What
    judges answers needs the standard library alone, and what shares a process with a stranger's
    program nothing of ours but its confinement."""
    ours = {"model", "score", "rewards", "verifiers", "data", "train", "pretrained"}
    allowed = {
        "model.py": {"pretrained"},
        "rewards.py": {"verifiers"},
        "verifiers/__init__.py": set(),
        "verifiers/latex.py": set(),
        "verifiers/answers.py": {"verifiers.latex"},
        "verifiers/sandbox.py": {"verifiers.worker"},
        "verifiers/worker.py": {"verifiers.confine"},
        "verifiers/confine.py": set(),
        "score.py": {"model", "rewards", "data"},
        "train.py": {"score", "model", "rewards", "data", "pretrained"},
        "data/__init__.py": {"data", "rewards"},
        "data/task.py": set(),
        "data/arithmetic.py": {"data", "rewards"},
        "data/hendrycks.py": {"data", "rewards"},
        "data/posed.py": {"data", "rewards"},
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
    rooms = [*ROOT.glob("data/*.py"), *ROOT.glob("verifiers/*.py"), *ROOT.glob("pretrained/*.py")]
    assert {str(path.relative_to(ROOT)) for path in rooms} <= allowed.keys()


def test_the_readme_begins_with_its_two_commands():
    """CI takes the second from there."""
    first, second = (ROOT / "README.md").read_text().split("```sh\n")[1:3]
    assert first.split("\n```")[0].endswith("&& python train.py --stage 1")
    assert second.split("\n```")[0].endswith("&& pytest")
