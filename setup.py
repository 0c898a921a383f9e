"""Packaging: a wheel claims one import name, `rl_reason`; the folders beside it are mapped into it."""

from pathlib import Path
import re

import setuptools

ROOT = Path(__file__).parent

requirements = [
    line for line in (ROOT / "requirements.txt").read_text().splitlines()
    if line.strip() and not line.startswith("#")
]

# Read, not imported: importing the package would need what it requires.
version = re.search(
    r'__version__ = "(.+?)"', (ROOT / "rl_reason/__init__.py").read_text()).group(1)

# Import name -> folder. The folders beside rl_reason/ are parts of it.
package_dir = {
    "rl_reason": "rl_reason",
    "rl_reason.models": "models",
    "rl_reason.rewards": "rewards",
    "rl_reason.experiments": "experiments",
}
# Every folder with an __init__.py is a package, so a new room needs no line here.
# tests/test_packaging.py compares with the folders.
packages = [
    ".".join([name, *inner]) for name, folder in package_dir.items()
    for inner in ([], *(found.split(".") for found in setuptools.find_packages(str(ROOT / folder))))
]

setuptools.setup(
    name="rl_reason",
    version=version,
    description="Reinforcement learning and reward models for reasoning language models, in JAX",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=packages,
    package_dir=package_dir,
    entry_points={"console_scripts": ["rl-reason = rl_reason.__main__:main"]},
    package_data={"rl_reason": ["py.typed"]},
    install_requires=requirements,
    extras_require={
        "dev": [
            "pytest>=8", "pytest-xdist>=3.6", "setuptools>=77", "build>=1.2", "nbclient>=0.10",
            "nbformat>=5.10", "ipykernel>=6.29"],
        # Peers that the tests compare with, never needed to run. Where pip finds a CUDA build of
        # torch first, add PyTorch's CPU index.
        "oracles": [
            "torch==2.13.0", "transformers>=5", "trl>=1", "rlax>=0.1.6", "sentencepiece>=0.2",
            "pytest>=8"],
        "cuda": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
        # Runs in gs:// buckets: epath reads and writes by the first, orbax by the second.
        "gcs": ["gcsfs>=2024.2", "google-cloud-storage>=2.10"],
        "tensorboard": ["tensorboardX>=2.6"],
        "wandb": ["wandb>=0.17"],
        "docs": ["sphinx>=8.2", "myst-parser>=4", "furo>=2024.8"],
    },
)
