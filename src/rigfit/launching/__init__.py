"""Start one process per rank, or join those that torchrun or SLURM started."""
