"""Speed and memory of dense and pruned models (``repshift bench``)."""
