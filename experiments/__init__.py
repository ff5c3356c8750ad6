"""Data, models, configurations and runs: what the papers did, as commands."""
