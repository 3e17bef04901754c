"""Runtime: what every process needs of its machine: clock, files, locks, logs. Knows nothing of jobs or transcripts."""
