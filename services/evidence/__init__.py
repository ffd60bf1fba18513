"""What is kept, for how long and why: retention, holds, deletion."""
