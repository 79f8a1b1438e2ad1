"""Accuracy against work and speed (``repshift curves``)."""
