"""What ``python -m caldpo.generate`` is made of."""
