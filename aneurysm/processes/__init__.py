"""What many packages need of the operating system: child processes, threads, locks, files that are whole."""
