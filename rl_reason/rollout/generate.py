"""Generates completions of prompts by continuous batching in slots.

The device decodes a jitted chunk of tokens at a time; between chunks the host moves slots.
"""

from collections.abc import Callable, Iterator, Sequence

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, PRNGKeyArray
import numpy as np

from rl_reason.arrays import Inputs, sampled_mask
from rl_reason.models.attention import Sharing
from rl_reason.models.config import ModelConfig
from rl_reason.rollout import decode
from rl_reason.rollout.pages import PageTable
from rl_reason.rollout.prefill import read_prompts
from rl_reason.rollout.sampling import Sampling
from rl_reason.rollout.schedule import capacity, CHUNK_TOKENS, Schedule
from rl_reason.runtime import sharding
from rl_reason.types import Params


@flax.struct.dataclass
class Completions:
  """Holds G completions of each of P prompts, in arrays on the host.

  Group p is rows p*G ... p*G + G - 1.

  tokens: right-padded tokens. The EOS token, or the tokens that spell the stop string, are part of
    the completion.
  lengths: tokens of each completion.
  truncated: true where the length limit ended the completion.
  behaviour_logprobs: nats, under the distribution sampled from; zero where padded.
  logprobs: nats, at temperature 1 and without filters; zero where padded.
  observed: for episodes (rollout.episodes), true at the tokens that an environment wrote, whose
    log-probabilities are 0; else None.
  environment_rewards: for episodes, what the environment paid at each of the policy's tokens, NaN
    where it paid nothing; else None.
  """
  tokens: Int[np.ndarray, "B T"]
  lengths: Int[np.ndarray, "B"]
  truncated: Bool[np.ndarray, "B"]
  behaviour_logprobs: Float[np.ndarray, "B T"]
  logprobs: Float[np.ndarray, "B T"]
  observed: Bool[np.ndarray, "B T"] | None = None
  environment_rewards: Float[np.ndarray, "B T"] | None = None

  @property
  def sampled(self) -> Bool[np.ndarray, "B T"]:
    """Returns true at the tokens that the policy wrote."""
    return sampled_mask(self.lengths, self.tokens.shape[1], self.observed)


