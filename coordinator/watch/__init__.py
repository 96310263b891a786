"""What an operator sees of the coordinator: one value, and its views."""
