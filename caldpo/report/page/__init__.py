"""The comparison as one HTML page: what it draws, its tables and samples, and its script and style."""
