"""Modifiers of any pair loss: one file and one yaml each, several at once by ``modifier=[wpo,nll]``."""
