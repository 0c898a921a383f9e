"""Refuses configs of the layout before version 0.2.0, and says where their fields are now."""

from collections.abc import Mapping
from typing import Any

# Fields of a stage's section that moved in version 0.2.0, by the stage's kind: old name -> where
# the field is now, from the section on. The two tables here are parts that several kinds share.
_LEARNER = {
    name: f"learner.{name}" for name in ("microbatches", "remat", "lora", "optimizer")}
_ROLLOUT = {
    "prompts_per_step": "rollout.prompts", **{name: f"rollout.{name}" for name in (
        "group_size", "sampling", "slots", "page_tokens")}}
FIELDS: Mapping[str, Mapping[str, str]] = {
    "policy_gradient": {
        **_ROLLOUT, "int8_rollouts": "rollout.int8",
        **{name: f"credit.{name}" for name in (
            "baseline", "normalise", "returns", "discount", "negative_weight", "critic")},
        "token_reward": "credit.token_model",
        "keep_by": "credit.keep.by",
        **{name: f"credit.keep.{name}" for name in ("equal_groups", "equal_by", "max_resamples")},
        **{name: f"objective.{name}" for name in (
            "clip_low", "clip_high", "mean_over", "entropy_coef", "importance_cap")},
        "kl_coef": "objective.kl.coef", "kl_estimator": "objective.kl.estimator",
        "kl_in": "objective.kl.added_to",
        "epochs": "learner.epochs", "minibatches": "learner.minibatches", **_LEARNER},
    "self_training": {
        **_ROLLOUT, **_LEARNER, **{name: f"keep.{name}" for name in (
            "thresholds", "distinct", "per_problem", "choose", "balance")}},
    "sft": _LEARNER,
    "preference": _LEARNER,
    "reward_model": _LEARNER,
}


def moved_fields(config: Mapping[str, Any]) -> dict[str, str]:
  """Finds fields of the old layout in a run's config.

  Args:
    config: the config, as a ConfigDict, or as JSON holds it.
  Returns: {dotted field: where it is now}, e.g. {"rl.kl_coef": "rl.objective.kl.coef"}.
  """
  found, stages = {}, config.get("stages", ())
  for stage in stages if isinstance(stages, (list, tuple)) else ():
    section = (config.get(stage) if isinstance(stage, str) else None) or {}
    kind = section.get("kind") if hasattr(section, "get") else None
    # What is no section, or has no kind, has no old fields; the parser says what is wrong with it.
    table = FIELDS.get(kind, {}) if isinstance(kind, str) else {}
    found |= {f"{stage}.{old}": f"{stage}.{new}" for old, new in table.items() if old in section}
    # The objective was a name, and is a section now: its field exists in both layouts.
    if table and isinstance(section.get("objective"), str):
      found[f"{stage}.objective"] = f"{stage}.objective.kind"
  return found


def check_layout(config: Mapping[str, Any], what: str) -> None:
  """Refuses a config of the old layout.

  Args:
    config: the config, as a ConfigDict, or as JSON holds it.
    what: names the config in the error, e.g. "The config".
  Raises: ValueError that names up to 6 of the old fields with their new places.
  """
  found = moved_fields(config)
  if found:
    shown = ", ".join(f"{old} is now {new}" for old, new in list(found.items())[:6])
    more = f", and {len(found) - 6} more" if len(found) > 6 else ""
    raise ValueError(f"{what} has the layout of before rl_reason 0.2.0: {shown}{more}. Rename them,"
                     " or use the version it was made with.")
