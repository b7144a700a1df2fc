"""Settings of the documentation: ``sphinx-build -W --keep-going -b html docs docs/_build``."""

from __future__ import annotations

from importlib.metadata import version as installed_version

project = "mxlogit"
author = "the mxlogit developers"
copyright = f"2026, {author}"
version = release = installed_version("mxlogit")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
# Single backticks in docstrings name objects: a link where there is a page of theirs, code where there is none.
default_role = "py:obj"
# Dashes only: quotation marks in texts are those that users write in code.
smartquotes_action = "D"

# -- Markdown and notebooks ---------------------------------------------------------------------

myst_enable_extensions = ["dollarmath"]
nb_execution_mode = "off"

# -- docstrings ---------------------------------------------------------------------------------

autodoc_member_order = "bysource"
# Types are in the docstrings, with shapes.
autodoc_typehints = "none"
autodoc_preserve_defaults = True
autosummary_generate = False
napoleon_google_docstring = False
# Parameters that share a line in a docstring share one on the page.
napoleon_use_param = False
# Types such as {"newton", "natural"} or "Tensor, shape (n, k)" stay as they are written.
napoleon_preprocess_types = False
napoleon_use_rtype = False
# Like parameters, and without a second entry for each attribute.
napoleon_custom_sections = [("Attributes", "params_style")]
python_maximum_signature_line_length = 88

# -- HTML ---------------------------------------------------------------------------------------

html_theme = "furo"
html_title = f"mxlogit {release}"
html_copy_source = False
html_show_sphinx = False
