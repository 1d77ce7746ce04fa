"""What to run where a GPU is at hand for minutes: the paper's tasks on a real model, and more.

    python experiments/on_gpu.py --init DIR --data-dir DIR --out DIR [--seconds 600]

In order of worth, each part logged to OUT/PART.log as it goes and its last lines printed:

    probe            two steps of Stage I, to know how many fit
    stage1, stage2   SCoRe on MBPP, a third of the time for the steps of both
    eval-…           HumanEval: the base, Stage I, Stage II
    naive            naive multi-turn RL from the same base, with as many updates, and its eval
    tests            what needs CUDA
    rollouts, updates   the benchmarks beside transformers and a plain loss; OUT/bench.json

Further flags are train.py's (`--problems 16 --samples 4 --revisions 4` by default). A part that
the time does not allow is stopped, saves what it has, and is named as stopped.
"""

import json
import shlex
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

HERE = Path(__file__).resolve().parent
TRAIN, NAIVE = [HERE.parent / "train.py"], [HERE / "baseline.py", "naive"]
STEP = "--problems 16 --samples 4 --revisions 4".split()
STEP += ["--split", "val", "--eval-problems", "1"]  # in training; the parts eval-… evaluate


class Parts:
    """Runs parts one after the other until the time is up."""

    def __init__(self, out: Path, seconds: float):
        self.out, self.end = out, time.monotonic() + seconds
        # A shell's background job ignores SIGINT, and so would the parts, which are stopped by it.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def left(self) -> float:
        return self.end - time.monotonic()

    def run(self, name: str, *command) -> bool:
        """Whether the command ended well in the time that is left."""
        if self.left() < 1:
            print(f"== {name}: no time left", flush=True)
            return False
        command, log = [sys.executable, *map(str, command)], self.out / f"{name}.log"
        print(f"== {name}: {shlex.join(command[1:])}", flush=True)
        started = time.monotonic()
        with log.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, cwd=HERE.parent)
            try:
                how = f"exit code {process.wait(self.left())}"
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)  # train.py saves, and ends within a step
                how = f"stopped, exit code {process.wait()}"
        lines = log.read_text(errors="replace").replace("\r", "\n").splitlines()
        print(*lines[-25:], f"== {name}: {how}, {time.monotonic() - started:.0f} s", sep="\n")
        return process.returncode == 0


def steps_that_fit(log: Path, seconds: float) -> int:
    """How many steps of a stage fit, by the last one in its log: the first loads kernels and
    captures graphs."""
    return max(1, int(seconds / json.loads(log.read_text().splitlines()[-1])["seconds"]))


def main() -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    for name in ("init", "data-dir", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="float32")
    args, flags = parser.parse_known_args()
    for folder in (args.init, args.data_dir):
        if not folder.is_dir():
            parser.error(f"{folder}: no such folder")
    out, device = args.out.resolve(), ["--device", args.device]
    out.mkdir(parents=True, exist_ok=True)
    places = ["--data", "humaneval", "--init", args.init.resolve()]
    places += ["--data-dir", args.data_dir.resolve(), *device, "--dtype", args.dtype]
    settings, stages = [*places, *STEP, *flags], out / "humaneval"
    parts = Parts(out, args.seconds)

    if not parts.run(
        "probe", *TRAIN, "--stage", 1, "--steps", 2, "--out", out / "probe", *settings
    ):
        return 1
    fit = steps_that_fit(out / "probe/humaneval/stage1/metrics.jsonl", args.seconds / 6)
    finished = ["base"]
    for stage in (1, 2):
        where = ["--stage", stage, "--steps", fit, "--out", out]
        if parts.run(f"stage{stage}", *TRAIN, *where, *settings):
            finished.append(f"stage{stage}")

    def evaluate(name: str) -> None:
        parts.run(f"eval-{name}", *TRAIN, "--eval", stages / name, *places)

    for name in finished:
        evaluate(name)
    if parts.run("naive", *NAIVE, "--steps", 2 * fit, "--out", out, *settings):
        evaluate("naive")
    files = ["test_score.py", "tests/test_fast.py"]
    parts.run("tests", "-m", "pytest", "-q", *files, "-k", "cuda or fused")
    bench, low = HERE / "bench.py", [*device, "--dtypes", "bfloat16", "--sizes", "gpt2", "qwen"]
    kept = ["--file", out / "bench.json", "--keep"]
    rows = ["--rows", 64, 256, "--peers", "eager"]
    parts.run("rollouts", bench, "rollouts", *low, *rows, *kept, "h200")
    parts.run("updates", bench, "updates", *low, *kept, "h200-updates")
    return 0


if __name__ == "__main__":
    sys.exit(main())
