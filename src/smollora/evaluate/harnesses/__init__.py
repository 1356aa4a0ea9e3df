"""Task files for other harnesses; docs/eval.md says how to use them."""
