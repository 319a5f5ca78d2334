"""Seconds of a step on a card: traced operators over rates, corrected by what this machine measured."""
