"""Sources of rows: files, hub data sets, generated environments."""
