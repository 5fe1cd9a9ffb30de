"""Where prompts break the prefix they could share, and why: lines of JSONL -> requests -> pieces -> tree -> report."""
