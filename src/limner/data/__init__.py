"""Pictures with captions: `captions` (what is said), `sources` (pictures read), `world` (pictures drawn)."""
