"""rl_reason makes language models reason better with reinforcement learning, in JAX."""

import os as _os

__version__ = "0.2.0"

# models/, rewards/ and experiments/ lie beside this folder in a checkout, and inside it in a wheel
# (setup.py, package_dir). A copied or editable tree therefore finds them through the checkout's
# root.
_root = _os.path.dirname(_os.path.dirname(_os.path.abspath(__file__)))
if _os.path.exists(_os.path.join(_root, "setup.py")):
  __path__.append(_root)
