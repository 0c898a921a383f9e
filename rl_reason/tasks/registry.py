"""Lists the sources of problems that a config may name, and loads a task from one."""

from collections.abc import Callable, Mapping
import dataclasses
import hashlib
from typing import Any

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
from rl_reason.types import Comparison, Source, Task


@dataclasses.dataclass(frozen=True)
class TaskSection:
  """Problems: a name in SOURCES or a dotted path, its arguments, and those of each half (they win over `args`)."""
  source: str
  args: Mapping[str, Any]
  train: Mapping[str, Any]
  heldout: Mapping[str, Any]


# What a config may name. Those of comparisons hold Comparisons, all others Problems.
# Each function's keyword arguments are the config's `arguments`, `train` and `heldout`.
SOURCES: dict[str, Callable[..., Source]] = {
    "jsonl": files.jsonl,  # .jsonl and .jsonl.gz files; templates over the columns make the prompt and the reference.
    "parquet": files.parquet,  # The same over Parquet files.
    "comparisons": preferences.comparisons,  # Preferences and step labels from files, in the public formats.
    "tfds": prepared.tfds_source,  # A prepared TFDS data set; `python -m rl_reason.tasks.prepare` makes one.
    "arithmetic": arithmetic.arithmetic,  # Generated running totals with worked steps: 7+5-3= -> 7+5=12;12-3=9;#9
    "prefix_rewards": topology.prefix_rewards,  # Comparisons in a world of known rewards, of a topology.
    "judge_problems": judging.judge_problems,  # Generated pairs to be judged in writing, ...
    "judge_comparisons": judging.judge_comparisons,  # ... and the same as comparisons.
    "attribute_pairs": attributes.attribute_pairs,  # Generated pairs with a hidden utility; some labels are wrong.
    "attribute_responses": attributes.attribute_responses,  # ... and single responses, to be imitated.
    "quality_pairs": qualities.quality_pairs,  # Generated pairs of known qualities, by different labellers; ...
    "rated_responses": qualities.rated_responses,  # Single ones with their qualities as attributes, ...
    "quality_problems": qualities.quality_problems,  # ... and prompts with responses, as a policy imitates them.
    "running_sums": running_sums.running_sums,  # Generated sums of digits with idle steps, for process rewards, ...
    "labelled_sums": running_sums.labelled_sums,  # ... and their solutions, right and wrong, for outcome reward models.
    "grid_problems": grids.grid_problems,  # Generated grids to count in, ...
    "grid_ratings": grids.grid_ratings,  # ... and thinking about them, rated.
    "posts": posts.posts,  # Generated posts with references, to be summarised, ...
    "summary_pairs": posts.summary_pairs,  # ... and pairs of summaries, compared.
    "reviews": reviews.reviews,  # Generated reviews to sum up, ...
    "review_pairs": reviews.review_pairs,  # ... and pairs of summaries, compared.
    "bench_pairs": bench_world.bench_pairs,  # A world of six kinds of questions in two dialects: pairs, ...
    "bench_problems": bench_world.bench_problems,  # ... questions, ...
    "bench_records": bench_world.bench_records,  # ... and a benchmark of reward models.
    "lookup_problems": lookup.lookup_problems,  # Generated questions of one or two look-ups, with worked episodes.
    "gsm_symbolic": gsm_symbolic.gsm_symbolic,  # Word problems instantiated from GSM-Symbolic templates.
}


def load_task(
    source: str, arguments: Mapping[str, Any], train: Mapping[str, Any], heldout: Mapping[str, Any]) -> Task:
  """Builds the two halves of a task from one source function.

  Args:
    source: a name in SOURCES, or a dotted path "package.module:function".
    arguments: keyword arguments of both halves.
    train: further arguments of the training half; they win over `arguments`.
    heldout: the same for the held-out half, e.g. another path, `rows="90%:"` or `part="heldout"`.

  Raises: ValueError for an unknown source or argument name, an empty half, or a prompt that is in both halves; whatever
    the source function raises for the values.
  """
  halves = load_splits(source, arguments, {"train": train, "heldout": heldout})
  check_disjoint(halves["train"], halves["heldout"])
  return Task(**halves)


def load_splits(
    source: str, arguments: Mapping[str, Any], splits: Mapping[str, Mapping[str, Any]]) -> dict[str, Source]:
  """One source per split, called with {**arguments, **splits[name]}. Raises: as `load_task`, but for shared prompts."""
  function = naming.find("source", source, SOURCES)
  calls = {split: {**arguments, **further} for split, further in splits.items()}
  for split, keywords in calls.items():
    # All of them, before any reads a file.
    naming.check_arguments(f"The source {source!r} for the {split} rows", function, keywords)
  sources = {}
  for split, keywords in calls.items():
    sources[split] = function(**keywords)
    if not len(sources[split]):
      raise ValueError(
          f"The {split} rows of source {source!r} are none at all with the arguments {keywords}: nothing could be drawn"
          " from them. Check path, `rows`, `where` or `size`.")
  return sources


def check_disjoint(train: Source, heldout: Source) -> None:
  """Raises ValueError when a prompt of `heldout` is also in `train`, whitespace and system messages aside.

  Every prompt of both is read once; only the held-out half's hashes are kept. Comparisons of which all that are held out
  have one prompt are about responses: then no row may be in both halves with its responses.
  """
  held, key = {_prompt_hash(heldout[i]): i for i in range(len(heldout))}, _prompt_hash
  if len(held) == 1 < len(heldout) and isinstance(heldout[0], Comparison):
    held, key = {_row_hash(heldout[i]): i for i in range(len(heldout))}, _row_hash
  shared = [(i, j) for i in range(len(train)) if (j := held.get(key(train[i]))) is not None]
  if shared:
    pairs = "; ".join(
        f"train id {train[i].id!r} = heldout id {heldout[j].id!r}: {_prompt_text(train[i])[:200]!r}"
        for i, j in shared[:3])
    raise ValueError(
        f"{len(shared)} training rows have a prompt that is also held out, so the held-out score would measure memory"
        f" ({pairs}{'; ...' if len(shared) > 3 else ''}). Give the halves `rows` that do not overlap (':90%' and"
        " '90%:'), other files or another `part`; set unique=True if the file itself repeats prompts.")


def _prompt_text(problem):
  if isinstance(problem.prompt, str):
    return " ".join(problem.prompt.split())
  return "\n".join(" ".join(m["content"].split()) for m in problem.prompt if m["role"] != "system")


def _prompt_hash(problem):
  return hashlib.blake2b(_prompt_text(problem).encode(), digest_size=16).digest()


def _row_hash(comparison):
  return hashlib.blake2b(repr((_prompt_text(comparison), sorted(comparison.responses))).encode(), digest_size=16).digest()
