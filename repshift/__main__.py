"""``python -m repshift`` is the command ``repshift``."""

from repshift.analysis.cli import main

main()
