"""`alignfed compare`: methods side by side over regimes and seeds, with what the differences are worth."""
