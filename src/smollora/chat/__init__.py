"""Talking to a model: a conversation that streams, calls tools after a yes, and can be looked into.

`session` and `settings` are values; `answerer` says what can answer a session, `local` and `remote`
do; `tools` runs what a model asks for, in a child process; `turn` is one question with all that
follows from it; `commands`, `terminal` and `loop` are the command line. `simple` is for notebooks.
"""
