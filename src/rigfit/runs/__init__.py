"""What happened: run folders, their logs, their checkpoints as folders of files, and the live view. No torch."""
