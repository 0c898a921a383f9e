"""Computes losses of reward models, and losses of policies on pairs (the DPO family).

Reward models learn from pairs, lists and labels. All losses are pure functions of scores, and
return (loss per example [N], metrics per example [N]). Reduce both with the examples' weights:
microbatches then add up, and an example may count more than another. `mask` is true at the places
that hold something: what scores and labels hold elsewhere does not matter, and an example without
a true place costs nothing.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

PerExample = Float[Array, "N"]
Result = tuple[PerExample, Mapping[str, PerExample]]


# Reward models. Scores are logits: differences between them are log-odds.


def bradley_terry(
    chosen: PerExample, rejected: PerExample, *, margin: PerExample | float = 0.0,
    label_smoothing: float = 0.0, weight: PerExample | None = None,
    soft_label: PerExample | None = None,
) -> Result:
  """Computes the logistic loss of score differences (Bradley and Terry 1952).

      d = chosen − rejected − margin        loss = −p log σ(d) − (1 − p) log σ(−d)

  Args:
    chosen: scores of the first side, logits.
    rejected: scores of the second side, logits.
    margin: by how much the chosen side should win (Llama 2, arXiv:2307.09288, eq. 2). The margin
      of a voting ensemble may be negative (Wang et al. 2024, arXiv:2401.06080).
    label_smoothing: ε in [0, 0.5], the share of wrong labels: p becomes (1 − ε) p + ε (1 − p).
    weight: weight of each pair; a pair of weight 0 is skipped whatever its scores are. None: 1.
    soft_label: p, the probability that the first side is the better one, in [0, 1]. None: 1.

  Returns: (loss, {accuracy: 1 where the chosen side scores higher, 0 for a tie; margin: chosen −
    rejected}).
  """
  # Masked before the logarithm, so that a skipped pair can hold anything, NaN included.
  present = jnp.ones(chosen.shape, bool) if weight is None else jnp.asarray(weight) != 0
  difference = jnp.where(present, chosen - rejected, 0.0)
  p = 1.0 if soft_label is None else jnp.where(present, soft_label, 0.0)
  p = (1 - label_smoothing) * p + label_smoothing * (1 - p)
  loss = jnp.where(present, _cross_entropy(difference - jnp.where(present, margin, 0.0), p), 0.0)
  return loss if weight is None else loss * weight, {
      "accuracy": (difference > 0).astype(jnp.float32), "margin": difference}


def pairs(
    scores: Float[Array, "N 2"], labels: PerExample, mask: Bool[Array, "N"],
    *, margin: PerExample | float = 0.0, label_smoothing: float = 0.0,
) -> Result:
  """Bradley-Terry on pairs, with margins and soft labels.

  It is bradley_terry with the arguments that all REWARD_LOSSES have.

  Args:
    scores: the scores of both sides, logits.
    labels: the probabilities that side 0 is the better one, in [0, 1].
    mask: true at pairs that count.
    margin: as in bradley_terry.
    label_smoothing: as in bradley_terry.
  """
  return bradley_terry(
      scores[:, 0], scores[:, 1], margin=margin, label_smoothing=label_smoothing,
      weight=jnp.asarray(mask, jnp.float32), soft_label=labels)


def regression(
    scores: Float[Array, "N ..."], labels: Float[Array, "N ..."], mask: Bool[Array, "N ..."],
    *, huber: float | None = None,
) -> Result:
  """Computes the squared error, averaged over the labelled places of each example.

  Args:
    scores: [N], or [N A] for A attributes.
    labels: the numbers to predict, in the same units.
    mask: true where there is a label; an attribute may lack its label.
    huber: δ, the distance from which the error is linear, δ (2 |e| − δ), so that gradients are
      bounded (Huber 1964, times 2 to agree with e² near 0). None: the error is always squared.

  Returns: (loss, {error: mean |score − label|}).
  """
  error = jnp.abs(jnp.where(mask, scores - labels, 0.0))
  loss = jnp.square(error) if huber is None else jnp.where(
      error <= huber, jnp.square(error), huber * (2 * error - huber))
  return _example_mean(loss, mask), {"error": _example_mean(error, mask)}


def binary(
    scores: Float[Array, "N ..."], labels: Float[Array, "N ..."], mask: Bool[Array, "N ..."],
) -> Result:
  """Computes the cross-entropy of σ(score) with the labels, averaged over an example's places.

  For a mean over all steps of a batch weigh each example by its number of steps.

  Args:
    scores: logits of outcomes [N], steps [N S] or tokens [N T].
    labels: hard labels in {0, 1} (Lightman et al. 2023, arXiv:2305.20050), or soft labels in [0, 1]
      such as the share of rollouts from a step that end well (Math-Shepherd's soft estimates,
      arXiv:2312.08935).
    mask: true at places that have a label.

  Returns: (loss, {accuracy: share of places on the label's side of 0.5, where a label of 0.5 counts
    as above}).
  """
  scores, labels = jnp.where(mask, scores, 0.0), jnp.where(mask, labels, 0.0)
  right = (scores > 0) == (labels >= 0.5)
  return (_example_mean(_cross_entropy(scores, labels), mask),
          {"accuracy": _example_mean(right, mask)})


def ordinal(
    scores: Float[Array, "N ..."], labels: Int[Array, "N ..."], mask: Bool[Array, "N ..."],
    *, thresholds: Float[Array, "... K-1"],
) -> Result:
  """Computes −log P(y) of ordered levels: proportional odds (McCullagh 1980).

      P(y > k) = σ(score − thresholds[k])        y in 0 ... K−1

  Args:
    scores: [N], or [N A] for A attributes.
    labels: levels y. The caller has to refuse a level outside 0 ... K−1.
    mask: true at places that have a label.
    thresholds: ascending along the last axis, [K−1] or [A K−1]; see ordered_thresholds.

  Returns: (loss, {accuracy: share of scores between their label's thresholds; error: |E[y] − y|}).
  """
  # P(y) = σ(a) − σ(b), where a and b are the logits of being above the level's lower and upper
  # thresholds. The lowest level has no a, and the highest one no b.
  scores, labels = jnp.where(mask, scores, 0.0), jnp.where(mask, labels, 0)
  above = scores[..., None] - thresholds  # Logits of y > k.
  none = jnp.zeros((*above.shape[:-1], 1))  # Stands in for the threshold that an end level lacks.
  first, last = labels == 0, labels == thresholds.shape[-1]
  a = jnp.take_along_axis(
      jnp.concatenate([none, above], axis=-1), labels[..., None], axis=-1)[..., 0]
  b = jnp.take_along_axis(
      jnp.concatenate([above, none], axis=-1), labels[..., None], axis=-1)[..., 0]
  # log(σ(a) − σ(b)) = log σ(a) + log σ(−b) + log(1 − e^(b−a)), which is finite in the tails.
  # Thresholds may meet, in float32: the level between them is then unlikely and not impossible.
  gap = jnp.where(first | last, -1.0, jnp.minimum(b - a, -1e-7))
  loss = -(jnp.where(first, 0.0, jax.nn.log_sigmoid(a))
           + jnp.where(last, 0.0, jax.nn.log_sigmoid(-b))
           + jnp.where(first | last, 0.0, jnp.log(-jnp.expm1(gap))))
  right = (above > 0).sum(axis=-1) == labels
  return _example_mean(loss, mask), {
      "accuracy": _example_mean(right, mask),
      "error": _example_mean(jnp.abs(ordinal_expectation(scores, thresholds) - labels), mask)}


def ordered_thresholds(raw: Float[Array, "... K-1"]) -> Float[Array, "... K-1"]:
  """Maps free parameters to ascending thresholds.

  The first is kept as it is. Each of the others is softplus(raw) above the one before it.
  """
  return jnp.cumsum(
      jnp.concatenate([raw[..., :1], jax.nn.softplus(raw[..., 1:])], axis=-1), axis=-1)


def ordinal_expectation(
    scores: Float[Array, "..."], thresholds: Float[Array, "... K-1"]) -> Float[Array, "..."]:
  """Computes E[y] in [0, K−1]: a reward that uses all levels."""
  return jax.nn.sigmoid(scores[..., None] - thresholds).sum(axis=-1)


def listwise(
    scores: Float[Array, "N M"], labels: Float[Array, "N M"], mask: Bool[Array, "N M"]) -> Result:
  """Computes −log likelihood of a ranking (Plackett 1975, Luce 1959).

  Each item is chosen from itself and all items that rank below it:

      loss = −Σ_i log( exp s_i / (exp s_i + Σ_{j: below i} exp s_j) )

  With two items this is bradley_terry. With ranks 0, 1, ..., 1 it is the softmax of one item
  against the others.

  Args:
    scores: scores of M items, logits.
    labels: ranks, 0 for the best. Equal ranks are ties, which are not compared with each other.
    mask: true at items that exist.

  Returns: (loss, {accuracy: share of the ordered pairs that the scores order the same way}).
  """
  below = (labels[:, :, None] < labels[:, None, :]) & mask[:, :, None] & mask[:, None, :]
  losses, right, count = _choices(jnp.where(mask, scores, 0.0), below)
  return losses.sum(axis=1), {"accuracy": right / jnp.maximum(count, 1)}


def one_versus_rest(
    scores: Float[Array, "N M"], labels: Int[Array, "N"], mask: Bool[Array, "N M"]) -> Result:
  """Applies listwise where one item, of index `labels`, is better than all others.

  This is softmax cross-entropy (as in Softmax-DPO, arXiv:2406.09215).
  """
  return listwise(scores, jnp.arange(scores.shape[1]) != labels[:, None], mask)


def step_ranking(
    scores: Float[Array, "N S"], labels: Float[Array, "N S"], mask: Bool[Array, "N S"],
    *, zeta: float = 4.0,
) -> Result:
  """Computes PQM's loss: correct steps rise one above the other, and `zeta` above every wrong step.

      loss = −mean over correct steps t of
              log( exp Q_t / (Σ_{q ≤ t, correct} exp Q_q + Σ_{w wrong} exp(Q_w + ζ)) )

  The start of the solution counts as a correct step with Q = 0: every correct step is to rise above
  the start. Where there is a wrong step, the start has its own term in the mean, as in the authors'
  code.

  Args:
    scores: Q of the steps, in order.
    labels: a step is correct where its label is 0.5 or more. Steps after a first mistake are
      usually labelled wrong.
    mask: true at steps that exist.
    zeta: ζ, the distance to be kept from wrong steps, in units of the scores.

  Returns: (loss, {accuracy: share of ordered pairs, the start included, that the scores order the
    same way}).
  Source: arXiv:2410.11287, eq. 10.
  """
  # The start of the solution becomes step 0, correct and with a score of 0.
  n, size = scores.shape
  correct = jnp.concatenate([jnp.ones((n, 1), bool), mask & (labels >= 0.5)], axis=1)
  wrong = jnp.concatenate([jnp.zeros((n, 1), bool), mask & (labels < 0.5)], axis=1)
  scores = jnp.pad(jnp.where(mask, scores, 0.0), ((0, 0), (1, 0)))
  # A correct step is compared with the correct steps before it and with all wrong steps.
  earlier = jnp.tril(jnp.ones((size + 1, size + 1), bool), -1)
  below = correct[:, :, None] & (correct[:, None, :] & earlier | wrong[:, None, :])
  losses, right, count = _choices(scores, below, jnp.where(wrong, zeta, 0.0))
  # The mean is over the steps that are compared with some other step.
  terms = below.any(axis=2).sum(axis=1)
  return losses.sum(axis=1) / jnp.maximum(terms, 1), {"accuracy": right / jnp.maximum(count, 1)}


def spread(scores: Float[Array, "N k A"]) -> Float[Array, "N"]:
  """Measures how far apart the scores of k responses to one prompt are.

  It is 2 / k² Σ_{i<j} σ(|r_i − r_j|), averaged over outputs: in [(k − 1) / 2k, (k − 1) / k].
  Equal scores pull in no direction.

  Source: J of MetaRM (Wang et al. 2024, arXiv:2401.06080).
  """
  k = scores.shape[1]
  gaps = jax.nn.sigmoid(jnp.abs(scores[:, :, None] - scores[:, None]))
  # Σ_{i<j} is half of the sum over all pairs but the diagonal, and each σ(0) there is a half.
  return jnp.mean((gaps.sum((1, 2)) - k / 2) / k**2, axis=-1)


# All have one signature: (scores, labels, mask, **options). What a label is, and the axes behind N,
# is for each loss to say.
REWARD_LOSSES = {
    "bradley_terry": pairs, "regression": regression, "binary": binary, "ordinal": ordinal,
    "listwise": listwise, "one_versus_rest": one_versus_rest, "step_ranking": step_ranking}


# Policies, on log-probabilities of whole completions in nats. An implicit reward is beta times
# log π / π_ref.


def dpo(
    policy_chosen: PerExample, policy_rejected: PerExample,
    reference_chosen: PerExample, reference_rejected: PerExample,
    chosen_lengths: Int[Array, "N"], rejected_lengths: Int[Array, "N"],
    *, beta: float = 0.1, label_smoothing: float = 0.0,
) -> Result:
  """Applies Bradley-Terry to implicit rewards (Rafailov et al. 2023, arXiv:2305.18290, eq. 7).

  All PREFERENCE_LOSSES take these arrays.

  Args:
    policy_*: sums of the completion's token log-probabilities under the policy, EOS included.
    reference_*: the same under the reference policy.
    *_lengths: tokens of the completions. A pair with a length of 0 is padding: it costs nothing,
      whatever the other arrays hold.
    beta: factor of the implicit rewards, above 0.
    label_smoothing: share of wrong labels. Above 0 this is cDPO (Mitchell 2023, "A note on DPO with
      noisy preferences").

  Returns: (loss, {chosen_reward, rejected_reward, margin, accuracy}).
  """
  present = (chosen_lengths > 0) & (rejected_lengths > 0)
  chosen, rejected = _ratios(
      policy_chosen, policy_rejected, reference_chosen, reference_rejected, present)
  loss = _cross_entropy(beta * (chosen - rejected), 1 - label_smoothing)
  return jnp.where(present, loss, 0.0), _implicit_rewards(beta * chosen, beta * rejected)


def ipo(
    policy_chosen: PerExample, policy_rejected: PerExample,
    reference_chosen: PerExample, reference_rejected: PerExample,
    chosen_lengths: Int[Array, "N"], rejected_lengths: Int[Array, "N"],
    *, beta: float = 0.1, per_token: bool = True,
) -> Result:
  """Computes IPO's loss: log-ratios move a fixed distance apart and no further.

      h = difference of the log-ratios        loss = (h − 1 / (2 beta))²

  Args:
    beta: the paper's τ.
    per_token: each log-ratio is divided by its completion's tokens, as trl does and as by trl's
      account the authors did. False: log-ratios are sums over the completion, as in the paper.

  The other arguments and the result are dpo's.
  Source: Azar et al. 2023, arXiv:2310.12036, eq. 17.
  """
  present = (chosen_lengths > 0) & (rejected_lengths > 0)
  chosen, rejected = _ratios(
      policy_chosen, policy_rejected, reference_chosen, reference_rejected, present)
  scale = (chosen_lengths, rejected_lengths) if per_token else (1, 1)
  h = chosen / jnp.maximum(scale[0], 1) - rejected / jnp.maximum(scale[1], 1)
  loss = jnp.square(h - 1 / (2 * beta))
  return jnp.where(present, loss, 0.0), _implicit_rewards(beta * chosen, beta * rejected)


def orpo(
    policy_chosen: PerExample, policy_rejected: PerExample,
    reference_chosen: PerExample, reference_rejected: PerExample,
    chosen_lengths: Int[Array, "N"], rejected_lengths: Int[Array, "N"], *, beta: float = 0.1,
) -> Result:
  """Computes ORPO's loss: likelihood of the chosen side, and odds against the rejected one.

      loss = −log P(chosen) − beta log σ(log odds(chosen) − log odds(rejected))
      odds = P / (1 − P)

  It needs no reference policy. P is exp of the mean log-probability per token. Rewards are
  beta log P. The other arguments and the result are dpo's.

  Args:
    beta: the paper's λ.

  Source: arXiv:2403.07691, eq. 6-7. trl's likelihood term is a mean over the batch's tokens, the
    prompt's among them; here it is each completion's own mean, as the paper writes it.
  """
  del reference_chosen, reference_rejected
  present = (chosen_lengths > 0) & (rejected_lengths > 0)
  chosen, rejected = _token_means(
      policy_chosen, policy_rejected, chosen_lengths, rejected_lengths, present)

  def log_odds(x):
    # A certain completion has infinite odds. float32 still distinguishes −1e-6 from 0.
    x = jnp.minimum(x, -1e-6)
    return x - jnp.log(-jnp.expm1(x))
  loss = -chosen - beta * jax.nn.log_sigmoid(log_odds(chosen) - log_odds(rejected))
  return jnp.where(present, loss, 0.0), _implicit_rewards(beta * chosen, beta * rejected)


def simpo(
    policy_chosen: PerExample, policy_rejected: PerExample,
    reference_chosen: PerExample, reference_rejected: PerExample,
    chosen_lengths: Int[Array, "N"], rejected_lengths: Int[Array, "N"],
    *, beta: float = 2.0, gamma: float = 1.0,
) -> Result:
  """Computes SimPO's loss (arXiv:2405.14734, eq. 6).

      loss = −log σ(beta (log P(chosen) − log P(rejected)) − gamma)

  It needs no reference policy. P is exp of the mean log-probability per token, as in orpo.
  The other arguments and the result are dpo's.

  Args:
    beta: factor of the rewards beta log P.
    gamma: the margin, in units of these rewards; the paper tunes gamma / beta in 0 ... 1.6.
  """
  del reference_chosen, reference_rejected
  present = (chosen_lengths > 0) & (rejected_lengths > 0)
  chosen, rejected = _token_means(
      policy_chosen, policy_rejected, chosen_lengths, rejected_lengths, present)
  loss = _cross_entropy(beta * (chosen - rejected) - gamma, 1.0)
  return jnp.where(present, loss, 0.0), _implicit_rewards(beta * chosen, beta * rejected)


PREFERENCE_LOSSES = {"dpo": dpo, "ipo": ipo, "orpo": orpo, "simpo": simpo}


def kto(
    policy: PerExample, reference: PerExample, desirable: Bool[Array, "N"],
    mask: Bool[Array, "N"], kl: Float[Array, ""],
    *, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0,
) -> Result:
  """Computes KTO's loss, of completions called good or bad (Ethayarajh et al. 2024).

      loss = λ_D (1 − σ(beta (log-ratio − kl))) where desirable, else
             λ_U (1 − σ(beta (kl − log-ratio)))

  There are no pairs, hence the signature differs from that of PREFERENCE_LOSSES.

  Args:
    policy: sums of the completion's token log-probabilities under the policy.
    reference: the same under the reference policy.
    desirable: true for completions called good.
    mask: true for examples that exist.
    kl: the reference point z0 of kto_reference_point, in nats.
    beta: factor of the implicit rewards, above 0.
    desirable_weight: λ_D. The paper balances the two classes: λ_D n_D / (λ_U n_U) in 1 ... 4/3.
    undesirable_weight: λ_U.

  Returns: (loss, {reward: beta log π / π_ref; accuracy: 1 on the right side of the reference
    point}). The caller takes the rewards' means over the desirable and over the other examples.
  Source: arXiv:2402.01306, sec. 4.1. The paper's constant λ_y is kept, so that the loss is never
    negative.
  """
  ratio = jnp.where(mask, policy - reference, 0.0)
  side = jnp.where(desirable, 1.0, -1.0)
  weight = jnp.where(desirable, desirable_weight, undesirable_weight)
  advantage = side * (ratio - kl)
  loss = jnp.where(mask, weight * jax.nn.sigmoid(-beta * advantage), 0.0)
  return loss, {"reward": beta * ratio, "accuracy": (mask & (advantage > 0)).astype(jnp.float32)}


def kto_reference_point(
    policy: PerExample, reference: PerExample, mask: Bool[Array, "N"]) -> Float[Array, ""]:
  """Estimates z0, KL(policy ‖ reference) in nats, no less than 0. No gradient flows through it.

  Take it over as many completions as there are.

  Args:
    policy: log-probabilities of completions given *another* example's prompt (the batch shifted by
      one, as in the paper), so that the estimate says nothing about the examples themselves.
    reference: the same under the reference policy.
    mask: true for examples that exist.
  """
  mean = jnp.where(mask, policy - reference, 0.0).sum() / jnp.maximum(mask.sum(), 1)
  return jax.lax.stop_gradient(jnp.maximum(mean, 0.0))


def _cross_entropy(
    logits: Float[Array, "..."], p: Float[Array, "..."] | float) -> Float[Array, "..."]:
  return -(p * jax.nn.log_sigmoid(logits) + (1 - p) * jax.nn.log_sigmoid(-logits))


def _example_mean(x: Float[Array, "N ..."], mask: Bool[Array, "N ..."]) -> PerExample:
  mask = jnp.asarray(mask)
  axes = tuple(range(1, mask.ndim))
  return jnp.where(mask, x, 0.0).sum(axis=axes) / jnp.maximum(mask.sum(axis=axes), 1)


def _choices(
    scores: Float[Array, "N M"], below: Bool[Array, "N M M"],
    handicap: Float[Array, "N M"] | float = 0.0,
) -> tuple[Float[Array, "N M"], PerExample, PerExample]:
  """Computes −log probability that i is chosen from itself and all j with below[i, j].

  The handicap is added to the scores of the j.

  Returns: (the losses, 0 where there is no such j; in how many of these pairs i scores higher; how
    many pairs there are).
  """
  others = jnp.broadcast_to((scores + handicap)[:, None, :], below.shape)
  itself = jnp.eye(below.shape[1], dtype=bool)
  logits = jnp.where(itself, scores[:, :, None], others)
  losses = jnp.where(
      below.any(axis=2), jax.nn.logsumexp(logits, axis=2, where=below | itself) - scores, 0.0)
  right = below & (scores[:, :, None] > scores[:, None, :])
  return losses, right.sum(axis=(1, 2)), below.sum(axis=(1, 2))


def _ratios(policy_chosen, policy_rejected, reference_chosen, reference_rejected, present):
  return (jnp.where(present, policy_chosen - reference_chosen, 0.0),
          jnp.where(present, policy_rejected - reference_rejected, 0.0))


def _token_means(policy_chosen, policy_rejected, chosen_lengths, rejected_lengths, present):
  return (jnp.where(present, policy_chosen, 0.0) / jnp.maximum(chosen_lengths, 1),
          jnp.where(present, policy_rejected, 0.0) / jnp.maximum(rejected_lengths, 1))


def _implicit_rewards(chosen: PerExample, rejected: PerExample) -> Mapping[str, PerExample]:
  return {"chosen_reward": chosen, "rejected_reward": rejected, "margin": chosen - rejected,
          "accuracy": (chosen > rejected).astype(jnp.float32)}
