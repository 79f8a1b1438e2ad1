"""Training of the embedded models (``repshift zoo``)."""
