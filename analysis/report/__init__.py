"""The explorer page (``repshift report``)."""
