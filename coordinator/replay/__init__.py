"""The coordinator's past, played again: the same rows give the same versions, or the first difference."""
