"""Carry out a plan. Read worker.py first."""
