"""What runs are worth: downstream tasks, tuning, the cost of a step, and whether an accelerator computes rightly."""
