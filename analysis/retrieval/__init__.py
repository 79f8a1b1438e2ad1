"""``repshift retrieve``: texts of videos and videos of texts, ranked by a dense and by pruned models."""
