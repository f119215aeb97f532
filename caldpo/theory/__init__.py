"""What a loss does where its optimum is known exactly: measured on a table, full batches, no sampling noise."""
