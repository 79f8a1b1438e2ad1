"""What one does with the engine: measure, draw, train the embedded models, and the command line."""

# The folder stands at the top of the repository; importing it under its bare name would make a second copy of it
if __name__ != "repshift.analysis":
    raise ImportError("import repshift.analysis instead; run 'pip install -e .' first")
