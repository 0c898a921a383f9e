'''Says what an environment is: it has a state, reads a policy's turns and answers them.

An environment is any object with the two methods of `Environment`. This example is a guessing game:

    class Guess:
      """Answers guesses of a digit with "higher" or "lower", and pays for the right one."""

      def reset(self, problem, seed):
        return {"digit": seed % 10, "guesses": 0}

      async def step(self, state, turn):
        state = {**state, "guesses": state["guesses"] + 1}
        if not re.fullmatch("[0-9]", turn.text):
          return None, -1.0, state              # What is no guess ends the episode, and costs.
        if int(turn.text) == state["digit"]:
          return None, 1.0 / state["guesses"], state
        answer = "higher" if int(turn.text) < state["digit"] else "lower"
        return [{"role": "tool", "content": answer}], None, state

A config names it by its dotted path, and what it pays is the reward `environment`:

    c.environment = dict(source="package.module:Guess", max_turns=5, turn_tokens=2, answer_tokens=6)
    c.rl.rewards = dict(environment=1.0)

Where there is no state, a function from a turn's text to its answer is enough:

    def calculator():
      """Answers "3+4=" with "7"; any other turn ends the episode."""
      def answer(text):
        found = re.fullmatch(r"([0-9]+)[+]([0-9]+)=", text)
        return str(int(found[1]) + int(found[2])) if found else None
      return Stateless(answer)
'''

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, Protocol, runtime_checkable, TypeAlias

from rl_reason.types import Message, Problem

State: TypeAlias = Any  # Plain data, as JSON holds it, so that it can be saved at any turn.
Paid: TypeAlias = float | Sequence[float] | None  # For the turn, for each token, or nothing.


@dataclasses.dataclass(frozen=True)
class Turn:
  """Holds what a policy wrote in one turn.

  text: text of the turn, a stop string included. It may be empty, or be anything else.
  token_ids: the sampled ids, EOS included where it was sampled.
  tool_calls: calls of tools that a chat template's parser found in the text; `play` parses none.
  final: true where no other turn follows, because this turn was cut off or is the last allowed one.
    An answer to a final turn would not be read.
  """
  text: str
  token_ids: tuple[int, ...]
  tool_calls: tuple[Mapping[str, Any], ...] = ()
  final: bool = False


@runtime_checkable
class Environment(Protocol):
  """Answers the turns of a policy's episodes.

  One object serves all episodes, of training and of evaluations. So everything that is part of one
  episode is kept in the episode's state, which is plain data as JSON holds it. A step is given what
  JSON makes of the state (a tuple is a list, a key is a text). So the state is the same before and
  after a checkpoint.
  """

  def reset(self, problem: Problem, seed: int) -> State:
    """Begins an episode.

    Args:
      problem: the problem that the policy was given.
      seed: seed in [0, 2^32) for everything that is drawn in the episode. The seed depends on the
        run's seed, the training step and the completion: each member of a group has its own.
    Returns: the state before the first turn.
    """

  async def step(
      self, state: State, turn: Turn) -> tuple[Sequence[Message] | None, Paid, State]:
    """Reads a turn, and answers it or ends the episode.

    It is called after every turn, also after a final one. Steps of many episodes run at the same
    time, and wait for each other only where they `await`.

    Args:
      state: the state that the step before returned. It must not be changed in place.
      turn: what the policy wrote.
    Returns: (messages, what is paid, the state after the turn).
      messages: {"role": ..., "content": text}. Their contents are joined as they are, and become
        part of the policy's context. No role is "assistant": that role is the policy's. None ends
        the episode.
      what is paid: a number, paid at the turn's last token; or one number for each of its tokens;
        or None. The reward `environment` passes these numbers to the stage.
    """


@dataclasses.dataclass(frozen=True)
class Stateless:
  """Answers a turn by its text alone, without a state.

  answer: text of a turn -> its answer, or None where the episode is over. It is not called for a
    final turn.
  role: role of the messages.
  """
  answer: Callable[[str], str | None]
  role: str = "tool"

  def reset(self, problem: Problem, seed: int) -> State:
    return None

  async def step(
      self, state: State, turn: Turn) -> tuple[Sequence[Message] | None, Paid, State]:
    text = None if turn.final else self.answer(turn.text)
    return None if text is None else [{"role": self.role, "content": text}], None, state
