"""Arithmetic: from a workload and a rig to a plan. No torch, no disk, no clock."""
