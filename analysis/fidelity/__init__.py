"""How close pruned models stay to the dense one, on images without labels (``repshift fidelity``)."""
