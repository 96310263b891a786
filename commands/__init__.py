"""The console command's parts: options in, calls of the packages, words and exit codes out."""
