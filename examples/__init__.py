"""Tasks that alignfed can learn out of the box, with real data."""
