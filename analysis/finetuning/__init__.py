"""Training of pruned models (``repshift finetune``)."""
