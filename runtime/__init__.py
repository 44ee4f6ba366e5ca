"""What every experiment needs and no experiment is: run directories, checkpoints, progress, errors."""
