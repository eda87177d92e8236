"""Many ranks, one checkpoint: what the processes of a training job tell each other, and who does what."""
