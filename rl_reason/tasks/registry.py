"""Lists the sources of problems that a config may name, and loads a task from one."""

from collections.abc import Callable, Mapping
import dataclasses
import hashlib
from typing import Any, Literal

from absl import logging
from jaxtyping import Int
import numpy as np

from rl_reason.config import naming
from rl_reason.tasks import files, gsm_symbolic, preferences, prepared
from rl_reason.tasks.worlds import (
  arithmetic,
  attributes,
  bench_world,
  grids,
  judging,
  lookup,
  posts,
  qualities,
  reviews,
  running_sums,
  topology,
)
from rl_reason.types import Comparison, Problem, Source, Task


@dataclasses.dataclass(frozen=True)
class TaskSection:
  """Chooses a task's problems.

  source: a name in SOURCES, or a dotted path to a function.
  args: arguments of both halves.
  train: arguments of the training half; they win over `args`.
  heldout: arguments of the held-out half; they win over `args`.
  shared_prompts: what happens to training rows with a prompt that is held out: "error", or "drop":
    they are left out, counted in a warning. The held-out half stays whole, so that scores of runs
    compare.
  """
  source: naming.Name
  args: Mapping[str, Any]
  train: Mapping[str, Any]
  heldout: Mapping[str, Any]
  shared_prompts: Literal["error", "drop"] = "error"


# What a config may name. Sources of comparisons hold Comparisons, all others Problems. Each
# function's keyword arguments are the config's `arguments`, `train` and `heldout`.
SOURCES: dict[str, Callable[..., Source]] = {
    # From files. Templates over the columns make the prompt and the reference.
    "jsonl": files.jsonl,  # .jsonl and .jsonl.gz files.
    "parquet": files.parquet,  # Parquet files.
    # Preferences and step labels from files, in the public formats.
    "comparisons": preferences.comparisons,
    # A prepared TFDS data set; `python -m rl_reason.tasks.prepare` makes one.
    "tfds": prepared.tfds_source,
    # Generated running totals with worked steps: 7+5-3= -> 7+5=12;12-3=9;#9
    "arithmetic": arithmetic.arithmetic,
    # Comparisons in a world of known rewards, of a topology.
    "prefix_rewards": topology.prefix_rewards,
    # Generated pairs to be judged in writing, and the same pairs as comparisons.
    "judge_problems": judging.judge_problems,
    "judge_comparisons": judging.judge_comparisons,
    # Generated pairs with a hidden utility, some with wrong labels; and single responses, to be
    # imitated.
    "attribute_pairs": attributes.attribute_pairs,
    "attribute_responses": attributes.attribute_responses,
    # Generated pairs of known qualities, by different labellers; single responses with their
    # qualities as attributes; and prompts with responses, for a policy to imitate.
    "quality_pairs": qualities.quality_pairs,
    "rated_responses": qualities.rated_responses,
    "quality_problems": qualities.quality_problems,
    # Generated sums of digits with idle steps, for process rewards; and their solutions, right and
    # wrong, for outcome reward models.
    "running_sums": running_sums.running_sums,
    "labelled_sums": running_sums.labelled_sums,
    # Generated grids to count in; and thinking about them, rated.
    "grid_problems": grids.grid_problems,
    "grid_ratings": grids.grid_ratings,
    # Generated posts with references, to be summarised; and pairs of summaries, compared.
    "posts": posts.posts,
    "summary_pairs": posts.summary_pairs,
    # Generated reviews to sum up; and pairs of summaries, compared.
    "reviews": reviews.reviews,
    "review_pairs": reviews.review_pairs,
    # A world of six kinds of questions in two dialects: pairs, questions, and a benchmark of reward
    # models.
    "bench_pairs": bench_world.bench_pairs,
    "bench_problems": bench_world.bench_problems,
    "bench_records": bench_world.bench_records,
    # Generated questions of one or two look-ups, with worked episodes.
    "lookup_problems": lookup.lookup_problems,
    # Word problems instantiated from GSM-Symbolic templates.
    "gsm_symbolic": gsm_symbolic.gsm_symbolic,
}


def load_task(
    source: naming.Name, arguments: Mapping[str, Any], train: Mapping[str, Any],
    heldout: Mapping[str, Any], shared_prompts: Literal["error", "drop"] = "error") -> Task:
  """Builds the two halves of a task from one source function.

  Args:
    source: a name in SOURCES, a dotted path "package.module:function", or the function itself.
    arguments: keyword arguments of both halves.
    train: further arguments of the training half; they win over `arguments`.
    heldout: further arguments of the held-out half, e.g. another path, `rows="90%:"` or
      `part="heldout"`.
    shared_prompts: as in TaskSection.

  Raises: ValueError for an unknown source or argument name, an empty half, or a prompt that is in
    both halves; whatever the source function raises for the values.
  """
  halves = load_splits(source, arguments, {"train": train, "heldout": heldout})
  if shared_prompts == "drop":
    halves["train"] = without_heldout(halves["train"], halves["heldout"])
  else:
    check_disjoint(halves["train"], halves["heldout"])
  return Task(**halves)


