"""Evaluation on labelled images (``repshift eval``): every sample exactly once, on one process or several."""
