"""Lists where modules and definitions are since version 0.2.0, for errors about their old names.

Nothing is found by its old name: an error about an old name states the new one.
"""

from collections.abc import Mapping

# Modules that moved: old name -> new name.
MODULES: Mapping[str, str] = {
    "rl_reason.advantages": "rl_reason.objectives.advantages",
    "rl_reason.allocator": "rl_reason.runtime.allocator",
    "rl_reason.checkpoint": "rl_reason.runtime.checkpoint",
    "rl_reason.compilation": "rl_reason.runtime.compilation",
    "rl_reason.config": "rl_reason.config.fields",
    "rl_reason.contrastive": "rl_reason.objectives.contrastive",
    "rl_reason.demonstrations": "rl_reason.batches.demonstrations",
    "rl_reason.estimates": "rl_reason.evaluation.estimates",
    "rl_reason.feature_models": "rl_reason.scorers.features",
    "rl_reason.labels": "rl_reason.batches.labels",
    "rl_reason.learner": "rl_reason.learner.step",
    "rl_reason.losses": "rl_reason.objectives.losses",
    "rl_reason.memory": "rl_reason.runtime.memory",
    "rl_reason.metrics": "rl_reason.reporting.metrics",
    "rl_reason.naming": "rl_reason.config.naming",
    "rl_reason.packing": "rl_reason.batches.packing",
    "rl_reason.plots": "rl_reason.reporting.plots",
    "rl_reason.policy": "rl_reason.models.policy",
    "rl_reason.preferences": "rl_reason.objectives.preferences",
    "rl_reason.probes": "rl_reason.scorers.probes",
    "rl_reason.profiling": "rl_reason.runtime.profiling",
    "rl_reason.progress": "rl_reason.reporting.progress",
    "rl_reason.provenance": "rl_reason.reporting.provenance",
    "rl_reason.ranking": "rl_reason.evaluation.ranking",
    "rl_reason.report": "rl_reason.reporting.summary",
    "rl_reason.responses": "rl_reason.batches.responses",
    "rl_reason.rewards.build": "rl_reason.rewards.composition.build",
    "rl_reason.rewards.chat_endpoint": "rl_reason.judges.chat_endpoint",
    "rl_reason.rewards.composition": "rl_reason.rewards.composition.reward_set",
    "rl_reason.rewards.critiques": "rl_reason.judges.critiques",
    "rl_reason.rewards.monitors": "rl_reason.rewards.composition.monitors",
    "rl_reason.rewards.normalisers": "rl_reason.rewards.composition.normalisers",
    "rl_reason.rewards.outputs": "rl_reason.rewards.composition.outputs",
    "rl_reason.rewards.schedules": "rl_reason.rewards.composition.schedules",
    "rl_reason.rewards.scoring": "rl_reason.rewards.composition.scoring",
    "rl_reason.rewards.shaping": "rl_reason.rewards.composition.shaping",
    "rl_reason.rewards.steps": "rl_reason.rewards.composition.steps",
    "rl_reason.rewards.workers": "rl_reason.sandbox.pool",
    "rl_reason.rollout.prompts": "rl_reason.rollout.samples",
    "rl_reason.run": "rl_reason.run.context",
    "rl_reason.scorer": "rl_reason.scorers.scorer",
    "rl_reason.selection": "rl_reason.stages.self_training.selection",
    "rl_reason.sharding": "rl_reason.runtime.sharding",
    "rl_reason.stages.ahead": "rl_reason.stages.policy_gradient.ahead",
    "rl_reason.stages.assemble": "rl_reason.stages.policy_gradient.assemble",
    "rl_reason.stages.critic": "rl_reason.stages.policy_gradient.critic",
    "rl_reason.stages.critiques": "rl_reason.stages.reward_model.critiques",
    "rl_reason.stages.meta": "rl_reason.stages.reward_model.meta",
    "rl_reason.stages.policy_gradient": "rl_reason.stages.policy_gradient.stage",
    "rl_reason.stages.reward_model": "rl_reason.stages.reward_model.stage",
    "rl_reason.stages.self_training": "rl_reason.stages.self_training.stage",
    "rl_reason.stages.token_reward": "rl_reason.stages.policy_gradient.token_reward",
    "rl_reason.strength": "rl_reason.scorers.strength",
    "rl_reason.tasks.arithmetic": "rl_reason.tasks.worlds.arithmetic",
    "rl_reason.tasks.attributes": "rl_reason.tasks.worlds.attributes",
    "rl_reason.tasks.bench_world": "rl_reason.tasks.worlds.bench_world",
    "rl_reason.tasks.grids": "rl_reason.tasks.worlds.grids",
    "rl_reason.tasks.judging": "rl_reason.tasks.worlds.judging",
    "rl_reason.tasks.lookup": "rl_reason.tasks.worlds.lookup",
    "rl_reason.tasks.posts": "rl_reason.tasks.worlds.posts",
    "rl_reason.tasks.qualities": "rl_reason.tasks.worlds.qualities",
    "rl_reason.tasks.reviews": "rl_reason.tasks.worlds.reviews",
    "rl_reason.tasks.running_sums": "rl_reason.tasks.worlds.running_sums",
    "rl_reason.tasks.topology": "rl_reason.tasks.worlds.topology",
}

