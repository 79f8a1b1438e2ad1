"""What the shift is like over a data set (``repshift statistics``)."""
