"""Serving a model with vLLM: plan the command, start it, wait for it, ask it once, stop it.

`target` says what a path holds, `talk` what its template and stop tokens are, `adapters` what vLLM
refuses, `plan` makes the command line, `environment` finds the Python that has vLLM, `install`
makes one, `process` runs the server, `ask` talks to it. vLLM runs in an environment of its own,
because it pins another transformers than smollora does, and is never imported here.
"""
