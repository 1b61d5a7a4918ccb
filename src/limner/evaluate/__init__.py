"""What was painted, judged: `grade` (a picture against its prompt, claim by claim)."""
