r"""Shows what a policy answers to a prompt.

    python -m rl_reason.sample --workdir=runs/quickstart --prompt="7+2-5=" --num_samples=4

The prompt is a user's message where the run's task has chat prompts, else plain text. Completions
are sampled as the config's evaluation section says: with
--config.evaluation.sampling.temperature=0 each token is the likeliest one.
"""

from etils import epath
import jax
import ml_collections

from rl_reason.config.command_line import number, Parser
from rl_reason.reporting.progress import printable
from rl_reason.run import process
from rl_reason.run.config import check
from rl_reason.run.context import make_context
from rl_reason.run.earlier import Stages
from rl_reason.run.workdir import Workdir
from rl_reason.runtime import compilation, sharding
from rl_reason.stages.context import Context
from rl_reason.types import Message, Problem


def add_settings(parser: Parser) -> None:
  """Adds what the command takes beside --config and --workdir."""
  parser.add_argument("--prompt", required=True, help="what the policy reads")
  parser.add_argument(
      "--num_samples", type=number(int, at_least=1), default=1, help="completions to draw")
  parser.add_argument(
      "--initial", action="store_true",
      help="the policy before training, in place of the newest checkpoint")
  parser.add_argument(
      "--seed", type=number(int, at_least=0), default=0, help="of the completions")


def main(
    config: ml_collections.ConfigDict, workdir: epath.Path, *, prompt: str, num_samples: int = 1,
    initial: bool = False, seed: int = 0,
) -> None:
  """Prints completions of a prompt by the newest policy of the run in `workdir`.

  Args:
    config: the run's config.
    workdir: the run's folder.
    prompt: what the policy reads.
    num_samples: completions to draw.
    initial: takes the policy before training.
    seed: of the completions.
  """
  with process.errors_in_one_line():
    # The run, and the prompt as a problem of its task.
    process.start()
    compilation.keep_programs(print)
    run_config, sections = check(config)
    folder, sampling = Workdir(workdir), run_config.evaluation.sampling
    context = make_context(run_config, date=folder.date)
    if sampling is None:
      raise ValueError(
          "The config says nothing of sampling: add config.evaluation.sampling.")
    problems = [_problem(context, prompt)]
    prompts = context.sampler.encode(problems)
    with context.partitioning.use():
      # The policy: before training, or from the newest checkpoint that holds one.
      if initial:
        params = context.initial_params()
      else:
        with folder.explaining(config):
          where, params = Stages(run_config, sections, folder, context).newest_policy()
        print(f"# {where}")
      # The completions. Where the run has an environment, each is an episode: the policy's turns
      # and the environment's answers.
      completions = context.sampler(
          params, problems, prompts, sampling, group_size=num_samples,
          rng=jax.random.key(seed))

    # `printable` makes control characters visible: a policy in training may sample anything.
    if sharding.is_main_process():
      for sample in context.sampler.samples(problems, completions, sampling):
        cut = " [cut at max_tokens]" if sample.truncated else ""
        print(printable(sample.completion) + cut)


def _problem(context: Context, prompt: str | tuple[Message, ...]) -> Problem:
  """Makes a prompt a problem like the task's held-out ones."""
  like = context.task.heldout[0] if context.task else Problem(prompt="", reference="")
  if not isinstance(like.prompt, str):
    # A chat, with the task's system message and worked turns, if any.
    prompt = (*like.prompt[:-1], {"role": "user", "content": prompt})
  return Problem(prompt=prompt, reference="", id="--prompt")


if __name__ == "__main__":
  process.command(main, "sample", __doc__, add_settings)
