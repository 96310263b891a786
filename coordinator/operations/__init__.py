"""What an operator may ask of a running coordinator, and how it arrives."""
