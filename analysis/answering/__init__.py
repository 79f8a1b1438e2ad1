"""``repshift answer``: questions on videos, answered by a dense and by pruned models."""
