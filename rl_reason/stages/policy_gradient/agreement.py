"""Says how far sampler and trainer may differ before a policy_gradient run warns or stops.

They are one model function, so that in the first update on a rollout their log-probabilities of the
sampled tokens differ by rounding alone. A larger difference is a fault: a mask, a position, a kernel,
or products that are less exact than the section says. The policy would learn from ratios that mean
something else.

The statistic is the metric `logprob_gap`: the largest |trainer − sampler| over the rollout's tokens,
in nats. It is the largest, and not a mean, because a fault is often one of few places, such as the
first token after a page or a turn.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

# In float32 10^-5 is usual. In bfloat16 the same model gives up to 10^-1.
FLOAT32 = {"threshold": 1e-3, "action": "stop"}
COARSER = {"threshold": 0.1, "action": "warn"}


def bound(dtype: jnp.dtype, *, same_policy: bool) -> dict[str, Any]:
  """Returns the monitor of `logprob_gap`, as a section of monitors; {} where they differ anyway.

  Args:
    dtype: of the computation.
    same_policy: whether the sampler has the trainer's own parameters. With staleness and int8 it
      does not: the gap is then logged only.
  """
  if not same_policy:
    return {}
  exact = dtype == jnp.float32 and _exact_products()
  return {"logprob_gap": dict(FLOAT32 if exact else COARSER)}


def with_bound(monitors: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
  """Adds the default bound to a section's monitors, whose own fields come first."""
  return {**default, **{
      name: {**default.get(name, {}), **dict(entry.items())} for name, entry in monitors.items()}}


def _exact_products() -> bool:
  """Says whether float32 products are of float32: accelerators round the factors by default."""
  return (jax.default_backend() == "cpu"
          or jax.config.jax_default_matmul_precision in ("highest", "float32"))
