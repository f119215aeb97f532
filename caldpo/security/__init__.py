"""What keeps secrets, foreign code and paths outside where they belong."""
