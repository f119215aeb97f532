"""Small tools without a model: atomic files, locks, collectives, text. Nothing here imports another package."""
