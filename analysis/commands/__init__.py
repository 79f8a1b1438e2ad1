"""The commands of ``repshift``, one a module; what they do lives in the modules of :mod:`repshift.analysis`."""
