"""The paper's toy studies (``repshift ablate``)."""
