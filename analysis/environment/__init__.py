"""``repshift env``: what there is on this machine."""
