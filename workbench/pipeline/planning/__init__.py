"""What has to run and why: keys over all that shapes an output."""
