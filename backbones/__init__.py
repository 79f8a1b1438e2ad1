"""The model families that repshift knows, one a file, and the models that it ships."""

# The folder stands at the top of the repository; importing it under its bare name would make a second copy of it
if __name__ != "repshift.backbones":
    raise ImportError("import repshift.backbones instead; run 'pip install -e .' first")
