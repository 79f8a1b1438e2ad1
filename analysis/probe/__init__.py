"""Accuracy of a backbone without a head: probes trained on dense features (``repshift probe``)."""
