"""Replay a dumped non-finite step, without training: which pair, which term, whose gradient."""
