"""Talks to JAX and the machine: meshes, random keys, compiled programs, checkpoints, memory."""
