"""Short reviews with a known ground-truth reward: prompts, writers, reward, pairs, tokenizer, SFT policy."""
