"""The selective scan of Mamba: one function, several implementations, each held against the plain reference."""

from repshift.backbones.scan.selective import IMPLEMENTATIONS, aligned_scan, selective_scan

__all__ = ["IMPLEMENTATIONS", "aligned_scan", "selective_scan"]
