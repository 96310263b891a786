"""Federations in virtual time: many nodes on one machine, with real training and the production coordinator."""
