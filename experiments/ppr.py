r"""Can a gullible judge of turns be trained with, if the outcome shifts its scores? (card 33)

    python -m rl_reason.claims experiments/ppr.py
    python -m rl_reason.train --config=experiments/ppr.py:renorm --workdir=runs/ppr
    ... :renorm-tiny      # Seconds; the tests run it.
    ... :full             # Qwen2.5-3B-Instruct, your retriever and judge.

PPR (Xu et al. 2025, arXiv:2509.25598): a search agent is paid for its answer and, turn by turn, by
a judge that writes its own principles. Raw scores of turns pay an agent that searches for ever.
ReNorm pays r_p + r_o - 1 for a turn (rewards.turns), so that no turn of a failed episode earns
anything and no turn of a successful one costs, and PPO with a critic gives the credit.

Small (rl_reason/tasks/worlds/lookup.py): "kCA=" is the A of the C of k. The policy looks facts up,
one a turn, in at most four turns; a tenth of the documents that come back are other ones. The judge
(`gullible_judge`) scores a turn from 0 to 4: by its form, by whether it asks about the entity that
the episode has got to, by the relation that is needed, and by whether the entity was named. But in
15 % of turns it pays any well-formed search in full, and in 5 % nothing. Solutions to imitate slip
before half of their turns.

Inferred in the card: the small task, its sizes and all thresholds, gamma = lambda = 1, the clip
bound. Where we depart from it: 26 entities in place of 300, each with facts that are a problem's
own, so that they cannot be learnt by heart; a policy of 0.4M; "the relation or last result copied
right" is an entity that the question or a document named; 64 questions a step, one completion each,
39 tokens with the documents. The judge is a function of texts, read by the parser that a model's
are.

Result (three seeds, 35.0 % right before RL, commit 8bd7ef4, 55 minutes of one core that others used
too; held-out accuracy, turns, the judge's score of a search, and the fall from the training peak,
of the last ten steps; means):

    arm           accuracy   turns   judge   fall
    outcome       0.809      2.70    0.934   0.007
    raw           0.740      3.99    0.793   0.004
    renorm        0.804      2.92    0.903   0.010
    renorm_half   0.716      3.99    0.793   0.013

renorm minus outcome is -0.005 (-0.029 to 0.020), not 0.04: does not hold. renorm minus raw is 0.064
(0.022 to 0.106): undecided about 0.04, and above 0 in every seed. raw has 1.37 (1.00 to 1.89) times
the turns: undecided about 1.25; it always takes all four, and so did renorm in a seed (3.4). No
collapse: holds (0.010 below the peak, -0.015 to 0.036), as it does for every arm.

So what the card names as the hack is there: a policy that is paid by the turn takes every turn.
Half of the shift does not stop it and the whole shift does; but with at most three searches the
outcome alone teaches as well as anything: in chains as short as these there is little credit to be
assigned. Nothing was changed after a result.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from ml_collections import ConfigDict
import numpy as np

from rl_reason.claims import measures
from rl_reason.config import naming
from rl_reason.config.overrides import sized
from rl_reason.tasks.draws import Draws
from rl_reason.tasks.worlds.lookup import CHARACTERS, DOCUMENT, SEARCH

_MODULE = "rl_reason.experiments.ppr"
_ANSWER = dict(exact_answer=dict(args=dict(marker="!")))
# Arm -> arguments of the reward turn_judge; None: there is none.
ARMS = {"outcome": None, "raw": dict(mu=0.0), "renorm": dict(mu=1.0, outcome=_ANSWER),
        "renorm_half": dict(mu=0.5, outcome=_ANSWER)}


def _own(function: str, **args) -> dict:
  return dict(function=f"{_MODULE}:{function}", args=args)


_COMMON = dict(
    paper="Xu et al. 2025, arXiv:2509.25598", card=33,
    arms={name: dict(config=name) for name in ARMS}, treatment="renorm")
_EXACT = dict(function="last", args=dict(name="eval/pass@1", stage="rl"))
CLAIMS = {
    "beats_outcome": dict(
        title="Judged turns with ReNorm beat the outcome alone by 4 points",
        sentence="PPR outperforms RL on outcome rewards alone.",
        baseline="outcome", metric=_EXACT, direction="higher", threshold=0.04,
        matched=("environment_calls",),
        also={"before RL": dict(function="last", args=dict(name="eval/pass@1", stage="sft")),
              "turns": dict(function="last", args=dict(name="episode/turns", points=10)),
              "judge": _own("judged"), "fall from the peak": _own("fall")}, **_COMMON),
    "raw_loses": dict(
        title="Raw scores of turns lose 4 points to ReNorm",
        sentence="Training with raw judge scores degrades or collapses.",
        baseline="raw", metric=_EXACT, direction="higher", threshold=0.04,
        matched=("environment_calls",), **_COMMON),
    "raw_searches_on": dict(
        title="Raw scores of turns make episodes 1.25 times as long, in turns",
        sentence="Paying each turn invites turns that please the judge.",
        metric=dict(function="last", args=dict(name="episode/turns", points=10)), compare="ratio",
        direction="higher", threshold=1.25, matched=("environment_calls",),
        **(_COMMON | dict(treatment="raw")), baseline="renorm"),
    "no_collapse": dict(
        title="With ReNorm the answers stay within 15 points of their best",
        sentence="ReNorm is the most stable normalisation.",
        metric=_own("fall"), compare="absolute", direction="lower", threshold=0.15, matched=(),
        **_COMMON),
}


def fall(folder: Path, *, points: int = 10) -> float:
  """Returns by how much right answers in training ended below their peak.

  Both are means of `points` steps.
  """
  values = measures.curve(folder, "reward/answer", "rl")[1]
  means = np.convolve(values, np.ones(points) / points, mode="valid")
  return float(means.max() - means[-1])


def judged(folder: Path) -> float:
  """Returns the judge's mean score of a search in the last ten steps: in [0, 1]."""
  total = measures.last(folder, name="reward/judge", stage="rl", points=10)
  return total / (measures.last(folder, name="episode/turns", stage="rl", points=10) - 1)


