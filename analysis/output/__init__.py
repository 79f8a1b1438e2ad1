"""What is shown and written: options, results files, terminal, figures."""
