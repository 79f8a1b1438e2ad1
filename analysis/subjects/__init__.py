"""What is measured: models by name, recipes in the words of the command line, sizes, devices, memory, work."""
