r"""Does a reward model learn more from leaves of prefix trees than from independent responses?

Card 40.

    python -m rl_reason.claims experiments/reward_topology.py
    python -m rl_reason.train --config=experiments/reward_topology.py:tree --workdir=runs/topology
    ... :tree-tiny                  # Seconds; the tests run it.
    ... :chain-full, :tree-full     # 7B, on your own comparisons.

Qiu et al. 2024, arXiv:2402.10184. Model, loss and number of labels stay the same; only which
responses are compared changes: leaves of trees whose branches share a prefix (B branches at each
segment), or independent responses. By the paper's theory a reward model is then less uncertain
about any two responses where rewards are diverse and labels few, and best-of-N with it keeps
rising with N.

The small world (rl_reason/tasks/worlds/topology.py) has 8^5 responses of five letters. The true
reward is a sum of random weights of all prefixes, of equal variance (stage `rm`), of falling
variance (stage `low`: low diversity), and of equal variance with a third of the labels (stage
`few`); the run's seed is the world's, too. The number is exact: the expected true reward of the
best of N uniform responses by the reward model, over all 32,768 of them (stage `after`).

From the card and not the paper: B, pairs per tree, the world, sizes. Where we depart from the card:
a fixed number of epochs (ten, not tuned) in place of early stopping on a tenth of the pairs; a 95 %
interval in place of a paired test at 0.1; the sampler is uniform.

Result (eight worlds, commit 81a5a8b, 30 minutes of one core; true reward of the best, means over
worlds):

    arm        of 8    of 32   of 128   low diversity,   few labels,   accuracy on pairs
                                        128              128           of its own kind
    chain      0.571   0.738   0.819    1.32             0.596         0.623
    tree       0.440   0.615   0.724    1.13             0.360         0.578
    tree_b2    0.369   0.525   0.652    0.99             0.389         0.543
    tree_b4    0.444   0.545   0.577    1.03             0.262         0.584

tree / chain at 128 is 0.89 (0.74 to 1.07): not above 1.05, though not excluded either. The
advantage from 8 to 128 grows by 0.04 (-0.09 to 0.16): undecided. Between diverse and other rewards
it differs by 0.09 (-0.19 to 0.37): undecided. Chains are ahead in every column. The card's pilot,
with kernel regression, had trees ahead by 9 % and chains at 1.38: this transformer, ten passes over
1,200 noisy labels, orders pairs less well (0.62 of its own kind), so what it misses may be fitting
and not the topology's reach.
"""

from pathlib import Path

from ml_collections import ConfigDict
import numpy as np

from rl_reason.claims import measures
from rl_reason.config import naming
from rl_reason.config.overrides import sized
from rl_reason.stages.probe.stage import Probe
from rl_reason.tasks.worlds.topology import World

# Arm -> topology, branches of a tree, pairs of each tree.
TOPOLOGIES = {
    "chain": ("chain", 3, 100), "tree": ("tree", 3, 100),
    "tree_b2": ("tree", 2, 50), "tree_b4": ("tree", 4, 200)}
# Variances of the weights, by the length of the prefix.
DIVERSE, LOW = (0.2, 0.2, 0.2, 0.2, 0.2), (0.5, 0.25, 0.125, 0.0625, 0.0625)
EPOCHS = 10
_MODULE = "rl_reason.experiments.reward_topology"
_BEST_OF = f"{_MODULE}:true_reward_of_best"

_COMMON = dict(
    paper="Qiu et al. 2024, arXiv:2402.10184", card=40,
    arms={name: dict(config=name) for name in TOPOLOGIES}, treatment="tree", baseline="chain",
    direction="higher", matched=("updates",), seeds=8)
CLAIMS = {
    "best_of_128": dict(
        title="Comparing leaves of prefix trees gives a reward model whose best of 128 is better",
        sentence="Tree-based reward models beat chain-based ones trained on as many comparisons,"
                 " and best-of-N with them goes on rising with N.",
        metric=dict(function=_BEST_OF, args=dict(n=128)), compare="ratio", threshold=1.05,
        also={"of 8": dict(function=_BEST_OF, args=dict(n=8)),
              "of 32": dict(function=_BEST_OF, args=dict(n=32)),
              "low diversity, of 128": dict(function=_BEST_OF, args=dict(n=128, stage="low")),
              "few labels, of 128": dict(function=_BEST_OF, args=dict(n=128, stage="few")),
              "accuracy, own pairs": dict(
                  function="last", args=dict(name="eval/accuracy", stage="rm"))}, **_COMMON),
    "grows_with_n": dict(
        title="The advantage of trees grows from the best of 8 to the best of 128",
        sentence="Best-of-N keeps improving with N for the tree reward model and flattens for the"
                 " chain's.",
        metric=dict(function=_BEST_OF, args=dict(n=128, less=8)), threshold=0.0, **_COMMON),
    "diverse_only": dict(
        title="The advantage of trees is larger where rewards are diverse",
        sentence="Trees win where the task is diverse and data are few, and tie elsewhere.",
        metric=dict(function=_BEST_OF, args=dict(n=128, less_stage="low")), threshold=0.0,
        **_COMMON),
}


def rewards_by_score(probe: Probe, *, model: str) -> dict[str, np.ndarray]:
  """Sorts all responses of a reward model's world by its scores.

  Args:
    model: the stage that trained the reward model.
  Returns: "rewards", [responses]: the true ones, that of the response with the lowest score first.
  """
  made_of = probe.context.earlier.sections[model].data.args
  world = World(made_of["world"], tuple(made_of["variances"]))
  responses, scorer = world.responses(), probe.scorer(model)
  rows = scorer([scorer.encode("=", responses[i:i + 64]) for i in range(0, len(responses), 64)])
  scores = np.concatenate([row.totals[:, 0] for row in rows])
  return {"rewards": world.rewards[np.argsort(scores, kind="stable")]}


