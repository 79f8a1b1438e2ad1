"""Dense and pruned models side by side on shipped data (``repshift demo``)."""