def generate(
    config: ModelConfig,
    params: Params,
    prompts: Inputs,
    sampling: Sampling,
    *,
    group_size: int,
    rng: PRNGKeyArray,
    stop_ids: Sequence[int],
    decode_text: Callable[[Sequence[int]], str] | None = None,
    dtype: jnp.dtype = jnp.float32,
    slots: int = 0,
    chunk_size: int = CHUNK_TOKENS,
    prefill_tokens: int = 0,
    page_tokens: int = 0,
    int8: bool = False,
    on_finished: Callable[[Completions, Int[np.ndarray, "N"]], None] | None = None,
) -> Completions:
  """Samples `group_size` completions for each prompt.

  Args:
    config: architecture of the policy.
    params: parameters of the policy.
    prompts: P right-padded prompts of at least one token, the same on every process.
    sampling: how tokens are drawn, and when a completion ends.
    group_size: completions per prompt.
    rng: completion b draws token t with fold_in(fold_in(rng, b), t): so slots, chunks and other
      rows change nothing. Give each training step its own key.
    stop_ids: tokens that end a completion.
    decode_text: tokens -> text. Only stop strings need it; they are looked for between chunks.
    dtype: dtype of the computation.
    slots: completions decoded at once, at least group_size; when one ends, the next takes its
      place. The number of slots bounds the memory of the KV cache. 0: all completions at once.
    chunk_size: tokens decoded on the device before the host looks again (it looks sooner once
      enough completions have ended).
    prefill_tokens: prompts are read in stretches of `n` tokens, and their cache has room for a
      multiple of `n`: memory and programs are then those of a stretch. While more than half of the
      slots decode, one stretch is read between chunks, so that the slots do not wait for a whole
      prompt. 0: prompts are read whole.
    page_tokens: sampled tokens are kept in pages of `n` tokens. A slot takes the pages that it
      fills, and gives them back when its completion ends. Memory and attention then depend on the
      tokens that are held, not on slots times the longest completion. 0: each slot has room for
      the longest slot's tokens.
    int8: decode with the layers' matrices rounded to 8 bits; prompts are read with the full ones.
    on_finished: called between chunks with (all completions so far, the rows among them that have
      just ended).

  Returns: Completions, on the host, all rows on every process.
  Raises: ValueError for stop strings without decode_text, for fewer slots than a group, and for
    negative numbers of tokens.
  """
  # Long on purpose: the loop's six steps hand `cache`, `state` and `schedule` on to each other, and
  # reading them in their order is how one understands continuous batching.

  # 1. Checks, and what the host keeps track of.
  for name, value, meaning in (("prefill_tokens", prefill_tokens, "reads prompts whole"),
                               ("page_tokens", page_tokens, "keeps tokens without pages")):
    if value < 0:
      raise ValueError(f"{name} must be at least 0, got {value}: 0 {meaning}.")
  if sampling.stop_strings and decode_text is None:
    raise ValueError(f"stop_strings={sampling.stop_strings} need decode_text, to find them in the"
                     " text.")
  prompts = jax.tree.map(sharding.fetch, prompts)
  schedule = Schedule(len(prompts.lengths), group_size, slots)
  out = blank_completions(len(prompts.lengths) * group_size, sampling.max_tokens)
  chunk_size = min(chunk_size, sampling.max_tokens)
  stop_ids = tuple(int(i) for i in stop_ids)

  def reading(groups):
    return read_prompts(config, params, _rows(prompts, groups), stretch=prefill_tokens, dtype=dtype)

  # 2. Read the first prompts into the cache, and put their completions into slots.
  _, groups = schedule.admit()
  *_, cache = reading(groups)
  schedule.prompts_read(groups)
  batch = max(1, len(groups) // 4)  # From here on, the number of prompts read at once.
  # Later prompts whose reading has begun: (cache rows, groups, the iterator `reading` of them).
  begun: list[tuple[np.ndarray, np.ndarray, Iterator]] = []
  weights = decode.lay_out(config, params, dtype=dtype, int8=int8)
  move = schedule.arrange()
  state = decode.start(config, cache, schedule.ids, schedule.prompts, move.done, dtype=dtype,
                       page_tokens=page_tokens)
  table = PageTable(page_tokens, schedule.num_slots, sampling.max_tokens) if page_tokens else None
  while True:
    # 3. Decode one chunk on the device.
    sharing, paging = schedule.sharing(), table and table.paging(schedule.ids)
    state, chunk = decode.decode_chunk(
        config, weights, cache, state, None if sharing is None else Sharing(*sharing), rng,
        np.int32(schedule.enough()), paging, sampling=sampling, stop_ids=stop_ids, size=chunk_size,
        dtype=dtype)

    # 4. Append what the chunk sampled, and see which completions it ended.
    running = np.flatnonzero(schedule.active)
    ids = schedule.ids[running]
    # Only pages need these two: what each slot held, and its length, before the chunk.
    decoded, before = schedule.ids.copy(), np.where(
        schedule.active, out.lengths[schedule.ids], 0)
    ended = _append(
        out, ids,
        *(sharding.fetch(x)[running] for x in (
            chunk.tokens, chunk.behaviour_logprobs, chunk.logprobs, state.lengths, state.done)),
        stop_ids)
    if sampling.stop_strings:
      ended |= _cut_at_stop_strings(out, ids, sampling.stop_strings, decode_text)
    schedule.finish(running[ended])
    if on_finished is not None and ended.any():
      on_finished(out, ids[ended])
    if schedule.finished:
      return out

    # 5. Read prompts into the rows of groups that are finished. With prefill_tokens, and enough
    # slots to decode, only one stretch is read now and the next one after the next chunk.
    begun += [(rows, groups, reading(groups))
              for rows, groups in _batches(*schedule.admit(at_least=batch), batch)]
    while begun:
      rows, groups, stretches = begun[0]
      if (read := next(stretches)) is not None:
        cache = decode.replace_prompts(cache, rows, read)
        # Rows beyond the cache are those that filled the batch up.
        schedule.prompts_read(groups[rows < len(schedule.groups)])
        begun.pop(0)
      if prefill_tokens and not schedule.idle:
        break
    # 6. Move the slots of the next chunk together, and start new completions in free ones.
    move = schedule.arrange()
    slots_to_be = cache, move.source, move.new, schedule.ids, schedule.prompts, move.done
    going_on = schedule.ids[schedule.active]
    if table is None:
      longest = int(out.lengths[going_on].max(initial=0))
      state = decode.arrange(state, chunk, *slots_to_be, capacity=capacity(longest, chunk_size))
    else:
      table.release(ids[ended])
      # The pool is taken out of `state`: `append_to_pages` writes into it in place.
      pool, state = state.past, decode.move(state.replace(past=[]), *slots_to_be)
      if (moved := table.hold(going_on, out.lengths[going_on])) is not None:
        pool = decode.resize_pool(pool, moved)
      if table.size:
        pool = decode.append_to_pages(
            pool, chunk.cache, *table.windows(decoded, before, chunk_size))
      state = state.replace(past=pool)


def blank_completions(count: int, size: int) -> Completions:
  """Makes `count` completions of no tokens, with room for `size` tokens each."""
  return Completions(
      tokens=np.zeros((count, size), np.int32), lengths=np.zeros(count, np.int32),
      truncated=np.zeros(count, bool), behaviour_logprobs=np.zeros((count, size), np.float32),
      logprobs=np.zeros((count, size), np.float32))


def _rows(prompts: Inputs, groups: Int[np.ndarray, "N"]) -> Inputs:
  """Returns the prompts of these groups."""
  return jax.tree.map(lambda x: x[groups], prompts)


def _batches(
    rows: np.ndarray, groups: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields (rows, groups) in parts of one size, so that all parts share a program.

  The last part is filled up with its first group, for rows beyond the cache, which are dropped.
  """
  for start in range(0, len(rows), size):
    part = groups[start:start + size]
    short = size - len(part)
    yield (np.pad(rows[start:start + size], (0, short), constant_values=np.iinfo(np.int32).max),
           np.pad(part, (0, short), constant_values=part[0]))


def _append(
    out: Completions, ids, tokens, behaviour_logprobs, logprobs, lengths, done, stop_ids,
) -> Bool[np.ndarray, "N"]:
  """Appends a chunk's tokens to the completions `ids`, in place. Returns which of them ended."""
  for row, i in enumerate(ids):
    begin, end = out.lengths[i], lengths[row]
    out.tokens[i, begin:end] = tokens[row, :end - begin]
    out.behaviour_logprobs[i, begin:end] = behaviour_logprobs[row, :end - begin]
    out.logprobs[i, begin:end] = logprobs[row, :end - begin]
    # A completion that is done without a stop token was ended by the length limit.
    out.truncated[i] = done[row] and tokens[row, end - begin - 1] not in stop_ids
  out.lengths[ids] = lengths
  return done.copy()


def _cut_at_stop_strings(
    out: Completions, ids, stop_strings, decode_text) -> Bool[np.ndarray, "N"]:
  """Ends completions at the first token that completes a stop string, in place.

  Returns: which of the completions `ids` have a stop string.
  """
  found = np.zeros(len(ids), bool)
  for row, i in enumerate(ids):
    def has_stop(n, i=i):
      text = decode_text(out.tokens[i, :n].tolist())
      return any(stop in text for stop in stop_strings)
    if not has_stop(out.lengths[i]):
      continue
    # Bisection: no stop string in the first `low` tokens, one in the first `high`.
    low, high = 0, int(out.lengths[i])
    while high - low > 1:
      middle = (low + high) // 2
      low, high = (low, middle) if has_stop(middle) else (middle, high)
    found[row], out.lengths[i], out.truncated[i] = True, high, False
    for array in (out.tokens, out.behaviour_logprobs, out.logprobs):
      array[i, high:] = 0
  return found