def true_reward_of_best(
    folder: Path, *, n: int, stage: str = "rm", less: int = 0, less_stage: str = "") -> float:
  """Computes the expected true reward of the response that a model likes best among n uniform ones.

  With M responses in the order of the model's scores it is Σ_r reward_(r) [(r/M)^n − ((r−1)/M)^n].

  Args:
    stage: that trained the reward model.
    less: subtracts the same for the best of `less` responses; 0: nothing.
    less_stage: subtracts the same of this stage's model and world; "": nothing.
  """
  rewards = measures.arrays(folder, "after", stage)["rewards"]
  value = expected_best(rewards, n) - (expected_best(rewards, less) if less else 0.0)
  if less_stage:
    value -= true_reward_of_best(folder, n=n, stage=less_stage)
  return value


def expected_best(rewards: np.ndarray, n: int) -> float:
  """Computes the expected reward of the best of n uniform responses.

  Args:
    rewards: the true ones of all responses, that of the lowest score first.
  """
  ranks = np.arange(len(rewards) + 1) / len(rewards)
  return float(np.diff(ranks ** n) @ rewards)


# What makes it run in seconds, by field.
TINY = {
    "policy.args.width": 32, "policy.args.num_layers": 1, "policy.args.num_heads": 2,
    **{f"{model}.{field}": value for model in ("rm", "low", "few") for field, value in {
        "num_steps": 2, "batch_size": 8, "heldout_rows": 16, "data.train.size": 40,
        "data.heldout.size": 16, "learner.optimizer.warmup_steps": 1}.items()},
}


def get_config(argument: str = "tree") -> ConfigDict:
  name, size = naming.arm_and_size(argument, TOPOLOGIES, sizes=("tiny", "full"))
  if size == "full":
    return _full(name)
  topology, branching, pairs_per_tree = TOPOLOGIES[name]
  c = ConfigDict(dict(seed=0, max_prompt_tokens=1, stages=("rm", "low", "few", "after")))
  c.policy = dict(source="small", args=dict(
      characters="=abcdefgh", width=96, num_layers=3, num_heads=4))

  # A reward model of each world.
  def reward_model(pairs, variances):
    return dict(
        kind="reward_model", start="initial", num_steps=pairs * EPOCHS // 60, batch_size=60,
        max_response_tokens=6, heldout_rows=400,
        data=dict(
            source="prefix_rewards", args=dict(
                world=c.get_ref("seed"), topology=topology, branching=branching,
                pairs_per_tree=pairs_per_tree, variances=variances),
            train=dict(part="train", size=pairs), heldout=dict(part="heldout", size=400)),
        learner=dict(optimizer=dict(
            learning_rate=1e-3, schedule="cosine", warmup_steps=10, args=dict(weight_decay=0.1))))
  c.rm, c.low, c.few = (
      reward_model(1200, DIVERSE), reward_model(1200, LOW), reward_model(400, DIVERSE))

  # What each makes of all responses.
  c.after = dict(kind="probe", functions={
      model: dict(function=f"{_MODULE}:rewards_by_score", args=dict(model=model))
      for model in ("rm", "low", "few")})
  c.evaluation = dict(every=0)
  c.checkpoint = dict(every=1000, keep=1)
  return sized(c, size, tiny=TINY)


def _full(name: str) -> ConfigDict:
  """Makes the config of GSM8K with 20,000 pairs of one topology: a reward model, then PPO.

  The pairs are grown from your policy and labelled by your judge.
  """
  c = ConfigDict(dict(seed=0, max_prompt_tokens=512, stages=("rm", "rl")))
  c.policy = dict(source="pretrained", args=dict(path="llama2-7b-sft"), dtype="bfloat16")
  c.task = dict(
      source="jsonl",
      args=dict(prompt="{question}\n", reference="{answer}", reference_pattern=r"####\s*(.+)$",
                id="{id}"),
      train=dict(path="gsm8k_train.jsonl.gz"), heldout=dict(path="gsm8k_test.jsonl.gz"))
  c.rm = dict(
      kind="reward_model", num_steps=625, batch_size=64, max_response_tokens=512, bad_rows="drop",
      data=dict(
          source="comparisons", args=dict(format="pairs"),
          train=dict(path=f"{name}.jsonl", rows=":95%"),
          heldout=dict(path=f"{name}.jsonl", rows="95%:")),
      learner=dict(optimizer=dict(learning_rate=2e-5, schedule="cosine", warmup_steps=20)))
  c.rl = dict(
      kind="policy_gradient", num_steps=500, rewards=dict(learned=dict(args=dict(model="rm"))),
      rollout=dict(prompts=128, group_size=1, sampling=dict(max_tokens=512), slots=128),
      credit=dict(
          baseline="none", normalise="token_whiten",
          critic=dict(trunk="separate", start="rm", optimizer=dict(learning_rate=5e-6))),
      objective=dict(kl=dict(added_to="reward", estimator="k1", coef=0.02)),
      learner=dict(minibatches=4, optimizer=dict(learning_rate=1e-6)))
  c.evaluation = dict(
      rewards=dict(number_answer=1.0), num_problems=256, samples_per_problem=1, every=100,
      sampling=dict(max_tokens=512))
  c.mesh = dict(fsdp=-1)
  return c
