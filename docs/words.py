"""An example of a task of your own: questions that are answered with one word.

Copy it beside train.py and run it like train.py, with `--data words`. The folder of --data-dir has
train.jsonl and test.jsonl, one problem a line: {"question": "…", "answer": "…"}.
"""

import sys

import data
import train
from data.text import FileTask, read_lines, require


class Words(FileTask):
    name = "words"
    system = "Answer with one word."
    instruction = "There might be an error in the answer above. Answer again, with one word."
    plain_revise = f"\n{instruction}\nAnswer: "  # the instruction for base models, in plain text
    max_new_tokens = 16

    def __init__(self, source: data.Source):
        splits = {name: self.read(source.folder / f"{name}.jsonl") for name in ("train", "test")}
        super().__init__(source, splits, notes=[])

    def read(self, path):
        with path.open() as lines:
            pairs = [require(x, at, question=str, answer=str) for at, x in read_lines(path, lines)]
        return [data.Problem(question, gold=answer) for question, answer in pairs]

    def user(self, problem):
        return problem.prompt

    def plain(self, problem):
        return f"Question: {problem.prompt}\nAnswer: "

    def over(self, problem, response):  # the answer is one line; anything after it is cut off
        return "\n" in response

    def reward(self, problem, response):  # strict: the policy will find whatever this lets pass
        return float(response.strip().rstrip(".").lower() == problem.gold.lower())


data.OPEN[Words.name] = Words
if __name__ == "__main__":
    sys.exit(train.main())