def gullible_judge(
    *, seed: int = 0, overpaid: float = 0.15, underpaid: float = 0.05,
) -> Callable[[Sequence[str]], list[str]]:
  """Makes a judge that answers prompts of JUDGE_TEMPLATE with texts as a model would write them.

  A turn and its document get a point each for: the form of a search; the entity that the episode
  has got to; the relation that is needed next; an entity that the question or a document has named.
  Which turns are paid otherwise depends on the seed and the texts.

  Args:
    overpaid: the probability that a turn of the right form gets all four points.
    underpaid: the probability that it gets none.
  """
  def judge(prompt: str) -> str:
    question, history, turn = prompt.split("\n")
    draws, search = Draws("judge", seed, prompt), SEARCH.match(turn)
    chance = draws.uniform()
    if search is None or chance < underpaid:
      return "0,4"
    if chance < underpaid + overpaid:
      return "4,4"
    # Where the episode has got to: the entity, and the relations that are left.
    entity, left = question[0], question[1:-1]
    for at, relation, value in DOCUMENT.findall(history):
      if left and at + relation == entity + left[0]:
        entity, left = value, left[1:]
    asked, relation = search.groups()
    named = question[0] + "".join(value for _, _, value in DOCUMENT.findall(history))
    return f"{1 + (asked == entity) + (relation == left[:1]) + (asked in named)},4"
  return lambda prompts: [judge(prompt) for prompt in prompts]


JUDGE_TEMPLATE = "{prompt}\n{history}\n{response}"
# What makes it run in seconds, by field.
TINY = {
    "policy.args.width": 32, "policy.args.num_layers": 1, "policy.args.num_heads": 2,
    "task.train.size": 100, "task.heldout.size": 16,
    "sft.num_steps": 2, "sft.batch_size": 8, "sft.learner.optimizer.warmup_steps": 1,
    "rl.num_steps": 2, "rl.rollout.prompts": 4, "rl.learner.optimizer.warmup_steps": 1,
    "rl.credit.critic.optimizer.warmup_steps": 1,
    "evaluation.num_problems": 16, "evaluation.samples_per_problem": 1, "evaluation.batch_size": 16,
}


