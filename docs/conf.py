"""Builds the documentation: `make docs`, then open docs/build/index.html. Warnings are errors."""

from pathlib import Path
import sys

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # A copied tree need not be installed.
sys.path.insert(0, str(ROOT / "docs" / "_ext"))

import rl_reason  # noqa: E402

project = "rl_reason"
author = "The rl_reason authors"
version = release = rl_reason.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "api", "docstrings",
              "registries", "signatures"]
exclude_patterns = ["build"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

# Every public function and class that has a docstring, in the order of the file.
autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    # Made by flax.struct and typing.NamedTuple, not by us.
    "exclude-members": "replace, count, index",
}
autodoc_preserve_defaults = True  # `tolerance=1e-6` as it is written, and no addresses of objects.
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
nitpicky = False  # Annotations name jax, numpy and typing, whose pages are not ours to link to.

html_theme = "furo"
html_title = "rl_reason"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False
