"""How the site is built: ``docs/build.sh SITE`` runs the notebooks and makes the pages, without a network."""

import sys
from pathlib import Path

import repshift

sys.path.append(str(Path(__file__).parent / "_extensions"))

project = "repshift"
author = "The repshift authors"
copyright = author
release = version = repshift.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "mathml",
]
exclude_patterns = ["_build", "_extensions"]

html_theme = "furo"
html_title = f"repshift {release}"
html_math_renderer = "mathml"
html_show_copyright = False

# the notebooks hold no outputs; build.sh executes a copy of them once, and the pages show what that gave
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath"]
nb_output_stderr = "remove"  # of loggers and progress bars; an error stops the build before
nb_merge_streams = True
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True
