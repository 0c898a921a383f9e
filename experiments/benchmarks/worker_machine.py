"""Measures what the machine can do at most, between the systems' steps.

    python -m rl_reason.experiments.benchmarks.worker_machine
"""

import time

from rl_reason.experiments.benchmarks.channel import Channel  # First: its clock starts here.


def best(function, repeats: int = 5) -> float:
  """Returns the seconds of the fastest of some calls."""
  seconds = []
  for _ in range(repeats):
    started = time.perf_counter()
    function().block_until_ready()
    seconds.append(time.perf_counter() - started)
  return min(seconds)


def main():
  """Answers with the rate of matrix products, in GFLOP/s, and of memory, in GB/s."""
  channel = Channel()
  import jax
  import jax.numpy as jnp
  channel.ready("jax", "jaxlib", device=jax.devices()[0].device_kind)
  gpu = jax.default_backend() == "gpu"
  n, size = (8192, 2**28) if gpu else (2048, 2**26)
  matrix = jax.random.normal(jax.random.key(0), (n, n))
  a, b = jnp.ones(size), jnp.ones(size)
  product = jax.jit(lambda x: x @ x)
  # STREAM's triad reads two arrays and writes one. It writes into the first, because the kernel
  # clears fresh memory at a third of the speed.
  triad = jax.jit(lambda x, y: x + 3.0 * y, donate_argnums=0)

  def move():
    nonlocal a
    a = triad(a, b)
    return a
  best(lambda: product(matrix), repeats=1), best(move, repeats=1)  # Compiles.
  while True:
    channel.wait()
    channel.answer(
        generated=0, trained=0, gflops=2 * n**3 / best(lambda: product(matrix)) / 1e9,
        gigabytes=3 * a.nbytes / best(move) / 1e9)


if __name__ == "__main__":
  main()
