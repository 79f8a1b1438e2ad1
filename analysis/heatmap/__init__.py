"""The shift as pictures (``repshift heatmap``)."""
