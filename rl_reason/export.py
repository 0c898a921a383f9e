"""Writes what a stage of a run has trained as a Hugging Face directory, with its tokenizer.

    python -m rl_reason.export --run=runs/quickstart --output=models/quickstart
    python -m rl_reason.export --run=runs/rm:rm --output=models/rm --dtype=bfloat16

A policy becomes a ...ForCausalLM, a reward model a ...ForSequenceClassification. Both load in
transformers, and here: by the policy source `pretrained`, by the scorer `reward_model` and by the
reward `learned`. Several processes must have gathered their parameters before: run it in one.
"""

from collections.abc import Sequence
from pathlib import Path

from rl_reason.config.command_line import Parser
from rl_reason.models import pretrained, reward_model_files
from rl_reason.models.safetensors_files import SAVED_DTYPES
from rl_reason.reporting import exits
from rl_reason.run import earlier, process


def export(
    run: str, directory: str | Path, *, dtype: str = "float32", overwrite: bool = False,
) -> str:
  """Writes a stage's model as a Hugging Face directory.

  Args:
    run: "path" of a run's folder, for its last stage that leaves a model, or "path:stage".
    directory, dtype, overwrite: as in pretrained.save.
  Returns: what was written, in words.
  Raises: ValueError for a folder that holds no run, a stage without a model, and a model that the
    form cannot hold; FileExistsError as pretrained.save.
  """
  stages, stage = earlier.open_run(run)
  known = [
      name for name in stages.sections
      if stages.trained(name).policy is not None or stages.kind(name).stored is not None]
  stage = stage or (known[-1] if known else "")
  if stage not in known:
    raise ValueError(
        f"The run in {stages.folder.path} has no stage {stage!r} that leaves a model; the known ones"
        f" are: {', '.join(known) or 'none'}.")
  options = dict(dtype=dtype, overwrite=overwrite)
  if stages.trained(stage).policy is not None:
    what = "policy"
    pretrained.save(directory, stages.run.policy.config, stages.policy(stage), **options)
  else:
    what = "reward model"
    stored = stages.kind(stage).stored(*stages.hooks(stage))
    reward_model_files.save(directory, stored, stages.finished(stage), **options)
  stages.run.policy.tokenizer.save(directory)
  return f"the {what} of stage {stage!r}"


def main(argv: Sequence[str] | None = None) -> None:
  """Exports what the command line names, and prints what was written."""
  parser = Parser("export", __doc__)
  parser.add_argument(
      "--run", required=True, help="the run's folder, or FOLDER:STAGE; by default its last model")
  parser.add_argument("--output", required=True, help="the directory to write")
  parser.add_argument("--dtype", default="float32", choices=SAVED_DTYPES)
  parser.add_argument(
      "--overwrite", action="store_true", help="replaces the model in a directory of another")
  args = parser.parse_args(argv)
  with process.errors_in_one_line():
    process.start()
    written = export(args.run, args.output, dtype=args.dtype, overwrite=args.overwrite)
    print(f"{args.output}: {written}.")


if __name__ == "__main__":
  with exits.with_status():
    main()
