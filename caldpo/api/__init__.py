"""What caldpo does, as functions of Python: the table of names is in ``caldpo/__init__.py``, each is a file here.

No heavy imports: a function imports torch and the rest when it is called.
"""
