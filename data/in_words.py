"""Arithmetic in words: the problems of arithmetic.py for a pretrained model, in its own layout.

    user       What is 47 + 85?
    assistant  47 + 85 = 132

Problems and splits are those of arithmetic.py. Solved examples, which are training problems, come
first, as turns of the conversation. Only families whose answer is one number can be put into words.
"""

from data.arithmetic import ArithmeticTask, Corpus, Numbers
from data.task import Problem
from data.text import Source, TextTask
from rewards import stated_number_reward

# The paper's instruction for MATH, shortened: each first attempt is followed by it.
REVISE = "There might be an error in the answer above. Please correct the error, if any."
# The transcripts of the warm-up. Unlike arithmetic.py's, half of the second attempts stay fresh to
# the end, and fresh ones are mostly right: RL is short here and needs what the base does often.
CORPUS = Corpus(copy_late=0.5, right_again=0.95)


class ArithmeticInWords(TextTask):
    """Raises ValueError if the family cannot be put into words or the context is too short."""

    system, instruction = "You answer questions of arithmetic.", REVISE
    plain_revise = f"\n\n{REVISE}\nAnswer: "
    spare = 5  # tokens allowed beyond a long right answer, for its end and some blanks

    def __init__(self, source: Source, family: type, difficulty: int | None = None):
        arithmetic = ArithmeticTask(family, difficulty, CORPUS)
        if not issubclass(family, Numbers):
            raise ValueError(
                f"{arithmetic.name} cannot be put in words for --init: its answers are not numbers"
            )
        self.arithmetic, self.name, self.operator = arithmetic, arithmetic.name, family.operator
        shown = arithmetic.batch(0, 0, source.shots)
        self.examples = [(self.user(x), self.solved(x)) for x in shown]
        super().__init__(source)
        # The most digits need not be the most tokens, so other problems are tried, too.
        nines = "9" * arithmetic.family.difficulty
        tried = [Problem(f"{nines}{self.operator}{nines}="), *arithmetic.batch(0, 0, 500)]
        if source.max_new_tokens is None:
            longest = max(len(self.encode(self.solved(x))) for x in tried)
            self.max_new_tokens = longest + self.spare
        needed = max(len(self.prompt(x)) for x in tried) + self.room(source.attempts)
        if needed > self.context:
            raise ValueError(
                f"{source.shots} examples and {source.attempts} attempts take {needed} tokens, "
                f"more than the context of {self.context}"
            )

    def expression(self, problem: Problem) -> str:
        return problem.prompt.removesuffix("=").replace(self.operator, f" {self.operator} ")

    def user(self, problem: Problem) -> str:
        return f"What is {self.expression(problem)}?"

    def stated(self, problem: Problem, answer: str) -> str:
        return f"{self.expression(problem)} = {answer}"

    def solved(self, problem: Problem) -> str:
        right = self.arithmetic.family.attempt(problem.prompt, None, None, None)
        return self.stated(problem, right)

    def transcripts(
        self, seed: int, step: int, count: int, progress: float
    ) -> list[tuple[str, str, str]]:
        """(prompt, first attempt, second attempt), as in ArithmeticTask."""
        rows = self.arithmetic.transcripts(seed, step, count, progress)
        return [(x, *(self.stated(Problem(x), y) for y in attempts)) for x, *attempts in rows]

    def plain(self, problem: Problem) -> str:
        shown = [f"Question: {user}\nAnswer: {answer}\n\n" for user, answer in self.examples]
        return "".join(shown) + f"Question: {self.user(problem)}\nAnswer: "

    def over(self, problem: Problem, response: str) -> bool:
        # A plain model seldom ends its text; a chat model may work out a sum over several lines.
        return not self.is_chat and "\n" in response.lstrip("\n")

    def batch(self, seed: int, step: int, count: int) -> list[Problem]:
        return self.arithmetic.batch(seed, step, count)

    def held_out(self, split: str, count: int | None) -> list[Problem]:
        return self.arithmetic.held_out(split, count)

    def problem(self, text: str) -> Problem:
        return self.arithmetic.problem(text)

    def reward(self, problem: Problem, response: str) -> float:
        return stated_number_reward(problem.prompt, response)
