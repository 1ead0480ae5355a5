"""What `alignment doctor` looks at, one file each."""
