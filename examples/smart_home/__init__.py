"""Smart-home commands: a household says something, the model answers with the intent as JSON."""
