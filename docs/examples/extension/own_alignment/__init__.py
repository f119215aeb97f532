"""A package of one's own beside caldpo: a loss, a data source with its true reward, and a callback."""
