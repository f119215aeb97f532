"""Small tools without a model: atomic files, collectives, ranks, text. Nothing here imports another package."""
