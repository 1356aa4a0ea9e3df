"""The verbs of the command line, a function each; `cli.py` gathers them."""
