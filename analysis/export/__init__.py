"""A model in a file that other programs run (``repshift export``)."""
