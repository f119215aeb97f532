"""The page of runs that are under way: their files followed, served on this machine alone."""
