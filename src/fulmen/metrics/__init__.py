"""What `self.log` records, and how it reaches loggers, progress bar and callbacks."""
