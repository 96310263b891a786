"""The node's private examples: where they come from, how they are kept, what is doubtful about them."""