# Definitions that left their module: old module -> {new module: their names}.
NAMES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "rl_reason.claims.runs": {
        "rl_reason.claims.folder": (
            "BEGAN", "FAILED", "FINISHED", "Outcome", "SECONDS", "lineage", "outcome",
            "read_json", "seconds", "take_over",),
        "rl_reason.claims.plan": ("Run", "distinct", "first_stages", "plan", "with_beginnings",),
    },
    "rl_reason.claims.worker": {
        "rl_reason.claims.folder": ("STOPPED",),
    },
    "rl_reason.config": {
        "rl_reason.config.checks": ("at_least", "check_microbatches", "one_of",),
        "rl_reason.evaluation.accuracy": ("Evaluation",),
        "rl_reason.models.sources": ("Policy",),
        "rl_reason.rollout.episodes": ("EnvironmentSection",),
        "rl_reason.run.config": (
            "Logging", "RunConfig", "define_flag", "find_experiment", "installed_experiments",
            "load", "load_experiment", "load_from",),
        "rl_reason.runtime.checkpoint": ("Checkpointing",),
        "rl_reason.runtime.profiling": ("Profile",),
        "rl_reason.runtime.sharding": ("MeshSection", "RolloutMesh",),
        "rl_reason.tasks.registry": ("TaskSection",),
    },
    "rl_reason.envs": {
        "rl_reason.envs.registry": ("ENVIRONMENTS",),
    },
    "rl_reason.evaluate": {
        "rl_reason.evaluation.accuracy": (
            "Result", "accuracy", "check_verifier", "evaluate", "memory",),
    },
    "rl_reason.judge": {
        "rl_reason.evaluation.reward_models": (
            "Report", "ScoreFn", "judge", "judge_beside_baselines", "length", "random",
            "table_rows",),
    },
    "rl_reason.learner": {
        "rl_reason.batches.packing": ("split_microbatches", "split_parts",),
        "rl_reason.learner.optimizers": (
            "OPTIMIZERS", "SCHEDULES", "clipped_optimizer", "make_optimizer", "make_schedule",
            "refuse_non_finite",),
    },
    "rl_reason.memory": {
        "rl_reason.learner.memory": ("learner_parts", "scoring_parts", "update_parts",),
        "rl_reason.models.memory": ("LOGITS_COPIES", "saved_activations",),
        "rl_reason.rollout.memory": ("rollout_parts",),
    },
    "rl_reason.rewards": {
        "rl_reason.rewards.composition.build": ("build_rewards",),
        "rl_reason.rewards.registry": ("REWARDS", "TRANSFORMS",),
    },
    "rl_reason.rewards.answers": {
        "rl_reason.sandbox.answer_text": ("last_boxed",),
    },
    "rl_reason.rewards.chat_endpoint": {
        "rl_reason.runtime.http_client": ("MAX_REPLY_BYTES", "post_json",),
    },
    "rl_reason.rewards.composition": {
        "rl_reason.rewards.composition.component": ("Component", "Gate", "Transform", "Trust",),
    },
    "rl_reason.rewards.groups": {
        "rl_reason.rewards.composition.trust": ("group_slices", "group_trust",),
    },
    "rl_reason.rewards.judge": {
        "rl_reason.judges.asked": ("AskedModel", "GENERATORS", "Generate",),
        "rl_reason.judges.verdicts": ("VERDICT", "parse_rating", "parse_verdict",),
    },
    "rl_reason.rewards.steps": {
        "rl_reason.rewards.composition.reward_set": ("token_rewards",),
    },
    "rl_reason.rollout.prompts": {
        "rl_reason.batches.prompts": ("encode_prompts", "pad_rows",),
    },
    "rl_reason.run": {
        "rl_reason.run.config": ("check",),
        "rl_reason.run.record": ("IDENTITY",),
        "rl_reason.run.earlier": (
            "complete", "find_scorer", "policy_of_run", "scorer_of_run", "starting_points",),
        "rl_reason.run.process": ("command", "errors_in_one_line", "start",),
        "rl_reason.run.workdir": ("Workdir", "versions",),
    },
    "rl_reason.stages": {
        "rl_reason.run.earlier": ("policies_before", "trained",),
        "rl_reason.stages.registry": ("STAGES",),
    },
    "rl_reason.stages.base": {
        "rl_reason.learner.optimizers": ("Optimizer",),
        "rl_reason.learner.step": ("make_learner",),
        "rl_reason.rewards.learned": ("Models",),
        "rl_reason.runtime.randomness": ("fold",),
        "rl_reason.stages.adapters": ("merging_memory", "trained_policy", "with_adapters",),
        "rl_reason.stages.context": ("Context",),
    },
    "rl_reason.stages.policy_gradient": {
        "rl_reason.stages.policy_gradient.config": ("Config", "EQUAL_GROUPS",),
    },
    "rl_reason.stages.reward_model": {
        "rl_reason.stages.reward_model.batch": (
            "ComparisonBatch", "architecture", "examples", "make_batch", "make_reader",),
        "rl_reason.stages.reward_model.config": ("Config",),
        "rl_reason.stages.reward_model.evaluation": ("evaluator", "ranking_metrics",),
    },
    "rl_reason.tasks": {
        "rl_reason.tasks.registry": ("SOURCES", "check_disjoint", "load_splits", "load_task",),
        "rl_reason.types": ("Source", "Task",),
    },
    "rl_reason.types": {
        "rl_reason.arrays": (
            "LearnerState", "PromptBatch", "RolloutBatch", "TextBatch", "length_mask",
            "sampled_mask",),
    },
}


def moved_module(module: str, name: str = "") -> str:
  """Returns where a module, or a definition of it, is now; "" if it did not move."""
  for new, names in NAMES.get(module, {}).items():
    if name in names:
      return new
  return MODULES.get(module, "")
