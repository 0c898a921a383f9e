"""Asks an environment about the turns of all running episodes, at the same time."""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
import dataclasses
import inspect
import json
import threading
from typing import Any

import jax
from jaxtyping import PRNGKeyArray
import numpy as np

from rl_reason.config import user_code
from rl_reason.rollout.environment import Environment, Paid, State, Turn
from rl_reason.runtime import sharding
from rl_reason.runtime.randomness import fold
from rl_reason.types import Message, Problem


@dataclasses.dataclass(frozen=True)
class Reply:
  """Holds what an environment made of one turn.

  text: the answer; None: the episode is over.
  paid: (position in the turn's tokens, amount) wherever something is paid.
  """
  text: str | None
  paid: tuple[tuple[int, float], ...] = ()


class RunningEpisodes:
  """Keeps the states of a rollout's episodes, and steps them.

  Each process keeps and steps the episodes of its own problems. Every process receives all replies.
  """

  def __init__(
      self, environment: Environment, name: str, problems: Sequence[Problem], *, group_size: int,
      count: int, rng: PRNGKeyArray):
    """Resets the environment for every episode of this process.

    Args:
      environment: answers the turns.
      name: name of the environment, for errors.
      problems: the problems of all episodes, or this process's part of them; then every process has
        the same number of problems.
      group_size: episodes per problem.
      count: number of episodes of all processes.
      rng: random key of the rollout, the same on every process.
    """
    self._environment, self._name = environment, name
    own = len(problems) * group_size
    self._apart = own < count
    first = jax.process_index() * own if self._apart else 0
    self._problems = {first + i: problems[i // group_size] for i in range(own)}
    # Drawn for the rows of all processes: a row has the same seed wherever it is kept.
    seeds = sharding.fetch(jax.random.bits(fold(rng, "environment"), (count,), np.uint32)).tolist()
    self._states = {i: self._reset(i, seeds[i]) for i in self._problems}
    self._loop = _EventLoop()

  def __contains__(self, row: int) -> bool:
    """Tells whether this process keeps the episode."""
    return row in self._problems

  def step(self, turns: Mapping[int, Turn]) -> dict[int, Reply]:
    """Steps this process's episodes at the same time, by row.

    Every process must call this method, even a process that has no turns of its own.

    Args:
      turns: the turn of each row that goes on.

    Returns: the replies to these turns and to the turns of the other processes, by row.
    Raises: what the environment raises, with a note that names the environment and the problem;
      ValueError for a step that does not return what Environment.step says.
    """
    # This process's own episodes.
    results = self._loop.run(self._together(turns)) if turns else []
    replies = {}
    for (i, turn), result in zip(turns.items(), results, strict=True):
      if isinstance(result, BaseException):
        with user_code.named(self._where(i, f"the turn {turn.text[:80]!r}")):
          raise result
      replies[i] = self._read(i, turn, result)
    # The other processes' episodes: everyone must know which episodes go on.
    if not self._apart:
      return replies
    own = [(i, reply.text, reply.paid) for i, reply in replies.items()]
    return {i: Reply(text, tuple((at, amount) for at, amount in paid))
            for part in sharding.gather_objects(own) for i, text, paid in part}

  def close(self) -> None:
    """Ends the tasks that steps have left running."""
    self._loop.close()

  async def _together(self, turns: Mapping[int, Turn]) -> list[Any]:
    # All steps end before an error is raised, so which error is raised does not depend on speed.
    return await asyncio.gather(
        *(self._step(self._states[i], turn) for i, turn in turns.items()), return_exceptions=True)

  async def _step(self, state: State, turn: Turn) -> Any:
    """Steps one episode. Raises: ValueError for a step that is no coroutine."""
    # A SystemExit in a task would end the loop's thread, and this process would wait for ever. The
    # caller adds the problem to other errors.
    with user_code.ending(f"the environment {self._name!r}"):
      found = self._environment.step(state, turn)
      if not inspect.isawaitable(found):
        raise ValueError(f"The environment {self._name!r} has a step that is no coroutine: write"
                         " `async def step(self, state, turn)`.")
      return await found

  def _reset(self, row: int, seed: int) -> State:
    """Returns an episode's first state, as JSON holds it."""
    problem = self._problems[row]
    with user_code.named(self._where(row, "its reset")):
      state = self._environment.reset(problem, seed)
    return self._plain(row, state)

  def _read(self, row: int, turn: Turn, result: Any) -> Reply:
    """Checks what a step returned, and keeps the state."""
    if not isinstance(result, tuple) or len(result) != 3:
      raise ValueError(
          f"The environment {self._name!r} returned {str(result)[:200]!r} of a step: it must return"
          " (messages or None, rewards, state).")
    messages, paid, state = result
    # The answer to a final turn is dropped, because no one would read it.
    self._states[row] = self._plain(row, state)
    text = None if turn.final or messages is None else self._text(row, turn, messages)
    return Reply(text, self._paid(row, turn, paid))

  def _plain(self, row: int, state: State) -> State:
    """Returns the state after a round trip through JSON, as a checkpoint would restore it."""
    try:
      return json.loads(json.dumps(state, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
      raise ValueError(
          f"The environment {self._name!r} has a state that is not JSON, {str(state)[:200]}, in"
          f" {self._which(row)}: {error}. A checkpoint must be able to hold it: keep finite"
          " numbers, texts, lists and mappings in it, and all else in the environment itself."
      ) from error

  def _text(self, row: int, turn: Turn, messages: Sequence[Message]) -> str:
    """Joins the contents of messages. Raises: ValueError for messages that cannot be an answer."""
    answered = (f"The environment {self._name!r} answered {str(messages)[:200]} to"
                f" {turn.text[:80]!r} ({self._which(row)})")
    if not isinstance(messages, (list, tuple)) or not all(
        isinstance(m, Mapping) and isinstance(m.get("role"), str)
        and isinstance(m.get("content"), str) for m in messages):
      raise ValueError(f"{answered}: give a list of messages, such as"
                       ' [{"role": "tool", "content": text}], or None to end the episode.')
    if any(m["role"] == "assistant" for m in messages):
      raise ValueError(f"{answered}: the role \"assistant\" is the policy's, whose words are"
                       " learnt. Give another, such as \"tool\" or \"user\".")
    if not (text := "".join(m["content"] for m in messages)):
      raise ValueError(f"{answered}: give a text that is not empty, such as an empty block of"
                       " results, or None to end the episode.")
    return text

  def _paid(self, row: int, turn: Turn, paid: Paid) -> tuple[tuple[int, float], ...]:
    """Lists (position in the turn, amount) of what a step pays. One number is paid at the end."""
    if paid is None:
      return ()
    size = len(turn.token_ids)
    try:
      values = np.asarray(paid)
    except ValueError:  # Lists of different lengths make no array; "" fails the check below.
      values = np.array("")
    with np.errstate(over="ignore"):  # A number too large for float32 becomes infinite, and fails.
      values = values.astype(np.float32) if values.dtype.kind in "fiu" else np.float32(np.nan)
    if values.shape not in ((), (size,)) or not np.isfinite(values).all():
      raise ValueError(
          f"The environment {self._name!r} paid {str(paid)[:200]} for {turn.text[:80]!r}"
          f" ({self._which(row)}), a turn of {size} tokens: give one finite number, one for each of"
          " its tokens, or None.")
    if values.shape == ():
      return ((size - 1, float(values)),)
    return tuple(enumerate(values.tolist()))

  def _which(self, row: int) -> str:
    return f"problem {self._problems[row].id!r}"

  def _where(self, row: int, what: str) -> str:
    """Says where an error was raised: the environment, what it did, and the problem."""
    return f"the environment {self._name!r} at {what} of {self._which(row)}"


class _EventLoop:
  """Runs coroutines for code that is not a coroutine itself.

  The loop has its own thread. A notebook already runs a loop in the caller's thread, and a thread
  cannot run a second one.
  """

  def __init__(self):
    self._loop = asyncio.new_event_loop()
    self._thread = threading.Thread(
        target=self._loop.run_forever, name="environment", daemon=True)
    self._thread.start()

  def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine in the loop's thread, and waits for its result."""
    future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
    try:
      return future.result()
    except BaseException:  # For example a keyboard interrupt of the thread that waits here.
      future.cancel()
      raise

  def close(self) -> None:
    """Cancels what still runs, and ends the thread."""
    self.run(self._end_tasks())
    self._loop.call_soon_threadsafe(self._loop.stop)
    self._thread.join()
    self._loop.close()

  async def _end_tasks(self) -> None:
    """Cancels all tasks but this one, and waits until they have ended."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
      task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    await self._loop.shutdown_asyncgens()