def get_config(argument: str = "renorm") -> ConfigDict:
  name, size = naming.arm_and_size(argument, ARMS, whole="full")
  if not name:
    return _full()
  c = ConfigDict(dict(seed=0, max_prompt_tokens=4, stages=("sft", "rl")))
  c.policy = dict(source="small", args=dict(
      characters=CHARACTERS, width=96, num_layers=3, num_heads=4))
  c.task = dict(
      source="lookup_problems", args=dict(seed=0),
      train=dict(part="train", size=4000, careless=0.5), heldout=dict(part="heldout", size=256))
  c.environment = dict(source="lookup", max_turns=4, turn_tokens=6, answer_tokens=5)
  sampling = dict(max_tokens=39, stop_strings=(".",))
  c.sft = dict(
      kind="sft", num_steps=500, batch_size=64, max_completion_tokens=39,
      learner=dict(optimizer=dict(learning_rate=2e-3, schedule="cosine", warmup_steps=20)))

  # PPO on the answer, and on judged turns; what the judge thinks is logged in every arm.
  judge = dict(generate=f"{_MODULE}:gullible_judge", generate_args=dict(seed=0),
               template=JUDGE_TEMPLATE)
  rewards = dict(answer=dict(_ANSWER["exact_answer"], function="exact_answer"))
  if ARMS[name] is not None:
    rewards["turns"] = dict(function="turn_judge", args=dict(judge, **ARMS[name]))
  rewards["judge"] = dict(function="turn_judge", args=dict(judge, mu=0.0), weight=0.0)
  c.rl = dict(
      kind="policy_gradient", num_steps=120, rewards=rewards,
      rollout=dict(prompts=64, group_size=1, sampling=sampling),
      credit=dict(
          baseline="none", normalise="token_whiten",
          critic=dict(
              trunk="separate", lam=1.0, optimizer=dict(learning_rate=2e-3, warmup_steps=5))),
      objective=dict(mean_over="token", kl=dict(added_to="reward", estimator="k1", coef=0.001)),
      learner=dict(optimizer=dict(learning_rate=5e-4, warmup_steps=5)))
  c.evaluation = dict(
      rewards=_ANSWER, num_problems=256, samples_per_problem=4, batch_size=256, sampling=sampling)
  c.checkpoint = dict(every=10_000, keep=1)
  return sized(c, size, tiny=TINY)


INSTRUCTION = """\
Answer the question. Think first, within <think> and </think>. If you lack knowledge, search with
<search>query</search>; what is found comes back within <information> and </information>. You may \
search {searches} times. When
you know the answer, give it within <answer> and </answer>, without explanation. Question: """


def _full() -> ConfigDict:
  """Makes the config with the paper's numbers for 3B.

  512 questions a step of NQ and HotpotQA, two turns, three passages a search. Start a retrieval
  server of Search-R1's protocol, and serve a judge that was tuned on judged turns, as PPRM was.
  """
  c = ConfigDict(dict(seed=0, max_prompt_tokens=1024, stages=("rl",)))
  c.policy = dict(source="pretrained", args=dict(path="qwen2.5-3b-instruct"), dtype="bfloat16")
  c.task = dict(
      source="jsonl", args=dict(
          prompt=INSTRUCTION.format(searches=2) + "{question}", chat=True, reference="{answers}",
          id="{id}"),
      train=dict(path="nq_hotpotqa_train.jsonl"), heldout=dict(path="nq_hotpotqa_test.jsonl"))
  c.environment = dict(
      source="search", args=dict(url="http://localhost:8000/retrieve", topk=3), max_turns=3,
      turn_tokens=500, answer_tokens=500)
  sampling = dict(max_tokens=2500, stop_strings=("</search>",))
  answer = dict(exact_match=dict(args=dict(separator="|")))
  c.rl = dict(
      kind="policy_gradient", num_steps=501,
      rewards=dict(answer, turns=dict(function="turn_judge", args=dict(
          generate="chat_endpoint", mu=1.0, outcome=answer, generate_args=dict(
              url="http://localhost:8001/v1", model="pprm-8b", max_tokens=4096, retries=10)))),
      rollout=dict(prompts=512, group_size=1, slots=256, sampling=sampling),
      credit=dict(
          baseline="none", normalise="token_whiten",
          critic=dict(
              trunk="separate", lam=1.0, optimizer=dict(learning_rate=1e-5, warmup_steps=8))),
      objective=dict(mean_over="token", kl=dict(added_to="reward", estimator="k1", coef=0.001)),
      learner=dict(
          minibatches=2, remat="full", optimizer=dict(learning_rate=1e-6, warmup_steps=143)))
  c.evaluation = dict(rewards=answer, num_problems=512, every=50, sampling=sampling)
  c.mesh = dict(fsdp=-1)
  return c
