"""``repshift models``: what can be done with each model of timm and torchvision."""