def load_splits(
    source: naming.Name, arguments: Mapping[str, Any], splits: Mapping[str, Mapping[str, Any]],
) -> dict[str, Source]:
  """Builds one source per split, called with {**arguments, **splits[name]}.

  Raises: as `load_task`, but for shared prompts.
  """
  function, source = naming.find("source", source, SOURCES), naming.path_of(source)
  calls = {split: {**arguments, **further} for split, further in splits.items()}
  for split, keywords in calls.items():
    # Check all of them before any reads a file.
    naming.check_arguments(f"The source {source!r} for the {split} rows", function, keywords)
  sources = {}
  for split, keywords in calls.items():
    sources[split] = function(**keywords)
    try:
      rows = len(sources[split])
    except OverflowError as error:
      raise ValueError(
          f"The {split} rows of source {source!r} are more than Python can count with the arguments"
          f" {keywords}: lower `size`.") from error
    if not rows:
      raise ValueError(
          f"The {split} rows of source {source!r} are none at all with the arguments {keywords}:"
          " nothing could be drawn from them. Check path, `rows`, `where` or `size`.")
  return sources


def check_disjoint(train: Source, heldout: Source) -> None:
  """Checks that no prompt of `heldout` is also in `train`, whitespace and system messages aside.

  Every prompt of both is read once; only the held-out half's hashes are kept. If all held-out
  comparisons have one prompt, they are about responses: then no row may be in both halves with its
  responses.

  Raises: ValueError that names the first rows with a shared prompt.
  """
  shared = _shared(train, heldout)
  if shared:
    pairs = "; ".join(
        f"train id {train[i].id!r} = heldout id {heldout[j].id!r}: {_prompt_text(train[i])[:200]!r}"
        for i, j in shared[:3])
    raise ValueError(
        f"{len(shared)} training rows have a prompt that is also held out, so the held-out score"
        f" would measure memory ({pairs}{'; ...' if len(shared) > 3 else ''}). Give the halves"
        " `rows` that do not overlap (':90%' and '90%:'), other files or another `part`; set"
        " unique=True if the file itself repeats prompts, or shared_prompts='drop' to leave these"
        " training rows out.")


def without_heldout(train: Source, heldout: Source) -> Source:
  """Leaves out the rows of `train` that `check_disjoint` refuses, and warns of their number.

  Raises: ValueError if none would be left.
  """
  shared = [i for i, _ in _shared(train, heldout)]
  if not shared:
    return train
  first = train[shared[0]]
  if len(shared) == len(train):
    raise ValueError(
        f"All {len(train)} training rows have a prompt that is also held out, as id {first.id!r}:"
        " none would be left to learn from. Give the halves other rows or files.")
  logging.warning(
      "%d of %d training rows are left out, as their prompts are held out; the first: id %r",
      len(shared), len(train), first.id)
  return Selected(train, np.setdiff1d(np.arange(len(train)), shared))


@dataclasses.dataclass(frozen=True)
class Selected:
  """Holds some rows of a source.

  source: the source.
  indices: of the rows that stay, in order.
  """
  source: Source
  indices: Int[np.ndarray, "N"] = dataclasses.field(repr=False)

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, index: int) -> Problem | Comparison:
    return self.source[int(self.indices[index])]


def _shared(train: Source, heldout: Source) -> list[tuple[int, int]]:
  """Lists (training row, held-out row) with one prompt, as `check_disjoint` says."""
  # Hash -> the held-out row that has it.
  held, key = {_prompt_hash(heldout[i]): i for i in range(len(heldout))}, _prompt_hash
  if len(held) == 1 < len(heldout) and isinstance(heldout[0], Comparison):
    held, key = {_row_hash(heldout[i]): i for i in range(len(heldout))}, _row_hash
  return [(i, j) for i in range(len(train)) if (j := held.get(key(train[i]))) is not None]


def _prompt_text(problem):
  """Returns a prompt as text, with every white space alike and without system messages."""
  if isinstance(problem.prompt, str):
    return " ".join(problem.prompt.split())
  return "\n".join(" ".join(m["content"].split()) for m in problem.prompt if m["role"] != "system")


def _prompt_hash(problem):
  """Returns a hash of the prompt: 16 bytes a row, whatever its length."""
  return hashlib.blake2b(_bytes(_prompt_text(problem)), digest_size=16).digest()


def _row_hash(comparison):
  """Returns a hash of prompt and responses, whatever the order of the responses."""
  return hashlib.blake2b(
      _bytes(repr((_prompt_text(comparison), sorted(comparison.responses)))),
      digest_size=16).digest()


def _bytes(text):
  """Returns a text in UTF-8; half a surrogate pair, as broken JSON escapes give, is kept."""
  return text.encode("utf-8", "surrogatepass")
