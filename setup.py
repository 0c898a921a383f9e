"""Packaging: a wheel claims one import name, `rl_reason`; the folders beside it are mapped into it."""

import re
from pathlib import Path

import setuptools

ROOT = Path(__file__).parent

requirements = [
    line for line in (ROOT / "requirements.txt").read_text().splitlines()
    if line.strip() and not line.startswith("#")
]

setuptools.setup(
    name="rl_reason",
    version=re.search(r'__version__ = "(.+?)"', (ROOT / "rl_reason/__init__.py").read_text()).group(1),
    description="Reinforcement learning and reward models for reasoning language models, in JAX",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # tests/test_packaging.py compares this list with the folders.
    packages=[
        "rl_reason",
        "rl_reason.batches",
        "rl_reason.claims",
        "rl_reason.config",
        "rl_reason.envs",
        "rl_reason.evaluation",
        "rl_reason.judges",
        "rl_reason.learner",
        "rl_reason.objectives",
        "rl_reason.reporting",
        "rl_reason.rollout",
        "rl_reason.run",
        "rl_reason.runtime",
        "rl_reason.sandbox",
        "rl_reason.scorers",
        "rl_reason.stages",
        "rl_reason.stages.policy_gradient",
        "rl_reason.stages.reward_model",
        "rl_reason.stages.self_training",
        "rl_reason.tasks",
        "rl_reason.tasks.worlds",
        "rl_reason.models",
        "rl_reason.rewards",
        "rl_reason.rewards.composition",
        "rl_reason.experiments",
    ],
    package_dir={
        "rl_reason": "rl_reason",
        "rl_reason.models": "models",
        "rl_reason.rewards": "rewards",
        "rl_reason.experiments": "experiments",
    },
    package_data={"rl_reason": ["py.typed"]},
    install_requires=requirements,
    extras_require={
        "dev": ["pytest>=8", "pytest-xdist>=3.6", "setuptools>=77", "build>=1.2", "nbclient>=0.10", "nbformat>=5.10",
                "ipykernel>=6.29"],
        # Peers the tests compare with, never run-time needs. Where pip finds a CUDA build first, add PyTorch's CPU index.
        "oracles": ["torch==2.13.0", "transformers>=5", "trl>=1", "rlax>=0.1.6", "sentencepiece>=0.2", "pytest>=8"],
        "cuda": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
        "tensorboard": ["tensorboardX>=2.6"],
        "wandb": ["wandb>=0.17"],
    },
)
