"""caldpo: an exact, cheap and readable comparison of offline preference-alignment losses."""

__version__ = "0.1.0"
