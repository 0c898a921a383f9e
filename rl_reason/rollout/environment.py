'''Says what an environment is: it has a state, reads a policy's turns and answers them.

An environment is any object with the two methods of `Environment`. This one is a game of guessing:

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

State: TypeAlias = Any  # Plain data, as JSON holds it: it can be saved at any turn.
Paid: TypeAlias = float | Sequence[float] | None  # For the turn, for each token of it, or nothing.


@dataclasses.dataclass(frozen=True)
class Turn:
  """Holds what a policy wrote at a time.

  text: its text, a stop string included. It may be empty, or be anything else.
  token_ids: the sampled ids, EOS included where it was sampled.
  tool_calls: calls of tools that a chat template's parser found in the text; `play` parses none.
  final: no other turn follows, for this one was cut off or is the last that is allowed. An answer
    would not be read.
  """
  text: str
  token_ids: tuple[int, ...]
  tool_calls: tuple[Mapping[str, Any], ...] = ()
  final: bool = False


@runtime_checkable
class Environment(Protocol):
  """Answers the turns of a policy's episodes.

  One object serves all episodes, of training and of evaluations. So what belongs to one episode
  stands in its state: plain data as JSON holds it. A step is given what JSON makes of the state
  (a tuple is a list, a key is a text), so it is the same before and after a checkpoint.
  """

  def reset(self, problem: Problem, seed: int) -> State:
    """Begins an episode.

    Args:
      problem: what the policy was given.
      seed: in [0, 2^32), for whatever is drawn in the episode. It depends on the run's seed, the
        training step and the completion: each member of a group has its own.
    Returns: the state before the first turn.
    """

  async def step(
      self, state: State, turn: Turn) -> tuple[Sequence[Message] | None, Paid, State]:
    """Reads a turn, and answers it or ends the episode.

    It is called after every turn, also after one that is final. Steps of many episodes run at the
    same time, and wait for each other only where they `await`.

    Args:
      state: as the step before left it. It must not be changed in place.
    Returns: messages, what is paid, and the state after the turn.
      messages: {"role": ..., "content": text}, whose contents stand in the policy's context, joined
        as they are. No role is "assistant": that is the policy's. None ends the episode.
      what is paid: a number, paid at the turn's last token; or one number for each of its tokens;
        or None. The reward `environment` hands it to the stage.
    """


@dataclasses.dataclass(frozen=True)
class Stateless:
  """Answers by the turn alone.

  answer: the text of a turn -> its answer, or None where the episode is over. It is not asked about
    a turn that is final.
  role: of the messages.
  """
  answer: Callable[[str], str | None]
  role: str = "tool"

  def reset(self, problem: Problem, seed: int) -> State:
    return None

  async def step(
      self, state: State, turn: Turn) -> tuple[Sequence[Message] | None, Paid, State]:
    text = None if turn.final else self.answer(turn.text)
    return None if text is None else [{"role": self.role, "content": text}], None, state
