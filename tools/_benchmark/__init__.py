"""What `vertebra benchmark` measures, a file each, and the processes that it measures in."""
