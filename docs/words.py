"""An example of a task of your own: questions that are answered with one word.

The files of --data-dir, train.jsonl and test.jsonl, have lines {"question": "…", "answer": "…"}.
"""

from data import Problem, Source
from data.text import FileTask, read_lines, require


class Words(FileTask):
    name = "words"
    system = "Answer with one word."
    instruction = "There might be an error in the answer above. Answer again, with one word."
    plain_revise = f"\n{instruction}\nAnswer: "  # the instruction for plain models, in plain text
    max_new_tokens = 16
    defaults = {"steps": 100, "beta2": 2.0}  # short answers have a small KL; the rest as for MATH

    def __init__(self, source: Source):
        splits = {name: self.read(source.folder / f"{name}.jsonl") for name in ("train", "test")}
        super().__init__(source, splits, notes=[])

    def read(self, path):
        with path.open(encoding="utf-8-sig") as lines:
            pairs = [require(x, at, question=str, answer=str) for at, x in read_lines(path, lines)]
        # An empty answer would reward silence.
        return [Problem(question, gold=bare(answer)) for question, answer in pairs if bare(answer)]

    def plain(self, problem):
        return f"Question: {problem.prompt}\nAnswer: "

    def over(self, problem, response):  # the answer is one line; anything after it is cut off
        return "\n" in response

    def reward(self, problem, response):  # strict: the policy will find whatever this lets pass
        return float(bare(response) == problem.gold)


def bare(answer: str) -> str:
    return answer.strip().rstrip(".").lower()
