"""Losses over pairs of log-probs. One file and one yaml each; nothing here lists them.

The recipe: a file with the equation and its source at the top and one final subclass of
:class:`~caldpo.losses.base.PreferenceLoss`; ``conf/loss/<name>.yaml`` naming the class and its keys;
one row in ``tests/losses/test_losses.py``.
"""
