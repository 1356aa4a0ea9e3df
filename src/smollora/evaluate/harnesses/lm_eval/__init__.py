"""A task for EleutherAI's lm-evaluation-harness: a YAML file and the functions that it names."""
