"""What `alignment quickstart` runs on: a world whose answers a program can check, and a student."""
