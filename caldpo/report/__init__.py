"""Report, table and pictures of a sweep, from its runs' files."""
